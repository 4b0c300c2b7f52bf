"""Can a run be resumed from a checkpoint? Everything is checked before anything of it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixmo.checkpoints import finished_epochs
from mixmo.errors import InputError
from mixmo.training.step import Training


def check_resumable(file: Path, content: dict[str, Any], training: Training) -> None:
    """Refuse a checkpoint whose tensors, optimiser or counters are not those of this training.

    Torch's fused optimisers check no sizes: a state of another shape would read beyond its memory. The learning rate's
    schedule follows from the settings, so that of the checkpoint is dropped.

    Args:
        file: The checkpoint, for errors.
        content: What it holds (:func:`mixmo.checkpoints.load`); its ``lr_schedulers`` are changed in place.
        training: What is to be resumed.

    Raises:
        InputError: naming what does not fit.
    """
    problem = next(_problems(content, training), None)
    if problem is not None:
        raise InputError(f"{file} is no checkpoint of this run: {problem}.")
    content["lr_schedulers"][0]["lr_lambdas"] = [None]


def _problems(content: Mapping[str, Any], training: Training) -> Iterator[str]:
    epoch, step = content.get("epoch"), content.get("global_step")
    if not _is_count(epoch) or not _is_count(step):
        yield f"it has epoch {epoch!r} and step {step!r}"
    state, expected = content["state_dict"], training.state_dict()
    for name in sorted(expected.keys() | state.keys(), key=str):
        if name not in state or name not in expected or not _fits(state[name], expected[name]):
            yield f"{name} of another network"
    yield from _optimizer_problems(content.get("optimizer_states"), training)
    schedulers = content.get("lr_schedulers")
    if not isinstance(schedulers, list) or len(schedulers) != 1 or not isinstance(schedulers[0], dict):
        yield "it has no learning-rate schedule"
    elif not _is_count(schedulers[0].get("last_epoch")) or "lr_lambdas" not in schedulers[0]:
        yield "its learning-rate schedule has no step"
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
        yield f"its optimizer has {len(groups) if isinstance(groups, list) else 'no'} groups of parameters"
        return
    for group, wanted in zip(groups, own, strict=True):
        if not isinstance(group, dict) or group.get("params") != wanted["params"]:
            yield "its optimizer has other parameters"
            return
        for key, value in wanted.items():
            if key not in ("params", "initial_lr") and not _alike(group.get(key), value):
                yield f"its optimizer has {key} {group.get(key)!r}"
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


def _alike(value: Any, wanted: Any) -> bool:
    """Return whether a setting of an optimiser is of the kind that it was built with."""
    if isinstance(wanted, bool) or wanted is None:
        return bool(value == wanted)
    if isinstance(wanted, int | float):
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) < 1e30
    return type(value) is type(wanted) or (isinstance(value, list | tuple) and isinstance(wanted, list | tuple))


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
