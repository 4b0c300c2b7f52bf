"""A run's folder, which holds all there is to know of a run.

``config.yaml`` every setting · ``checkpoints/`` last and best on validation · ``metrics.csv`` a row per epoch ·
``environment.json`` versions and hardware · ``test.json`` the figures of ``mixmo test``.
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import shlex
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from mixmo.errors import InputError, MissingError, one_of
from mixmo.files import read_checkpoint, write_text
from mixmo.network import MixMo

CHECKPOINTS = ("last", "best")


class Run:
    """A run's folder.

    Args:
        path: The folder.

    Example:
        >>> Run("runs/quickstart").config_file.as_posix()
        'runs/quickstart/config.yaml'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.csv"
        self.checkpoint_folder = self.path / "checkpoints"

    def check_free(self) -> None:
        """Refuse a folder that is in use.

        Raises:
            InputError: if it exists and is not empty.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(
                f"run folder {self.path} exists already; go on with it by `mixmo fit {self.path}`, or choose "
                "another with --run."
            )

    def create(self, config: str) -> None:
        """Make the folder with its configuration; never touch one that is in use (:meth:`check_free`)."""
        self.check_free()
        self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
        self.write_json("environment.json", environment())
        write_text(self.config_file, config)

    def require(self) -> Run:
        """Return itself if the folder holds a run.

        Raises:
            MissingError: if there is no such folder, or no ``config.yaml`` in it.
        """
        if not self.path.is_dir():
            raise MissingError(f"there is no run folder {self.path}.")
        if not self.config_file.is_file():
            raise MissingError(f"{self.path} is no run's folder: it has no config.yaml.")
        return self

    def config(self) -> dict[str, Any]:
        """Return the run's settings as they were resolved."""
        content = yaml.safe_load(self.require().config_file.read_text("utf-8"))
        if not isinstance(content, dict):
            raise InputError(f"{self.config_file} is damaged: it is no mapping of settings.")
        return content

    def checkpoint_file(self, which: str = "last") -> Path:
        """Return the file of a checkpoint, ``last`` or ``best``.

        Raises:
            MissingError: if it does not exist.
        """
        one_of(which, CHECKPOINTS, "checkpoint")
        file = self.require().checkpoint_folder / f"{which}.ckpt"
        if not file.is_file():
            reason = "the run had no validation set" if which == "best" else "no epoch was finished"
            raise MissingError(f"{self.path} has no {which} checkpoint ({reason}, perhaps).")
        return file

    def write_json(self, name: str, content: dict[str, Any]) -> Path:
        """Write a JSON file into the folder, whole or not at all; NaN, which JSON does not know, becomes null."""
        text = json.dumps(_with_null(content), indent=2, ensure_ascii=False, allow_nan=False)
        return write_text(self.path / name, text + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the folder."""
        content: dict[str, Any] = json.loads((self.path / name).read_text("utf-8"))
        return content

    def append_metrics(self, row: dict[str, float]) -> None:
        """Add an epoch's row to ``metrics.csv``; rows from that epoch on, left by a stopped run, give way."""
        rows = [old for old in self.read_metrics() if int(old["epoch"]) < row["epoch"]]
        columns = list(dict.fromkeys([*(key for old in rows for key in old), *row]))
        lines = [",".join(columns)]
        for each in [*rows, {key: format(value, ".6g") for key, value in row.items()}]:
            lines.append(",".join(each.get(column, "") for column in columns))
        write_text(self.metrics_file, "\n".join(lines) + "\n")

    def read_metrics(self) -> list[dict[str, str]]:
        """Return the rows of ``metrics.csv``, none if there is no such file yet."""
        if not self.metrics_file.is_file():
            return []
        with self.metrics_file.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


def load(run: str | Path, checkpoint: str = "last") -> MixMo:
    """Return a trained network, ready for inference, from a run's folder.

    Args:
        run: The run's folder.
        checkpoint: ``last``, or ``best`` on the validation set.

    Returns:
        The network on the CPU, in evaluation mode.

    Raises:
        MissingError: if there is no such run or checkpoint.
        InputError: if the checkpoint is damaged or of another network.

    Example:
        >>> net = load("runs/quickstart")  # doctest: +SKIP
    """
    return load_checkpoint(Run(run), checkpoint)[0]


def load_checkpoint(run: Run, which: str = "last") -> tuple[MixMo, int]:
    """Return a run's network in evaluation mode, and the number of epochs it was trained for."""
    file = run.checkpoint_file(which)
    content, config = read_checkpoint(file), run.config()
    model = config["model"]
    try:
        net = MixMo(
            model["backbone"],
            model["num_members"],
            num_classes=content["num_classes"],
            in_chans=config["data"]["channels"],
            mix_at=model.get("mix_at"),
            **(model["options"] | {"pretrained": False}),
        )
        weights = {name.removeprefix("net."): t for name, t in content["state_dict"].items() if name.startswith("net.")}
        net.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{file} does not hold the network of {run.config_file}: {reason}") from error
    return net.eval(), int(content["epoch"]) + 1


def _with_null(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _with_null(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_with_null(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def environment() -> dict[str, Any]:
    """Return versions, hardware, the time and the command, for whoever wants to repeat the run."""
    packages = ("mixmo", "torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy")

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in packages},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
