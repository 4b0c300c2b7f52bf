"""Checks whether a checkpoint fits a run before anything of it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixmo.checkpoints import finished_epochs
from mixmo.errors import InputError
from mixmo.training.optimizers import is_setting
from mixmo.training.step import Training


def check_resumable(file: Path, content: dict[str, Any], training: Training) -> None:
    """Refuse a checkpoint whose tensors, optimiser or counters are not those of this training.

    Torch's fused optimisers check no sizes: a state of another shape would read beyond its memory. Learning rate, decay
    and the like follow from the settings, not from the checkpoint.

    Args:
        file: The checkpoint, for errors.
        content: What it holds (:func:`mixmo.checkpoints.load`).
        training: What is to be resumed.

    Raises:
        InputError: naming what does not fit.
    """
    problem = next(_problems(content, training), None)
    if problem is not None:
        raise InputError(f"{file} is no checkpoint of this run: {problem}.")


def _problems(content: Mapping[str, Any], training: Training) -> Iterator[str]:
    epoch, step = content.get("epoch"), content.get("global_step")
    if not _is_count(epoch) or not _is_count(step):
        yield f"it has epoch {epoch!r} and step {step!r}"
    state, expected = content["state_dict"], training.state_dict()
    if any(name.startswith("average.") for name in expected) != any(str(name).startswith("average.") for name in state):
        yield "optimizer.ema_decay cannot change from or to 0 within a run, which averages its weights from its start"
    for name in sorted(expected.keys() | state.keys(), key=str):
        if name not in state or name not in expected or not _fits(state[name], expected[name]):
            yield f"{name} of another network"
    yield from _optimizer_problems(content.get("optimizer_states"), training)
    loops = content.get("loops")
    sums, done = content.get("unfinished"), finished_epochs(content) - content["epoch"]
    if not isinstance(loops, dict) or "fit_loop" not in loops or not all(_is_plain(leaf) for leaf in _leaves(loops)):
        yield "its counters of epochs and steps are damaged"
    elif done != (1 if sums is None else 0) or (sums is not None and finished_batches(content) is None):
        yield "its counters of epochs and steps contradict one another"
    if sums is not None and not _are_sums(sums, training):
        yield "its sums of the epoch are damaged"


def finished_batches(content: Mapping[str, Any]) -> int | None:
    """Return how many batches of an epoch that is not finished a checkpoint has seen; ``None`` if it does not say."""
    try:
        counts = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        ready, done = counts["ready"], counts["processed"]
    except (TypeError, KeyError):
        return None
    return done if _is_count(done) and ready == done and done >= 1 else None


def _are_sums(sums: Any, training: Training) -> bool:
    wanted = {"loss": torch.zeros(()), "accuracy": torch.zeros(training.net.num_members)}
    if not isinstance(sums, dict) or not all(_is_count(sums.get(key)) for key in ("steps", "skipped")):
        return False
    return all(_fits(sums.get(key), tensor) for key, tensor in wanted.items())


def _optimizer_problems(states: Any, training: Training) -> Iterator[str]:
    fresh = training.build_optimizer()
    if not isinstance(states, list) or len(states) != 1 or not isinstance(states[0], dict):
        yield "it has no state of an optimizer"
        return
    groups, own = states[0].get("param_groups"), fresh.state_dict()["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(own):
        count = len(groups) if isinstance(groups, list) else "no"
        yield f"its optimizer has {count} groups of parameters, and optimizer.decay_all and layer_decay make {len(own)}"
        return
    for group, wanted in zip(groups, own, strict=True):
        if not isinstance(group, dict) or group.get("params") != wanted["params"]:
            yield "its optimizer has other parameters"
            return
        if missing := sorted(wanted.keys() - group.keys() - {"initial_lr"}):
            yield f"its optimizer, of another kind, has no {missing[0]}"
        if counts := [key for key in wanted if not is_setting(key) and key != "params" and not _is_count(group[key])]:
            yield f"its optimizer has {counts[0]} {group[counts[0]]!r}"
    parameters = [parameter for group in fresh.param_groups for parameter in group["params"]]
    kept = states[0].get("state")
    if not isinstance(kept, dict):
        yield "its optimizer has no state"
        return
    for index, entry in kept.items():
        if not isinstance(index, int) or not 0 <= index < len(parameters) or not isinstance(entry, dict):
            yield "its optimizer has a state of no parameter"
            return
        for key, value in entry.items():
            scalar = isinstance(value, int | float) or (isinstance(value, Tensor) and value.shape == ())
            if value is not None and not scalar and not _fits(value, parameters[index]):
                yield f"its optimizer has {key} of another shape than its parameter"


def _fits(tensor: Any, wanted: Tensor) -> bool:
    """Return whether something is a plain tensor in memory, of the wanted shape and type."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    return bool(tensor.shape == wanted.shape and tensor.dtype == wanted.dtype)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | str) or _is_count(value)


def _leaves(content: Any) -> Iterator[Any]:
    if isinstance(content, Mapping | list):
        for each in content.values() if isinstance(content, Mapping) else content:
            yield from _leaves(each)
    else:
        yield content
