"""``mixmo benchmark``: measure what MixMo costs on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from mixmo.cli.options import Command, Overwrite
from mixmo.evaluation.benchmark import Benchmark, benchmark
from mixmo.files import check_place, is_marked
from mixmo.reporting.measurements import report
from mixmo.validation import Place, settings_class


@settings_class()
class Options:
    """Where measurements are saved."""

    save: Place | None = None
    """Save the measurements in a JSON file."""
    overwrite: Overwrite = False


COMMAND = Command(
    "benchmark", "Measure what MixMo costs on this machine, and what the fast settings gain.", (Options, Benchmark)
)


def run(words: list[str]) -> None:
    """``mixmo benchmark [--backbone NAME --batch_size 64 --num_members 2 …] [--save FILE]``."""
    (own, case), _ = COMMAND.read(words)
    if own.save is not None:
        check_place(Path(own.save), is_marked(Path(own.save)), own.overwrite)
    about = asdict(case) | {
        "device": str(case.device), "precision": case.fastest, "threads": torch.get_num_threads(),
    }  # fmt: skip
    report(benchmark(case), about, own.save)
