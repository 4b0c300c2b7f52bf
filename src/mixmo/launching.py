"""Rank and world size from the launcher's environment variables, and the command line."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path


def count_devices(devices: int | None, num_nodes: int | None) -> tuple[int, int]:
    """Return the devices per node and the number of nodes: the arguments, else torchrun's, else 1."""
    elastic = "TORCHELASTIC_RUN_ID" in os.environ
    launched = [int(os.environ.get(name, "1")) if elastic else 1 for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")]
    return devices or launched[0], num_nodes or launched[1]


def command() -> str:
    """Return the command line that started this process, quoted for a shell.

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
    if program.name == "__main__.py":  # python -m, which torchrun uses too
        package = program.parent.name
        start = [package] if package == "mixmo" else ["python", "-m", package]
    elif program.suffix == ".py":
        start = ["python", sys.argv[0]]
    else:
        start = [program.stem if program.suffix == ".exe" else program.name]
    return shlex.join([*start, *sys.argv[1:]])


def is_first() -> bool:
    """Return whether this process is rank 0; only rank 0 creates files and logs."""
    if all(os.environ.get(name, "1") == "1" for name in ("WORLD_SIZE", "SLURM_NTASKS")):
        return True
    if "RANK" in os.environ:  # set by torchrun, also when SLURM started it
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))
