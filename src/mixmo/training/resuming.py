"""Resuming a run: what may have changed since it began, and the checkpoint it continues from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch.nn.modules.batchnorm import _BatchNorm

from mixmo.checkpoints import LAST, duplicate, finished_epochs
from mixmo.config.plan import Plan, flatten
from mixmo.config.recipes import PERMISSIONS
from mixmo.config.settings import Settings, known_settings, neutral_settings, values_of
from mixmo.data.image_sets import InMemoryImages
from mixmo.data.module import DataModule
from mixmo.errors import InputError, reason
from mixmo.files import read_yaml, write_text, yaml_text
from mixmo.launching import is_first, world
from mixmo.network import MixMo
from mixmo.runs import RunFolder, fill_open_settings, get_section
from mixmo.training.loaders import Loaders
from mixmo.training.step import Training

MAY_CHANGE = neutral_settings() | {"data.name", "trainer.max_epochs", "trainer.patience"}
"""Settings that may change between stop and resume: what was trained stays trained. The data's content is compared."""

log = logging.getLogger("mixmo")


def find_conditions(settings: Settings, net: MixMo, data: DataModule) -> dict[str, Any]:
    """Return what else a run's results depend on, apart from its settings, by name.

    Pixel mixing draws partners from the whole set in memory, but from the batch where images are streamed, since
    reading others would double the cost. Each batch norm sees a part of the batch.
    """
    found: dict[str, Any] = {}
    if settings.pixels.kind != "none":
        found["training images in memory (data.in_memory)"] = isinstance(data.train, InMemoryImages)
    if any(isinstance(module, _BatchNorm) for module in net.modules()):
        own = settings.trainer
        devices, nodes = world(own.devices, own.num_nodes)
        ranks = 1 if own.sync_batchnorm else devices * nodes
        found["parts of a batch for batch norms (devices · trainer.accumulate)"] = ranks * own.accumulate
    return found


def describe_data(data: DataModule) -> dict[str, Any]:
    """Return a description of a run's training images that shows whether they changed."""
    fingerprint = data.fingerprint("train", times=False)
    return {"fingerprint": fingerprint, "images": len(data.train), "classes": len(data.classes)}


def find_changes(run: RunFolder, plan: Plan, conditions: Mapping[str, Any] | None = None) -> dict[str, tuple[Any, Any]]:
    """Return the settings of a plan, and conditions, that differ from those the run began with: old and new values."""
    about = run.about()
    began, resolved = (dict(get_section(about, key)) for key in ("settings", "resolved"))
    open_ones = {name for name, _ in flatten(plan.resolved)}
    defaults = flatten(values_of(Settings())) if began else ()  # of settings that an earlier version lacked
    first = {name: value for name, value in defaults if name not in open_ones}
    first |= dict(flatten(fill_open_settings(began, resolved))) | run.conditions()
    now = dict(flatten(fill_open_settings(yaml.safe_load(plan.yaml), plan.resolved))) | dict(conditions or {})
    return {
        name: (first[name], value) for name, value in now.items()
        if name in first and name not in PERMISSIONS and first[name] != value
    }  # fmt: skip


def check_unchanged(run: RunFolder, plan: Plan, conditions: Mapping[str, Any] | None = None) -> None:
    """Refuse to resume with other settings than the run began with; those that change no result may differ."""
    changes = {name: both for name, both in find_changes(run, plan, conditions).items() if name not in MAY_CHANGE}
    if not changes:
        return
    shown = "; ".join(f"{name} is {now!r}, and was {before!r}" for name, (before, now) in changes.items())
    raise InputError(
        f"settings of {run.path} have changed since it began: {shown}. Change them back, start a new run with "
        f"`mixmo fit {run.config_file} --run FOLDER`, or resume it with them by --accept_changes."
    )


def _record_changes(run: RunFolder, plan: Plan, conditions: Mapping[str, Any], epochs: int, step: int) -> None:
    """Record in ``environment.json``, ``config.yaml`` and the log the settings that the run is resumed with."""
    if not (changes := find_changes(run, plan, conditions)):
        return
    shown = ", ".join(f"{name} {before} -> {now}" for name, (before, now) in changes.items())
    log.info("%s from step %d (epoch %d) on.", shown, step, epochs + 1)
    about = run.about()
    done = {"after_epoch": epochs, "after_step": step, "settings": changes}
    settings = {"settings": yaml.safe_load(plan.yaml), "resolved": plan.resolved, "conditions": dict(conditions)}
    run.write_json("environment.json", about | settings | {"changes": [*about.get("changes", []), done]})
    config, free = read_yaml(run.config_file, "configuration"), {name for name, _ in flatten(plan.resolved)}
    own, known = dict(flatten(config)), known_settings()
    for name, (_, now) in changes.items():
        if name in known and (own.get(name) is not None or name not in free):  # what it leaves open stays open
            section, _, key = name.rpartition(".")
            (config.setdefault(section, {}) if section else config)[key] = now
    if dict(flatten(config)) != own:
        write_text(run.config_file, yaml_text(config))


def open_checkpoint(
    plan: Plan, run: RunFolder, training: Training, loaders: Loaders, conditions: Mapping[str, Any]
) -> Path | None:
    """Return the checkpoint to resume from, and make the loaders start there; ``None`` if there is none yet.

    The first rank cuts the run's metrics back to the checkpoint and records changes.
    """
    known, now = run.about().get("data"), describe_data(loaders.data)
    if isinstance(known, dict) and known != now:
        raise InputError(
            f"the training data has changed since {run.path} began ({known.get('images')} images then, {now['images']} "
            "now, or other names, sizes or classes); bring it back, or start a new run."
        )
    run.read_metrics()  # reports a damaged file before an epoch is spent
    found = run.resumed_checkpoint()
    epochs = step = 0
    if found is not None:
        file, content = found
        if problem := _find_misfit(content, training):
            raise InputError(f"{file} is not a checkpoint of this run: {problem}.")
        epochs, step = finished_epochs(content), content["global_step"]
        if epochs > plan.epochs:
            raise InputError(
                f"trainer.max_epochs is {plan.epochs}, but {run.path} has finished {epochs} epochs "
                "already, which cannot be undone; set it to that, or more."
            )
        batches = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
        loaders.begun = epochs, batches if "unfinished" in content else 0
    if is_first():
        run.cut_metrics(epochs)
        _record_changes(run, plan, conditions, epochs, step)
    if found is None:
        return None
    if is_first() and file.name != LAST:
        duplicate(file, file.with_name(LAST))
    return file


def _find_misfit(content: dict[str, Any], training: Training) -> str:
    """Return why a checkpoint does not fit the network or optimiser, else nothing; its digest was checked before.

    Learning rate, decay and the like follow from the settings, not from the checkpoint.
    """
    averaged = any(name.startswith("average.") for name in content["state_dict"])
    if averaged != (training.average is not None):
        return "optimizer.ema_decay cannot change from or to 0 within a run, which averages its weights from its start"
    try:
        training.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        return f"its weights are of another network ({reason(error)})"
    optimizer = training.build_optimizer()
    own = optimizer.state_dict()["param_groups"]
    try:
        (state,) = content["optimizer_states"]
        kept = state["param_groups"]
        if len(kept) != len(own):
            return (
                f"its optimizer has {len(kept)} groups of parameters, and optimizer.decay_all and layer_decay make "
                f"{len(own)}"
            )
        if missing := sorted(own[0].keys() - kept[0].keys() - {"initial_lr"}):
            return f"its optimizer, of another kind, has no {missing[0]}"
        optimizer.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        return f"its optimizer is another ({reason(error)})"
    counters = content.get("loops", {}).get("fit_loop", {})
    return "" if "epoch_loop.batch_progress" in counters else "it has no counters of epochs and steps"
