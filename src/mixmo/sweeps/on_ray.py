"""The trials of a sweep on Ray Tune: at the same time, on this machine or on a cluster's."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from mixmo.errors import InputError, StoppedError, reason
from mixmo.files import check_place, writing
from mixmo.sweeps.grid import Trial
from mixmo.sweeps.progress import FILE, Progress
from mixmo.sweeps.trial import Row, train_trial
from mixmo.sweeps.turns import failure
from mixmo.training.stopping import SIGNALS

RETRIES = 10
"""How often a trial is taken up again after the process or the machine that trained it was lost."""
WAIT = 120.0
"""Seconds that a trial waits for a lost process to leave its folder."""
KEPT = ".ray"
"""Where Ray keeps what it needs while it runs, in the sweep's folder."""
OURS = "made-by-mixmo"
"""A file in it, without which it is not removed."""
STORE = 128 * 2**20
"""Bytes of memory that processes share; nothing large goes that way."""
ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent unasked
    "RAY_AIR_NEW_OUTPUT": "0",  # the table is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}

log = logging.getLogger("mixmo.sweeps")


@dataclass(frozen=True)
class Resources:
    """What a trial takes of a machine.

    Attributes:
        cpus: Cores; ``None`` for one, or with GPUs for its share of all.
        gpus: GPUs, a part of one included; ``None`` for one where there are any.

    Raises:
        InputError: for no cores, or a number of GPUs that cannot be taken.
    """

    cpus: int | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise InputError(f"--cpus is {self.cpus}; it is 1 or more.")
        if self.gpus is not None and not (0 <= self.gpus < 1 or self.gpus in range(1, 1024)):
            raise InputError(f"--gpus is {self.gpus:g}; it is a part of one, or a whole number.")


def installed() -> bool:
    """Return whether Ray Tune is installed."""
    return find_spec("ray") is not None and find_spec("ray.tune") is not None


def run_on_ray(
    trials: Sequence[Trial], folder: Path, progress: Progress, resources: Resources, address: str | None = None
) -> None:
    """Train trials at the same time, as many as there is room for.

    A trial whose process or machine is lost is taken up again elsewhere, from its last checkpoint.

    Args:
        trials: What to train.
        folder: The sweep's, which all machines see under the same path.
        progress: Takes what becomes of them, and says which go on.
        resources: What each takes.
        address: Of a cluster; ``None`` for this machine alone.

    Raises:
        InputError: if the cluster is not there, or has no room for a trial.
        StoppedError: if a signal asked to stop.
    """
    with _handlers_kept(), _connected(address):
        from ray import tune

        cpus, gpus = _share(resources)
        storage = folder / KEPT
        _check_own(storage)
        tuner = tune.Tuner(
            tune.with_resources(_train, {"cpu": cpus, "gpu": gpus}),
            param_space={"work": tune.grid_search([_work(trial, folder, cpus) for trial in trials])},
            tune_config=tune.TuneConfig(scheduler=_scheduler(progress), reuse_actors=True),
            run_config=tune.RunConfig(
                name="sweep", storage_path=str(storage.resolve()), verbose=0, callbacks=[_told(progress)],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        )  # fmt: skip
        _check_own(storage)  # without what Tune wrote there
        received = _stop_at_sigterm()
        try:
            with _quiet():
                tuner.fit()
        finally:
            shutil.rmtree(storage, ignore_errors=True)
    if any(progress.states[trial.key].status in ("waiting", "training") for trial in trials):
        raise StoppedError("stopped.", 128 + (received[0] if received else signal.SIGINT))


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Tune says of files that it was told not to write."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_own(storage: Path) -> None:
    """Make the folder that Ray may use, and remove one of a sweep that was killed; refuse anything else of its name."""
    ours = storage.is_dir() and ((storage / OURS).is_file() or not any(storage.iterdir()))
    check_place(storage, ours, folder=True)
    with writing(storage):
        if storage.exists():
            shutil.rmtree(storage)
        storage.mkdir()
        (storage / OURS).touch()


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Leave signals' handlers as they were, which neither Ray nor Tune does."""
    alone = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
    before = {number: signal.getsignal(number) for number in SIGNALS} if alone else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_at_sigterm() -> list[int]:
    """Have SIGTERM stop the sweep as SIGINT does, which Tune listens to; return the list of those that come."""
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.raise_signal(signal.SIGINT)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
    return received


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Be connected to a cluster, or to a new one of this machine alone; one that the process has already is taken."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    dashboard, memory = (None, None) if address else (False, STORE)
    try:
        _check_answers(address)
        ray.init(
            address or "local", include_dashboard=dashboard, object_store_memory=memory, log_to_driver=False,
            logging_level=logging.ERROR,
        )  # fmt: skip
    except Exception as error:  # of many kinds
        where = f"at {address}" if address else "here"
        raise InputError(f"no Ray cluster can be used {where}: {reason(error)}.") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Raise where nobody listens; Ray would try for minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _share(resources: Resources) -> tuple[int, float]:
    """Return the cores and GPUs of a trial; refuse what no machine has."""
    import ray

    machines = [
        (own.get("CPU", 0.0), own.get("GPU", 0.0)) for own in (n["Resources"] for n in ray.nodes() if n["Alive"])
    ]
    gpus = float(any(have for _, have in machines)) if resources.gpus is None else resources.gpus
    share = min((int(cores * gpus / have) for cores, have in machines if have), default=1) if gpus else 1
    cpus = resources.cpus or max(1, share)
    if not any(cores >= cpus and have >= gpus for cores, have in machines):
        raise InputError(
            f"a trial takes {cpus} cores and {gpus:g} GPUs, which no machine has together; lower --cpus or --gpus."
        )
    return cpus, gpus


def _work(trial: Trial, folder: Path, cpus: int) -> dict[str, Any]:
    """Return what a process on another machine has to know of a trial: plain values."""
    return {
        "key": trial.key, "recipe": trial.recipe, "overrides": trial.overrides, "epochs": trial.epochs, "cpus": cpus,
        "place": os.getcwd(), "folder": str(folder), "command": sys.argv,
    }  # fmt: skip


def _scheduler(progress: Progress) -> Any:
    """Return a scheduler of Ray Tune that starts trials in their order, and stops those that are not to go on."""
    from ray.tune.schedulers import FIFOScheduler

    class Race(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if why := result.get("failed"):
                progress.set(_key(trial), "failed", why)
            elif not progress.epoch(_key(trial), json.loads(result["row"])):
                return str(self.STOP)
            elif result.get("ended"):
                progress.set(_key(trial), "finished")
            return str(self.CONTINUE)

    scheduler: FIFOScheduler = Race()  # type: ignore[no-untyped-call]
    return scheduler


def _train(config: dict[str, Any]) -> None:
    """Train a trial in a process of Ray's; its last epoch is reported when all is done."""
    from ray import tune

    work = config["work"]
    last: Row = {}

    def report(row: Row) -> bool:
        if row["epoch"] < work["epochs"]:
            tune.report({"row": json.dumps(row)})  # a text, since Tune flattens mappings for some of its parts
        last.update(row)
        return True

    try:
        if not (Path(work["place"]) / work["folder"] / FILE).is_file():
            raise InputError(
                f"the machine {platform.node()} does not see {work['folder']} of {work['place']}; give --out a folder "
                "that all machines see under the same path."
            )
        os.chdir(work["place"])
        sys.argv = work["command"]  # which the run's folder names as the one that made it
        torch.set_num_threads(work["cpus"])
        folder = Path(work["folder"]) / work["key"]
        train_trial(work["recipe"], work["overrides"], folder, report, WAIT)
    except Exception as error:
        tune.report({"failed": failure(error)})
    else:
        tune.report({"row": json.dumps(last), "ended": True})


def _told(progress: Progress) -> Any:
    """Return a callback of Ray Tune that tells which trials start, and which are lost."""
    from ray import tune

    class Told(tune.Callback):  # type: ignore[misc]
        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            progress.set(_key(trial), "training")

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            log.warning("%s was lost with its process or machine; it is taken up again.", _key(trial))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            progress.set(_key(trial), "failed", f"its process or machine was lost {RETRIES + 1} times.")

    return Told()


def _key(trial: Any) -> str:
    key: str = trial.config["work"]["key"]
    return key
