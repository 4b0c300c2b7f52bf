"""Resuming a run: settings that may have changed, and the checkpoint to continue from."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
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
from mixmo.launching import count_devices, is_first
from mixmo.network import MixMo
from mixmo.runs import RunFolder, fill_open_settings, get_section
from mixmo.training.loaders import Loaders
from mixmo.training.step import Training
from mixmo.training.user_code import digest_code

MAY_CHANGE = neutral_settings() | {"data.name", "trainer.max_epochs", "trainer.patience"}
"""Settings that may change when a run is resumed; of the data, the content is compared instead of the name."""

log = logging.getLogger("mixmo")


def find_conditions(settings: Settings, net: MixMo, data: DataModule) -> dict[str, Any]:
    """Return what a run's results depend on in addition to its settings, by name.

    Pixel mixing draws partners from the whole set in memory, but from the batch if images are streamed, since reading
    others would double the cost. Each batch norm sees a part of the batch. A user's masks and objective are code.
    """
    conditions: dict[str, Any] = {}
    if settings.pixels.kind != "none":
        conditions["training images in memory (data.in_memory)"] = isinstance(data.train, InMemoryImages)
    if any(isinstance(module, _BatchNorm) for module in net.modules()):
        trainer = settings.trainer
        devices, nodes = count_devices(trainer.devices, trainer.num_nodes)
        ranks = 1 if trainer.sync_batchnorm else devices * nodes
        conditions["parts of a batch for batch norms (devices · trainer.accumulate)"] = ranks * trainer.accumulate
    for name in (settings.objective.name, *settings.mixer.kinds):
        if isinstance(name, str) and ":" in name and (digest := digest_code(name)):
            conditions[f"digest of the code of {name.partition(':')[0]}"] = digest
    return conditions


def describe_data(data: DataModule) -> dict[str, Any]:
    """Describe a run's training and validation images, so that a change shows."""
    return _fingerprints(data) | {"images": len(data.train), "classes": len(data.classes)}


def _fingerprints(data: DataModule) -> dict[str, Any]:
    """Return the fingerprints of training and validation images, for which none is decoded."""
    splits = {"fingerprint": "train"} | ({"validation": "validation"} if "validation" in data.sources else {})
    return {key: data.fingerprint(split, times=False) for key, split in splits.items()}


def find_changes(run: RunFolder, plan: Plan, conditions: Mapping[str, Any] | None = None) -> dict[str, tuple[Any, Any]]:
    """Return the old and new values of the settings and conditions that differ from those the run began with."""
    about = run.about()
    settings, resolved = (dict(get_section(about, key)) for key in ("settings", "resolved"))
    open_settings = {name for name, _ in flatten(plan.resolved)}
    defaults = flatten(values_of(Settings())) if settings else ()  # of settings that an earlier version lacked
    before = {name: value for name, value in defaults if name not in open_settings}
    before |= dict(flatten(fill_open_settings(settings, resolved))) | run.conditions()
    now = dict(flatten(fill_open_settings(yaml.safe_load(plan.yaml), plan.resolved))) | dict(conditions or {})
    return {
        name: (before[name], value) for name, value in now.items()
        if name in before and name not in PERMISSIONS and before[name] != value
    }  # fmt: skip


def check_unchanged(
    run: RunFolder,
    plan: Plan,
    conditions: Mapping[str, Any] | None = None,
    may_change: Container[str] = MAY_CHANGE,
    advice: str = "",
) -> None:
    """Raise if settings or conditions that change results differ from those the run began with.

    ``advice`` is what to do besides changing them back; by default, what `mixmo fit` offers.
    """
    changes = [
        f"{name} is {now!r}, and was {before!r}"
        for name, (before, now) in find_changes(run, plan, conditions).items()
        if name not in may_change
    ]
    if changes:
        if not advice and run.option == "--run":
            new = f"start a new run with `mixmo fit {run.config_file} --run FOLDER`"
            advice = f"{new}, or keep the changes with --accept_changes."
        advice = advice or "or choose another folder."
        raise InputError(
            f"settings of {run.path} have changed since it began: {'; '.join(changes)}. Change them back, {advice}"
        )


def _record_changes(run: RunFolder, plan: Plan, conditions: Mapping[str, Any], epochs: int, step: int) -> None:
    """Record changed settings in ``environment.json``, ``config.yaml`` and the log."""
    if not (changes := find_changes(run, plan, conditions)):
        return
    shown = ", ".join(f"{name} {before} -> {now}" for name, (before, now) in changes.items())
    log.info("%s from step %d (epoch %d) on.", shown, step, epochs + 1)
    about = run.about()
    change = {"after_epoch": epochs, "after_step": step, "settings": changes}
    settings = {"settings": yaml.safe_load(plan.yaml), "resolved": plan.resolved, "conditions": dict(conditions)}
    run.write_json("environment.json", about | settings | {"changes": [*about.get("changes", []), change]})
    config, open_settings = read_yaml(run.config_file, "configuration"), {name for name, _ in flatten(plan.resolved)}
    before, known = dict(flatten(config)), known_settings()
    for name, (_, now) in changes.items():
        if name in known and (before.get(name) is not None or name not in open_settings):  # open settings stay open
            section, _, key = name.rpartition(".")
            (config.setdefault(section, {}) if section else config)[key] = now
    if dict(flatten(config)) != before:
        write_text(run.config_file, yaml_text(config))


def check_data(run: RunFolder, data: DataModule) -> None:
    """Raise if the training or validation images are not those that the run began with."""
    before, now = get_section(run.about(), "data"), describe_data(data)
    if any(now.get(key) != value for key, value in before.items()):
        raise InputError(
            f"the training data has changed since {run.path} began ({before.get('images')} images then, "
            f"{now['images']} now, or other names, sizes or classes); restore it, or start a new run."
        )


def check_finished_data(run: RunFolder, data: DataModule) -> None:
    """The same for a finished run, without decoding images; images that cannot be found are not compared."""
    try:
        now = _fingerprints(data)
    except InputError as error:
        log.warning("%s is finished; whether its training data has changed was not checked: %s", run.path, error)
        return
    before = get_section(run.about(), "data")
    if any(before.get(key, value) != value for key, value in now.items()):
        raise InputError(
            f"the training data has changed since {run.path} was trained (other images, labels or classes); restore "
            "it, or start a new run."
        )


def open_checkpoint(
    plan: Plan, run: RunFolder, training: Training, loaders: Loaders, conditions: Mapping[str, Any]
) -> Path | None:
    """Return the checkpoint to resume from, and set the loaders' start; ``None`` if there is none yet.

    The first rank truncates the run's metrics to the checkpoint and records changed settings.
    """
    check_data(run, loaders.data)
    run.read_metrics()  # raises if the file is damaged
    resumed = run.resumed_checkpoint()
    epochs = step = 0
    if resumed is not None:
        file, content = resumed
        if problem := _find_misfit(content, training):
            raise InputError(f"{file} is not a checkpoint of this run: {problem}.")
        epochs, step = finished_epochs(content), content["global_step"]
        if epochs > plan.epochs:
            raise InputError(
                f"trainer.max_epochs is {plan.epochs}, but {run.path} has already finished {epochs} epochs; set it to "
                f"{epochs} or more."
            )
        batches = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
        loaders.start = epochs, batches if "unfinished" in content else 0
    if is_first():
        run.cut_metrics(epochs)
        _record_changes(run, plan, conditions, epochs, step)
    if resumed is None:
        return None
    if is_first() and file.name != LAST:
        duplicate(file, file.with_name(LAST))
    return file


def _find_misfit(content: dict[str, Any], training: Training) -> str:
    """Return why a checkpoint, whose digest was checked before, does not fit the network or optimiser, else "".

    The optimiser's hyperparameters may differ: the settings replace them.
    """
    averaged = any(name.startswith("average.") for name in content["state_dict"])
    if averaged != (training.average is not None):
        return "optimizer.ema_decay cannot change from or to 0 within a run"
    try:
        training.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        return f"its weights are of another network ({reason(error)})"
    optimizer = training.build_optimizer()
    expected = optimizer.state_dict()["param_groups"]
    try:
        (state,) = content["optimizer_states"]
        groups = state["param_groups"]
        if len(groups) != len(expected):
            return (
                f"its optimizer has {len(groups)} parameter groups, but optimizer.decay_all and layer_decay make "
                f"{len(expected)}"
            )
        if missing := sorted(expected[0].keys() - groups[0].keys() - {"initial_lr"}):
            return f"it has another optimizer, without {missing[0]}"
        optimizer.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        return f"it has another optimizer ({reason(error)})"
    counters = content.get("loops", {}).get("fit_loop", {})
    return "" if "epoch_loop.batch_progress" in counters else "it has no counters of epochs and steps"
