"""Rank and world size as launchers set them, before the processes meet."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path


def world(devices: int | None, num_nodes: int | None) -> tuple[int, int]:
    """Return devices of each node and nodes: as asked for, else as torchrun has set, else one."""
    elastic = "TORCHELASTIC_RUN_ID" in os.environ
    launched = [int(os.environ.get(name, "1")) if elastic else 1 for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")]
    return devices or launched[0], num_nodes or launched[1]


def command() -> str:
    """Return the command line of this process as it can be typed again.

    Example:
        >>> from unittest.mock import patch
        >>> with patch("sys.argv", ["/somewhere/mixmo/__main__.py", "fit", "digits-cut", "--run", "my run"]):
        ...     command()
        "mixmo fit digits-cut --run 'my run'"
        >>> with patch("sys.argv", ["examples/quickstart.py"]):
        ...     command()
        'python examples/quickstart.py'
    """
    program = Path(sys.argv[0])
    if program.name == "__main__.py":  # of `python -m`, which torchrun uses too
        package = program.parent.name
        words = [package] if package == "mixmo" else ["python", "-m", package]
    elif program.suffix == ".py":
        words = ["python", sys.argv[0]]
    else:
        words = [program.stem if program.suffix == ".exe" else program.name]
    return shlex.join([*words, *sys.argv[1:]])


def is_first() -> bool:
    """Return whether this process is rank 0, or alone: it makes and locks the run's folder and speaks; others read."""
    if all(os.environ.get(name, "1") == "1" for name in ("WORLD_SIZE", "SLURM_NTASKS")):
        return True
    if "RANK" in os.environ:  # torchrun's, which SLURM may have started
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))
