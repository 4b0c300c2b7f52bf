"""The trials of a sweep on Ray Tune: at the same time, on this machine or on a cluster's."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mixmo.errors import InputError, StoppedError, reason
from mixmo.sweeps.grid import Trial
from mixmo.sweeps.progress import FILE, SCORE, Progress
from mixmo.sweeps.settings import Asha
from mixmo.sweeps.trial import Row, train_trial
from mixmo.sweeps.turns import failure

RETRIES = 10
"""How often a trial is taken up again after the process or the machine that trained it was lost."""
WAIT = 120.0
"""Seconds that a trial waits for a lost process to leave its folder."""
KEPT = ".ray"
"""Where Ray keeps what it needs while it runs, in the sweep's folder."""
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


class Resources(NamedTuple):
    """What a trial takes.

    Attributes:
        cpus: Cores; ``None`` for one, or with GPUs for its share of all.
        gpus: GPUs, a part of one included; ``None`` for one where there are any.
    """

    cpus: int | None = None
    gpus: float | None = None


def installed() -> bool:
    """Return whether Ray Tune is installed."""
    return find_spec("ray") is not None and find_spec("ray.tune") is not None


def run_on_ray(
    trials: Sequence[Trial],
    asha: Asha | None,
    folder: Path,
    progress: Progress,
    resources: Resources,
    address: str | None = None,
) -> None:
    """Train trials at the same time, as many as there is room for.

    A trial whose process or machine is lost is taken up again elsewhere, from its last checkpoint.

    Args:
        trials: What to train.
        asha: When to stop one early.
        folder: The sweep's, which all machines see under the same path.
        progress: Takes what becomes of them.
        resources: What each takes.
        address: Of a cluster; ``None`` for this machine alone.

    Raises:
        InputError: if the cluster is not there, or has no room for a trial.
        StoppedError: if a signal asked to stop.
    """
    with _connected(address):
        from ray import tune

        cpus, gpus = _share(resources)
        work = [_work(trial, folder, cpus, trial.key in progress.stopped) for trial in trials]
        storage = folder / KEPT
        shutil.rmtree(storage, ignore_errors=True)
        tuner = tune.Tuner(
            tune.with_resources(_train, {"cpu": cpus, "gpu": gpus}),
            param_space={"work": tune.grid_search(work)},
            tune_config=tune.TuneConfig(scheduler=_scheduler(asha, trials[0].epochs), reuse_actors=True),
            run_config=tune.RunConfig(
                name="sweep", storage_path=str(storage.resolve()), verbose=0, callbacks=[_told(progress)],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        )  # fmt: skip
        theirs = logging.getLogger("ray.tune")
        level = theirs.level
        try:
            theirs.setLevel(logging.ERROR)
            tuner.fit()
        finally:
            theirs.setLevel(level)
            shutil.rmtree(storage, ignore_errors=True)
    if any(progress.states[trial.key].status in ("waiting", "training") for trial in trials):
        raise StoppedError("stopped.")


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


def _share(resources: Resources) -> tuple[int, float]:
    """Return the cores and GPUs of a trial; refuse more than any machine has."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = {kind: max(each.get(kind, 0.0) for each in machines) for kind in ("CPU", "GPU")}
    gpus = resources.gpus if resources.gpus is not None else float(min(most["GPU"], 1))
    cpus = resources.cpus or (max(1, int(most["CPU"] * gpus / most["GPU"])) if gpus and most["GPU"] else 1)
    for kind, asked in (("CPU", cpus), ("GPU", gpus)):
        if asked > most[kind]:
            raise InputError(
                f"a trial takes {asked:g} {kind}s, no machine has more than {most[kind]:g}; lower --{kind.lower()}s."
            )
    return cpus, gpus


def _work(trial: Trial, folder: Path, cpus: int, stopped: bool) -> dict[str, Any]:
    """Return what a process on another machine has to know of a trial: plain values."""
    return {
        "key": trial.key, "recipe": trial.recipe, "words": trial.words, "epochs": trial.epochs, "cpus": cpus,
        "stopped": stopped, "place": os.getcwd(), "folder": str(folder), "command": sys.argv,
    }  # fmt: skip


def _scheduler(asha: Asha | None, epochs: int) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    if asha is None:
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        "epoch", SCORE, "max", max_t=epochs, grace_period=asha.grace_epochs, reduction_factor=asha.reduction
    )


def _train(config: dict[str, Any]) -> None:
    """Train a trial in a process of Ray's.

    The last epoch is reported when all is done: Ray ends a trial that has reported it.
    """
    from ray import tune

    work = config["work"]
    last: Row = {}

    def report(row: Row) -> bool:
        if row["epoch"] < work["epochs"]:
            _send(row)
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
        ended = train_trial(work["recipe"], work["words"], folder, report, WAIT, work["stopped"])
    except Exception as error:
        tune.report({"failed": failure(error)})
        return
    if ended:
        _send(last, ended=True)


def _send(row: Row, **more: Any) -> None:
    """Report an epoch; Ray adds columns of its own, so that the row stands apart too."""
    from ray import tune

    tune.report({"row": row, "epoch": int(row["epoch"]), SCORE: row.get(SCORE), **more})


def _told(progress: Progress) -> Any:
    """Return a callback of Ray Tune that tells what becomes of trials."""
    from ray import tune

    class Told(tune.Callback):  # type: ignore[misc]
        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            progress.set(_key(trial), "training")

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            if why := result.get("failed"):
                progress.set(_key(trial), "failed", why)
                return
            progress.epoch(_key(trial), result["row"])
            if result.get("ended"):
                progress.set(_key(trial), "finished")

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            log.warning("%s was lost with its process or machine; it is taken up again.", _key(trial))

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            progress.set(_key(trial), "stopped early")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            progress.set(_key(trial), "failed", f"its process or machine was lost {RETRIES + 1} times.")

    return Told()


def _key(trial: Any) -> str:
    key: str = trial.config["work"]["key"]
    return key
