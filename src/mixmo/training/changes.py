"""Detection and recording of changed settings when a run is resumed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import yaml

from mixmo.config.imports import PERMISSIONS
from mixmo.config.plan import Plan, flatten
from mixmo.config.settings import known_settings, neutral_settings
from mixmo.errors import InputError
from mixmo.files import read_yaml, write_text, yaml_text
from mixmo.run_settings import fill_open_settings, get_section
from mixmo.runs import RunFolder

MAY_CHANGE = neutral_settings() | {"data.name", "trainer.max_epochs", "trainer.patience"}
"""Settings that may change between stop and resume: what was trained stays trained. The data's content is compared."""

log = logging.getLogger("mixmo")


def find_changes(run: RunFolder, plan: Plan, conditions: Mapping[str, Any] | None = None) -> dict[str, tuple[Any, Any]]:
    """Return the settings of a plan that differ from those the run was trained with: what they were, and are.

    Args:
        run: The run.
        plan: What the run is to be resumed with.
        conditions: What else results depend on; changes of these count too.
    """
    about = run.about()
    began, resolved = (dict(get_section(about, key)) for key in ("settings", "resolved"))
    first = dict(flatten(fill_open_settings(began, resolved))) | run.conditions()
    now = dict(flatten(fill_open_settings(yaml.safe_load(plan.yaml), plan.resolved))) | dict(conditions or {})
    return {
        name: (first[name], value) for name, value in now.items()
        if name in first and name not in PERMISSIONS and first[name] != value
    }  # fmt: skip


def check_unchanged(run: RunFolder, plan: Plan, conditions: Mapping[str, Any] | None = None) -> None:
    """Refuse to resume with other settings than the run began with; those that change no result may differ.

    Args:
        run: The run.
        plan: What the run is to be resumed with.
        conditions: What else results depend on.

    Raises:
        InputError: naming every setting that differs.
    """
    changes = {name: both for name, both in find_changes(run, plan, conditions).items() if name not in MAY_CHANGE}
    if not changes:
        return
    shown = "; ".join(f"{name} is {now!r}, and was {before!r}" for name, (before, now) in changes.items())
    raise InputError(
        f"settings of {run.path} have changed since it began: {shown}. Change them back, start a new run with "
        f"`mixmo fit {run.config_file} --run FOLDER`, or resume it with them by --accept_changes."
    )


def record_changes(run: RunFolder, plan: Plan, conditions: Mapping[str, Any], epochs: int, step: int) -> None:
    """Note in ``environment.json``, ``config.yaml`` and the log with which settings the run is resumed from here.

    Args:
        run: The run.
        plan: What it is resumed with.
        conditions: What else results depend on.
        epochs: Epochs finished so far.
        step: Steps done so far.
    """
    if not (changes := find_changes(run, plan, conditions)):
        return
    shown = ", ".join(f"{name} {before} -> {now}" for name, (before, now) in changes.items())
    log.info("%s from step %d (epoch %d) on.", shown, step, epochs + 1)
    about = run.about()
    done = {"after_epoch": epochs, "after_step": step, "settings": changes}
    settings = {"settings": yaml.safe_load(plan.yaml), "resolved": plan.resolved, "conditions": dict(conditions)}
    run.write_json("environment.json", about | settings | {"changes": [*about.get("changes", []), done]})
    _set(run, {name: now for name, (_, now) in changes.items()}, plan.resolved)


def _set(run: RunFolder, values: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
    """Write settings into ``config.yaml`` where it has others; what it leaves open, and is resolved, stays open."""
    config, known = read_yaml(run.config_file, "configuration"), known_settings()
    own, free = dict(flatten(config)), {name for name, _ in flatten(resolved)}
    wrong = {name: now for name, now in values.items() if name in known and own.get(name) != now}
    wrong = {name: now for name, now in wrong.items() if own.get(name) is not None or name not in free}
    for name, now in wrong.items():
        section, _, key = name.rpartition(".")
        (config.setdefault(section, {}) if section else config)[key] = now
    if wrong:
        write_text(run.config_file, yaml_text(config))
