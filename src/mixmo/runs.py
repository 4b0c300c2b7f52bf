"""A run's folder.

``config.yaml`` every setting as requested · ``checkpoints/`` last, the one before it, and best on validation ·
``metrics.csv`` a row per epoch · ``split.csv`` what each image was drawn for, if any are drawn ·
``environment.json`` versions, hardware, settings that followed from it, and the data's fingerprint · ``test.json`` the
metrics of ``mixmo test``.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout

from mixmo.checkpoints import BEST, LAST, PREVIOUS, describe, digest, finished_epochs
from mixmo.checkpoints import load as read_sealed
from mixmo.config.plan import make_plan
from mixmo.config.recipes import catalogue, without_permission
from mixmo.config.settings import Settings, known_settings
from mixmo.data.messages import warn_once
from mixmo.environment import environment
from mixmo.errors import InputError, InUseError, MissingError, one_of, reason
from mixmo.files import PARTIAL, explain_write_errors, make_folder, read_yaml, write_text
from mixmo.header import Header

Checkpoint = Literal["last", "best"]
CHECKPOINTS: tuple[str, ...] = get_args(Checkpoint)
LOCK = ".lock"
COUNTED = ("epoch", "step", "seconds")
"""Columns of ``metrics.csv`` that have a finite number in every row."""

log = logging.getLogger("mixmo")


class RunFolder:
    """A run's folder, which may not exist yet."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.csv"
        self.checkpoint_folder = self.path / "checkpoints"

    def check_free(self) -> None:
        """Refuse a folder that is in use; one left by an interrupted start may be used again."""
        if self.config_file.is_file():
            raise InputError(
                f"{self.path} exists already; resume it by `mixmo fit {self.path}`, or choose another with --run."
            )
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; choose another folder with --run.")
        others = [each.name for each in self.path.iterdir() if not _left_by_a_start(each)] if self.path.exists() else []
        if others:
            raise InputError(f"{self.path} holds other things ({min(others)}); choose another folder with --run.")

    def create(self, config: str, about: Mapping[str, Any]) -> None:
        """Make the folder; it is a run's once its configuration, which comes last, is there.

        ``config`` is every setting as YAML, and ``about`` is added to the environment in ``environment.json``.
        """
        self.check_free()
        make_folder(self.checkpoint_folder)
        self.write_json("environment.json", environment() | dict(about))
        write_text(self.config_file, config)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the lock ends with the process that holds it."""
        make_folder(self.path)
        lock = FileLock(self.path / LOCK, timeout=0)
        with explain_write_errors(self.path):
            try:
                lock.acquire()
            except Timeout:
                raise InUseError(f"another process is training in {self.path}; wait for it, or stop it.") from None
        try:
            yield
        finally:
            lock.release()

    def remove_partial_files(self) -> None:
        """Delete a killed process's partial files, while the folder is locked; evaluation may be writing in its own."""
        for file in [*self.path.glob(f".*{PARTIAL}"), *self.checkpoint_folder.glob(f".*{PARTIAL}")]:
            with suppress(OSError):
                file.unlink()

    def require(self) -> RunFolder:
        """Return itself if the folder holds a run: ``config.yaml`` or a checkpoint; refuse any other."""
        if not self.path.is_dir():
            hint = f"; `mixmo fit {self.path}` trains the recipe of this name" if str(self.path) in catalogue() else ""
            raise MissingError(f"there is no run folder {self.path}{hint}.")
        for folder in (self.checkpoint_folder, self.path / "predictions"):
            if folder.is_symlink():
                raise InputError(f"{folder} is a link; a run's folder holds its files itself; put them there.")
        if not any(file.is_file() for file in (self.config_file, *map(self.checkpoint_folder.joinpath, (LAST, BEST)))):
            started = any(_left_by_a_start(each) for each in self.path.iterdir())
            hint = f" Its start was interrupted; start it again with --run {self.path}." if started else ""
            raise MissingError(f"{self.path} is not a run's folder: it has no config.yaml.{hint}")
        return self

    def config(self) -> dict[str, Any]:
        """Return the run's settings as they were asked for, without imports and downloads that its author allowed."""
        if not self.require().config_file.is_file():
            raise MissingError(f"{self.config_file} is missing, which says how {self.path} was trained, and on what.")
        return without_permission(read_yaml(self.config_file, "configuration"))

    def header(self, which: str = "last") -> Header:
        """Return the description of a checkpoint's network."""
        file = self.checkpoint_file(which)
        return Header.from_dict(describe(file)["header"], str(file))

    def trained_config(self, which: str = "last") -> dict[str, Any]:
        """Return the run's settings with those of a checkpoint's network, if it is there, which its header decides."""
        config = self.config()
        if (self.checkpoint_folder / f"{which}.ckpt").is_file():
            for section, known in self.header(which).sections().items():
                if isinstance(own := config.get(section) or {}, dict):
                    config[section] = own | known
        return config

    def differences(self, which: str = "last") -> list[str]:
        """Return, in a few words each, where ``config.yaml`` differs from :meth:`header`; none if it is missing."""
        try:
            config = self.config()
        except InputError:
            return []
        return [
            f"{section}.{key} is {value!r} there, and {known[key]!r} in the network"
            for section, known in self.header(which).sections().items()
            for key, value in get_section(config, section).items()
            if key in known and known[key] != value
        ]

    def settings(self, which: str = "last") -> Settings:
        """Return the typed settings of :meth:`trained_config`; what they leave open follows from this machine.

        Training settings that this version does not know are left out, with a warning; unknown settings of ``data`` are
        refused.
        """
        config, unknown = drop_unknown(self.trained_config(which))
        if unknown:
            warn_once(f"{self.config_file} sets {', '.join(unknown)}, which this version of mixmo does not know.")
        return make_plan(config).settings

    def accelerator(self) -> str:
        """Return ``trainer.accelerator``, by which predictions choose their device too; ``auto`` if it is not known."""
        try:
            found = get_section(self.config(), "trainer").get("accelerator")
        except InputError:
            return "auto"
        return found if isinstance(found, str) else "auto"

    def resumed_config(self) -> dict[str, Any]:
        """Return the settings, open ones as they followed from the machine where the run began."""
        return fill_open_settings(self.config(), self.resolved())

    def resolved(self) -> dict[str, Any]:
        """Return the settings that followed from the machine where the run began; nothing if that is not known."""
        return without_permission(dict(get_section(self.about(), "resolved")))

    def about(self) -> dict[str, Any]:
        """Return ``environment.json``; nothing if it is missing or damaged."""
        try:
            content = self.read_json("environment.json")
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def has_checkpoint(self) -> bool:
        """Return whether there is a checkpoint to resume from, whole or not."""
        return any((self.checkpoint_folder / name).is_file() for name in (LAST, PREVIOUS))

    def training_images(self) -> int | None:
        """Return how many images the run was trained on; ``None`` if ``environment.json`` does not have it."""
        count = get_section(self.about(), "data").get("images")
        return count if isinstance(count, int) else None

    def checkpoint_file(self, which: str = "last") -> Path:
        """Return the file of a checkpoint, ``last`` or ``best``; refuse one that is not there."""
        one_of(which, CHECKPOINTS, "checkpoint")
        file = self.require().checkpoint_folder / f"{which}.ckpt"
        if not file.is_file():
            reason = "the run had no validation set" if which == "best" else "no epoch was finished"
            raise MissingError(f"{self.path} has no {which} checkpoint ({reason}, perhaps).")
        return file

    def digest(self, which: str = "last") -> str:
        """Return the SHA-256 of a checkpoint's file, in hexadecimal."""
        file = self.checkpoint_file(which)
        with file.open("rb") as content:
            return digest(content, file.stat().st_size)

    def conditions(self) -> dict[str, Any]:
        """Return what else the run's results depend on, apart from its settings, as ``environment.json`` has it."""
        return dict(get_section(self.about(), "conditions"))

    def resumed_checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the checkpoint to resume from and its content, ``None`` for a run that has finished no epoch.

        If the last checkpoint is damaged or missing, the one before it or the best is taken, with a warning; a run that
        has lost all of them is refused.
        """
        files = [self.checkpoint_folder / name for name in (LAST, PREVIOUS, BEST)]
        problems = []
        for file in files:
            if not file.is_file():
                problems.append(f"{file} is missing")
                continue
            try:
                content = read_sealed(file)
            except InputError as error:
                problems.append(str(error).rstrip("."))
                continue
            if problems:
                epochs = finished_epochs(content)
                log.warning("%s; resuming from %s, after epoch %d.", problems[0], file.name, epochs)
            return file, content
        rows = len(self.read_metrics())
        if any(file.is_file() for file in files) or rows > 1 or self.about().get("checkpointed"):
            raise InputError(
                f"{'; '.join(problems)}, though {self.path} has {rows} epochs in metrics.csv: bring a checkpoint back, "
                f"or start a new run with `mixmo fit {self.config_file} --run FOLDER`."
            )
        log.warning("%s has no checkpoint yet; it starts from the beginning.", self.path)
        return None

    def finished_epochs(self, which: str = "last") -> int:
        """Return how many epochs a checkpoint's training had finished; 0 where there is none, or it is damaged."""
        try:
            return int(describe(self.checkpoint_folder / f"{which}.ckpt")["epochs"])
        except InputError:
            return 0

    def write_json(self, name: str, content: dict[str, Any]) -> Path:
        """Write a JSON file into the folder, whole or not at all; NaN, which JSON does not know, becomes null."""
        text = json.dumps(_with_null(content), indent=2, ensure_ascii=False, allow_nan=False)
        return write_text(self.path / name, text + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the folder."""
        content: dict[str, Any] = json.loads((self.path / name).read_text("utf-8"))
        return content

    def write_split(self, rows: Iterable[tuple[str, str, str]]) -> Path:
        """Write ``split.csv``: an image's name, its class and what it was drawn for, a row for each."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("path", "label", "split"), *rows])
        return write_text(self.path / "split.csv", text.getvalue())

    def append_metrics(self, row: dict[str, float]) -> None:
        """Add an epoch's row to the end of ``metrics.csv``, however long that is."""
        texts = {key: str(int(value)) if float(value).is_integer() else f"{value:.6g}" for key, value in row.items()}
        with explain_write_errors(self.metrics_file):
            try:
                with self.metrics_file.open(encoding="utf-8") as file:
                    columns = file.readline().rstrip("\n").split(",")
            except FileNotFoundError:
                columns = []
            if columns != list(texts):  # the first row, or a run resumed with other metrics
                self._write_metrics([*self._read_rows(), texts])
                return
            with self.metrics_file.open("a", encoding="utf-8", newline="") as file:
                file.write(",".join(texts.values()) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def cut_metrics(self, epochs: int) -> None:
        """Remove the rows of later epochs from ``metrics.csv``, which a stopped run has left behind its checkpoint."""
        if self.metrics_file.is_file():
            self._write_metrics([row for row in self._read_rows() if float(row["epoch"]) <= epochs])

    def _write_metrics(self, rows: list[dict[str, str]]) -> None:
        if not rows:
            self.metrics_file.unlink()
            return
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines = [columns, *([row.get(column, "") for column in columns] for row in rows)]
        write_text(self.metrics_file, "".join(",".join(line) + "\n" for line in lines))

    def _read_rows(self) -> list[dict[str, str]]:
        """Return the rows of ``metrics.csv`` as they are written; a half-written one is ignored."""
        damaged = f"{self.metrics_file} is damaged"
        try:
            if not self.metrics_file.is_file():
                return []
            whole, end, _ = self.metrics_file.read_text(encoding="utf-8").rpartition("\n")
            rows = list(csv.DictReader(io.StringIO(whole + end)))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{damaged}: {reason(error)}; move it away.") from error
        for number, row in enumerate(rows, 1):
            for key in dict.fromkeys([*COUNTED, *row]):
                if not _is_number(text := row.get(key), finite=key in COUNTED):
                    raise InputError(f"{damaged}: row {number} has {text!r} for {key!r}; move it away.")
        return rows

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the rows of ``metrics.csv``, NaN where a cell is empty; none if there is no such file yet.

        Raises:
            InputError: if it is damaged, naming the row and the column.
        """
        return [{key: float(text or "nan") for key, text in row.items()} for row in self._read_rows()]

    def known_metrics(self) -> list[dict[str, float]]:
        """Return :meth:`read_metrics`; none if the file is damaged, which the report says."""
        try:
            return self.read_metrics()
        except InputError:
            return []


def _is_number(text: Any, finite: bool) -> bool:
    """Return whether a cell of ``metrics.csv`` is a number, or, unless that has to be ``finite``, empty."""
    try:
        return math.isfinite(float(text)) or not finite
    except (TypeError, ValueError):
        return text == "" and not finite


def _left_by_a_start(path: Path) -> bool:
    """Return whether a file or folder is one that a run's start makes before its configuration."""
    if path.name == "checkpoints" and path.is_dir():
        return not any(path.iterdir())
    return path.name in ("environment.json", "split.csv", LOCK) or path.name.endswith(PARTIAL)


def _with_null(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _with_null(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_with_null(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def get_section(about: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a section of a file, empty where it is missing or of another kind."""
    return found if isinstance(found := about.get(key), Mapping) else {}


def fill_open_settings(config: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return sections of settings, those left open as they are resolved elsewhere.

    Example:
        >>> fill_open_settings({"trainer": {"precision": None}}, {"trainer": {"precision": "32-true"}})
        {'trainer': {'precision': '32-true'}}
    """
    found = dict(config)
    for section, values in resolved.items():
        own = get_section(found, section)
        found[section] = dict(own) | {key: value for key, value in values.items() if own.get(key) is None}
    return found


def drop_unknown(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return settings without those of training that this version does not know, and the names of these.

    Settings of ``data`` stay: images that are taken or drawn otherwise are other images.

    Example:
        >>> drop_unknown({"seed": 1, "optimizer": {"lr": 0.1, "warp": 9}, "data": {"fold": 2}})
        ({'seed': 1, 'optimizer': {'lr': 0.1}, 'data': {'fold': 2}}, ['optimizer.warp'])
    """
    known, kept, unknown = known_settings(), dict[str, Any](), list[str]()
    sections = {name.partition(".")[0] for name in known}
    for section, values in config.items():
        if section not in sections:
            unknown.append(section)
        elif section != "data" and section not in known and isinstance(values, Mapping):
            kept[section] = {key: value for key, value in values.items() if f"{section}.{key}" in known}
            unknown += [f"{section}.{key}" for key in values if key not in kept[section]]
        else:
            kept[section] = values
    return kept, unknown
