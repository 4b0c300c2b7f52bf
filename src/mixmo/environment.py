"""The environment of a result: versions, hardware, the command."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mixmo.launching import command


def environment() -> dict[str, Any]:
    """Return versions, hardware, the time and the command, by which a run can be repeated."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command(),
        "python": platform.python_version(),
        "packages": versions(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str | None]:
    """Return the versions of the packages that results depend on; ``None`` for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in ("mixmo", "torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
