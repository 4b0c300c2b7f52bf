"""A run's folder.

``config.yaml`` every setting as requested · ``checkpoints/`` last, its predecessor, and best on validation ·
``metrics.csv`` a row per epoch · ``split.csv`` each image's split, if drawn · ``environment.json`` versions, hardware,
settings resolved from it, and the data's fingerprint · ``test.json`` the metrics of ``mixmo test``.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout

from mixmo.checkpoints import BEST, LAST, PREVIOUS, describe, digest, finished_epochs, stamp_file
from mixmo.checkpoints import load as load_checkpoint_file
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
"""Columns of ``metrics.csv`` that are finite in every row."""

log = logging.getLogger("mixmo")


class RunFolder:
    """A run's folder; it need not exist yet."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.csv"
        self.checkpoint_folder = self.path / "checkpoints"
        self.how_to_resume, self.option = f"`mixmo fit {self.path}` resumes it", "--run"  # in error messages

    def check_free(self) -> None:
        """Refuse a folder that is not empty, unless an interrupted start left it."""
        if self.config_file.is_file():
            raise InputError(
                f"{self.path} exists already; {self.how_to_resume}, or choose another folder ({self.option})."
            )
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; choose another folder ({self.option}).")
        files = self.path.iterdir() if self.path.exists() else ()
        if others := [file.name for file in files if not _is_startup_file(file)]:
            why = f"contains other files ({min(others)})"
            raise InputError(f"{self.path} {why}; choose another folder ({self.option}).")

    def create(self, config: str, about: Mapping[str, Any]) -> None:
        """Create the folder; ``config.yaml``, which makes it a run's, is written last.

        ``config`` is every setting as YAML; ``about`` is added to ``environment.json``.
        """
        self.check_free()
        make_folder(self.checkpoint_folder)
        self.write_json("environment.json", environment() | dict(about))
        write_text(self.config_file, config)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder against training by other processes; the lock ends with this process."""
        make_folder(self.path)
        lock = FileLock(self.path / LOCK, timeout=0)
        with explain_write_errors(self.path):
            try:
                lock.acquire()
            except Timeout:
                raise InUseError(f"another process is training in {self.path}; wait for it or stop it.") from None
        try:
            yield
        finally:
            lock.release()

    def remove_partial_files(self) -> None:
        """Delete partial files of a killed process (call with the lock), but not those of evaluation in subfolders."""
        for file in [*self.path.glob(f".*{PARTIAL}"), *self.checkpoint_folder.glob(f".*{PARTIAL}")]:
            with suppress(OSError):
                file.unlink()

    def require(self) -> RunFolder:
        """Return ``self`` if the folder holds ``config.yaml`` or a checkpoint; refuse any other."""
        if not self.path.is_dir():
            hint = f"; `mixmo fit {self.path}` trains the recipe of this name" if str(self.path) in catalogue() else ""
            raise MissingError(f"there is no run folder {self.path}{hint}.")
        for folder in (self.checkpoint_folder, self.path / "predictions"):
            if folder.is_symlink():
                raise InputError(f"{folder} is a symbolic link; move its files into the run's folder.")
        if not any(file.is_file() for file in (self.config_file, *map(self.checkpoint_folder.joinpath, (LAST, BEST)))):
            started = any(_is_startup_file(file) for file in self.path.iterdir())
            hint = f" Its start was interrupted; start it again ({self.option} {self.path})." if started else ""
            raise MissingError(f"{self.path} is not a run's folder: it has no config.yaml.{hint}")
        return self

    def config(self) -> dict[str, Any]:
        """Return the settings as requested, without permissions to import or download."""
        if not self.require().config_file.is_file():
            raise MissingError(f"{self.config_file} is missing, which says how {self.path} was trained, and on what.")
        return without_permission(read_yaml(self.config_file, "configuration"))

    def header(self, which: str = "last") -> Header:
        """Return the description of a checkpoint's network."""
        file = self.checkpoint_file(which)
        return Header.from_dict(describe(file)["header"], str(file))

    def trained_config(self, which: str = "last") -> dict[str, Any]:
        """Return the settings; those in the header of a checkpoint, if it exists, take precedence."""
        config = self.config()
        if (self.checkpoint_folder / f"{which}.ckpt").is_file():
            for section, values in self.header(which).sections().items():
                if isinstance(old := config.get(section) or {}, dict):
                    config[section] = old | values
        return config

    def differences(self, which: str = "last") -> list[str]:
        """Describe each difference of ``config.yaml``, if it exists, from :meth:`header`."""
        try:
            config = self.config()
        except InputError:
            return []
        return [
            f"{section}.{key} is {value!r} there, but {values[key]!r} in the network"
            for section, values in self.header(which).sections().items()
            for key, value in get_section(config, section).items()
            if key in values and values[key] != value
        ]

    def settings(self, which: str = "last") -> Settings:
        """Return the typed settings of :meth:`trained_config`, open ones resolved on this machine.

        Unknown training settings are dropped with a warning; unknown settings of ``data`` are refused.
        """
        config, unknown = drop_unknown(self.trained_config(which))
        if unknown:
            warn_once(f"{self.config_file} sets {', '.join(unknown)}, which this version of mixmo does not know.")
        return make_plan(config).settings

    def accelerator(self) -> str:
        """Return ``trainer.accelerator``, which selects the device for predictions too; ``auto`` if unknown."""
        try:
            accelerator = get_section(self.config(), "trainer").get("accelerator")
        except InputError:
            return "auto"
        return accelerator if isinstance(accelerator, str) else "auto"

    def resumed_config(self) -> dict[str, Any]:
        """Return the settings, open ones as resolved where the run began."""
        return fill_open_settings(self.config(), self.resolved())

    def resolved(self) -> dict[str, Any]:
        """Return the settings resolved on the machine where the run began; empty if unknown."""
        return without_permission(dict(get_section(self.about(), "resolved")))

    def about(self) -> dict[str, Any]:
        """Return ``environment.json``; empty if it is missing or damaged."""
        try:
            content = self.read_json("environment.json")
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def has_checkpoint(self) -> bool:
        """Return whether there is a checkpoint to resume from, valid or not."""
        return any((self.checkpoint_folder / name).is_file() for name in (LAST, PREVIOUS))

    def training_images(self) -> int | None:
        """Return the number of training images; ``None`` if ``environment.json`` lacks it."""
        count = get_section(self.about(), "data").get("images")
        return count if isinstance(count, int) else None

    def checkpoint_file(self, which: str = "last") -> Path:
        """Return the path of the ``last`` or ``best`` checkpoint, which must exist."""
        one_of(which, CHECKPOINTS, "checkpoint")
        file = self.require().checkpoint_folder / f"{which}.ckpt"
        if not file.is_file():
            cause = "the run had no validation set" if which == "best" else "no epoch was finished"
            raise MissingError(f"{self.path} has no {which} checkpoint; perhaps {cause}.")
        return file

    def checkpoint_status(self, which: str = "last") -> tuple[int, ...] | None:
        """Return :func:`mixmo.checkpoints.stamp_file` of a checkpoint; ``None`` if it is missing."""
        try:
            return stamp_file(self.checkpoint_folder / f"{which}.ckpt")
        except OSError:
            return None

    def digest(self, which: str = "last") -> str:
        """Return the hexadecimal SHA-256 of a checkpoint's file."""
        file = self.checkpoint_file(which)
        with file.open("rb") as content:
            return digest(content, file.stat().st_size)

    def conditions(self) -> dict[str, Any]:
        """Return the conditions in ``environment.json``: what results depend on besides settings."""
        return dict(get_section(self.about(), "conditions"))

    def resumed_checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the checkpoint to resume from and its content; ``None`` if there has been no checkpoint yet.

        If the last one is damaged or missing, fall back to its predecessor or the best, with a warning; refuse a run
        that has lost all of them.
        """
        files = [self.checkpoint_folder / name for name in (LAST, PREVIOUS, BEST)]
        problems = []
        for file in files:
            if not file.is_file():
                problems.append(f"{file} is missing")
                continue
            try:
                content = load_checkpoint_file(file)
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
                f"{'; '.join(problems)}, though {self.path} has {rows} epochs in metrics.csv: restore a checkpoint, "
                f"or start a new run with `mixmo fit {self.config_file} --run FOLDER`."
            )
        log.warning("%s has no checkpoint yet; training starts from the beginning.", self.path)
        return None

    def finished_epochs(self, which: str = "last") -> int:
        """Return the number of finished epochs in a checkpoint; 0 if it is missing or damaged."""
        try:
            return int(describe(self.checkpoint_folder / f"{which}.ckpt")["epochs"])
        except InputError:
            return 0

    def is_finished(self, epochs: int, patience: int | None) -> bool:
        """Return whether all epochs are finished, or training ended early after ``patience`` without improvement."""
        try:
            found = describe(self.checkpoint_folder / LAST)
        except InputError:
            return False
        return bool(found["epochs"] >= epochs or (patience is not None and found["stale"] >= patience))

    def describe_interruption(self) -> str:
        """Return such as "2 of 4 epochs" if training was interrupted; empty if it has finished or this is unknown."""
        try:
            trainer, found = get_section(self.config(), "trainer"), describe(self.checkpoint_folder / LAST)
        except InputError:
            return ""
        epochs = trainer.get("max_epochs")
        if not isinstance(epochs, int) or self.is_finished(epochs, trainer.get("patience")):
            return ""
        return f"{found['epochs']} of {epochs} epochs"

    def write_json(self, name: str, content: dict[str, Any]) -> Path:
        """Write a JSON file into the folder atomically; NaN, which JSON lacks, becomes null."""
        text = json.dumps(_with_null(content), indent=2, ensure_ascii=False, allow_nan=False)
        return write_text(self.path / name, text + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the folder."""
        content: dict[str, Any] = json.loads((self.path / name).read_text("utf-8"))
        return content

    def write_split(self, rows: Iterable[tuple[str, str, str]]) -> Path:
        """Write ``split.csv``: a row per image with its name, class and split."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("path", "label", "split"), *rows])
        return write_text(self.path / "split.csv", text.getvalue())

    def append_metrics(self, row: dict[str, float]) -> None:
        """Append an epoch's row to ``metrics.csv``, which is replaced atomically."""
        texts = {key: str(int(value)) if float(value).is_integer() else f"{value:.6g}" for key, value in row.items()}
        self._write_metrics([*self._read_rows(), texts])

    def cut_metrics(self, epochs: int) -> None:
        """Remove rows after an epoch from ``metrics.csv``: a stopped run may have written them after its checkpoint."""
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
        """Return the rows of ``metrics.csv`` as text; an incomplete last line is ignored."""
        damaged = f"{self.metrics_file} is damaged"
        try:
            if not self.metrics_file.is_file():
                return []
            lines, end, _ = self.metrics_file.read_text(encoding="utf-8").rpartition("\n")
            rows = list(csv.DictReader(io.StringIO(lines + end)))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{damaged}: {reason(error)}; move it away.") from error
        for number, row in enumerate(rows, 1):
            for key in dict.fromkeys([*COUNTED, *row]):
                if not _is_number(text := row.get(key), finite=key in COUNTED):
                    raise InputError(f"{damaged}: row {number} has {text!r} for {key!r}; move it away.")
        return rows

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the rows of ``metrics.csv``, with NaN for empty cells; none if the file does not exist.

        Raises:
            InputError: if it is damaged.
        """
        return [{key: float(text or "nan") for key, text in row.items()} for row in self._read_rows()]

    def known_metrics(self) -> list[dict[str, float]]:
        """Return :meth:`read_metrics`; none if the file is damaged."""
        try:
            return self.read_metrics()
        except InputError:
            return []


def _is_number(text: Any, finite: bool) -> bool:
    """Return whether a cell of ``metrics.csv`` is a number; unless ``finite``, it may be empty, infinite or NaN."""
    try:
        return math.isfinite(float(text)) or not finite
    except (TypeError, ValueError):
        return text == "" and not finite


def _is_startup_file(path: Path) -> bool:
    """Return whether an interrupted start may have left it."""
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
    """Return a section; empty if it is missing or not a mapping."""
    return section if isinstance(section := about.get(key), Mapping) else {}


def fill_open_settings(config: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in open (null) settings from resolved ones.

    Example:
        >>> fill_open_settings({"trainer": {"precision": None}}, {"trainer": {"precision": "32-true"}})
        {'trainer': {'precision': '32-true'}}
    """
    filled = dict(config)
    for section, values in resolved.items():
        old = get_section(config, section)
        filled[section] = dict(old) | {key: value for key, value in values.items() if old.get(key) is None}
    return filled


def drop_unknown(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Drop unknown settings of training; return the others, and the names of those dropped.

    Unknown settings of ``data`` stay, since they may determine which images are used.

    Example:
        >>> drop_unknown({"seed": 1, "optimizer": {"lr": 0.1, "warp": 9}, "data": {"fold": 2}})
        ({'seed': 1, 'optimizer': {'lr': 0.1}, 'data': {'fold': 2}}, ['optimizer.warp'])
    """
    known, result, unknown = known_settings(), dict[str, Any](), list[str]()
    sections = {name.partition(".")[0] for name in known}
    for section, values in config.items():
        if section not in sections:
            unknown.append(section)
        elif section != "data" and section not in known and isinstance(values, Mapping):
            result[section] = {key: value for key, value in values.items() if f"{section}.{key}" in known}
            unknown += [f"{section}.{key}" for key in values if key not in result[section]]
        else:
            result[section] = values
    return result, unknown
