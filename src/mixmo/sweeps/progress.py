"""How far the trials of a sweep are: a file of them, and a table that is kept up to date on the terminal."""

from __future__ import annotations

import csv
import io
import logging
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.live import Live
from rich.table import Table

from mixmo.errors import InputError
from mixmo.files import write_text
from mixmo.names import csv_cell, printable
from mixmo.runs import RunFolder
from mixmo.sweeps.grid import Sweep, Trial
from mixmo.sweeps.halving import Halving
from mixmo.sweeps.trial import Row

FILE = "trials.csv"
SCORE = "val_accuracy"
"""What trials are ranked by, where there are validation images: the test set never chooses."""
MOST_SHOWN = 20
"""Trials in the table."""
BETWEEN = 10.0
"""Seconds from one line of the log, and one writing of ``trials.csv``, to the next, unless a trial begins or ends."""

Status = Literal["waiting", "training", "stopped", "finished", "stopped early", "left out", "failed"]
ENDED = ("finished", "stopped early", "left out", "failed")
MARK = "stopped.json"
"""In the folder of a trial that was stopped early: after which epoch."""
OWN = ("trial", "seed", "status", "epochs", SCORE, "train_loss", "seconds", "why")
"""Columns of ``trials.csv`` beside those of the axes."""

log = logging.getLogger("mixmo.sweeps")
log.setLevel(logging.INFO)


@dataclass
class State:
    """How far a trial is.

    Attributes:
        trial: The trial.
        status: What becomes of it.
        rows: Its epochs, by their number.
        why: What it failed of.
    """

    trial: Trial
    status: Status = "waiting"
    rows: dict[int, Row] = field(default_factory=dict)
    why: str = ""

    @property
    def last(self) -> Row:
        """Its last epoch; empty before the first."""
        return self.rows[max(self.rows)] if self.rows else {}

    @property
    def score(self) -> float:
        """Its accuracy on validation data after that; NaN where there is none."""
        return self.last.get(SCORE, math.nan)

    @property
    def seconds(self) -> float:
        """How long its epochs took."""
        return sum(row["seconds"] for row in self.rows.values())


class Progress:
    """The states of a sweep's trials, and which of them go on.

    Args:
        sweep: The sweep.
        folder: Its folder.

    Attributes:
        states: By the trials' keys.
        raced: The keys of those that may be stopped early.
    """

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.sweep, self.folder = sweep, folder
        self.states = {trial.key: State(trial) for trial in sweep.trials}
        self._halving = Halving(sweep.asha, sweep.trials[0].epochs) if sweep.asha else None
        self.raced = {trial.key for trial in sweep.race}
        self._live: Live | None = None
        self._told = self._written = -math.inf

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep ``trials.csv`` and a table on the terminal up to date; where there is no terminal, log lines."""
        of_runs = logging.getLogger("mixmo")
        level = of_runs.level
        of_runs.setLevel(logging.WARNING)  # lines of every run's epochs would hide those of the sweep
        self.write()
        try:
            if not sys.stdout.isatty():
                yield
                return
            streams = {id(sys.stdout): "stdout", id(sys.stderr): "stderr"}
            handlers = [each for each in of_runs.handlers if isinstance(each, logging.StreamHandler)]
            with Live(self.table(), refresh_per_second=2) as self._live:  # it takes the place of both streams
                before = [(each, each.stream) for each in handlers if id(each.stream) in streams]
                for handler, stream in before:
                    handler.setStream(getattr(sys, streams[id(stream)]))
                try:
                    yield
                finally:
                    for handler, stream in before:
                        handler.setStream(stream)
        finally:
            self._live = None
            of_runs.setLevel(level)
            for state in self.states.values():
                state.status = "stopped" if state.status == "training" else state.status
            self.write()

    def note(self, key: str, status: Status, rows: Sequence[Row] = (), why: str = "") -> None:
        """Note what an earlier call has made of a trial; its epochs count in the race."""
        state = self.states[key]
        state.status, state.why = status, why
        for row in rows:
            state.rows[int(row["epoch"])] = row
            self._goes_on(key, row)

    def epoch(self, key: str, row: Row) -> bool:
        """Note an epoch of a trial, and return whether it goes on; otherwise it has been stopped early."""
        self.states[key].rows[int(row["epoch"])] = row
        self.set(key, "training")
        if self._goes_on(key, row):
            return True
        RunFolder(self.folder / key).write_json(MARK, {"epoch": int(row["epoch"])})
        self.set(key, "stopped early")
        return False

    def _goes_on(self, key: str, row: Row) -> bool:
        if self._halving is None or key not in self.raced:
            return True
        return self._halving.goes_on(key, int(row["epoch"]), row[SCORE])

    def set(self, key: str, status: Status, why: str = "") -> None:
        """Note what becomes of a trial; what has ended stays so."""
        state = self.states[key]
        if state.status in ENDED:
            return
        changed = state.status != status
        state.status, state.why = status, why
        if self._live is not None:
            self._live.update(self.table())
        else:
            self._log(state, changed)
        if changed or time.monotonic() - self._written > BETWEEN:
            self.write()

    def _log(self, state: State, changed: bool) -> None:
        """Log a line when a trial ends, and one from time to time as they go on."""
        if changed and state.status in ENDED:
            log.info("%s: %s%s", state.trial.key, state.status, f": {state.why}" if state.why else "")
        elif state.rows and time.monotonic() - self._told > BETWEEN:
            self._told = time.monotonic()
            log.info("%s: epoch %d/%d%s (%s)", state.trial.key, max(state.rows), state.trial.epochs,
                     f", val {shown}" if (shown := _percent(state.score)) else "", self.counts())  # fmt: skip

    def counts(self) -> str:
        """Return how many trials there are of each status."""
        found = Counter(state.status for state in self.states.values())
        return ", ".join(f"{count} {status}" for status, count in found.items())

    def table(self) -> Table:
        """Return the trials at work and those that end best, by their accuracy on validation data."""
        table = Table(caption=self.counts())
        for name in ("trial", "status", "epoch", "loss", "val, %", "min"):
            table.add_column(name, justify="left" if name in ("trial", "status") else "right")
        order = {"training": 0, "failed": 1}
        states = sorted(self.states.values(), key=lambda each: (order.get(each.status, 2), -_or_least(each.score)))
        for state in states[:MOST_SHOWN]:
            shown = [f"{state.last['train_loss']:.3g}", _percent(state.score)] if state.rows else ["", ""]
            epochs = f"{max(state.rows, default=0)}/{state.trial.epochs}"
            table.add_row(printable(state.trial.key), state.status, epochs, *shown, f"{state.seconds / 60:.1f}")
        return table

    def write(self) -> None:
        """Write ``trials.csv``, a row for each trial."""
        self._written = time.monotonic()
        axes = list(dict.fromkeys(axis for trial in self.sweep.trials for axis in trial.choices))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        first, *rest = OWN
        writer.writerow([first, *axes, *rest])
        for key, state in self.states.items():
            last, own = state.last, state.trial
            numbers = [state.score, last.get("train_loss", math.nan), state.seconds]
            cells = [key, *(own.choices.get(axis, "") for axis in axes), str(own.seed), state.status]
            shown = ["" if math.isnan(number) else f"{number:.6g}" for number in numbers]
            writer.writerow([csv_cell(cell) for cell in [*cells, str(max(state.rows, default=0)), *shown, state.why]])
        write_text(self.folder / FILE, text.getvalue())

    def finished(self) -> list[str]:
        """Return the configurations of which every seed is finished, in the order of the file."""
        open_ = {state.trial.name for state in self.states.values() if state.status != "finished"}
        return [name for name in self.sweep.names if name not in open_]

    def score(self, name: str) -> float:
        """Return a configuration's accuracy on validation data, mean over its seeds; NaN where there is none."""
        return statistics.fmean(state.score for state in self.states.values() if state.trial.name == name)

    def best(self, names: Sequence[str]) -> list[str]:
        """Return configurations from the best on validation data to the worst; as they stand where there is none."""
        return sorted(names, key=lambda name: -_or_least(self.score(name)))


def check_folder(folder: Path) -> None:
    """Refuse a folder that is something else than a sweep's: a run's, or one with another ``trials.csv``.

    Raises:
        InputError: for such a folder.
    """
    if RunFolder(folder).config_file.is_file():
        raise InputError(f"{folder} is a run's folder; choose another one for the sweep with --out.")
    file = folder / FILE
    if file.is_file():
        with file.open("rb") as content:
            columns = content.readline(2**16).decode("utf-8", "replace").strip().split(",")
        if columns[0] != OWN[0] or columns[1 - len(OWN) :] != list(OWN[1:]):
            raise InputError(f"{file} is no table of a sweep's trials; choose another folder with --out.")


def stopped_epoch(run: RunFolder) -> int | None:
    """Return the epoch after which a trial was stopped early; ``None`` if it was not."""
    try:
        epoch = run.read_json(MARK)["epoch"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return epoch if isinstance(epoch, int) else None


def _or_least(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _percent(score: float) -> str:
    return "" if math.isnan(score) else f"{100 * score:.1f}"
