"""``mixmo benchmark``: measure what MixMo costs on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from mixmo.cli.options import Command, Overwrite
from mixmo.evaluation.benchmark import Benchmark, benchmark
from mixmo.files import check_output_path, is_marked
from mixmo.reporting.measurements import report
from mixmo.validation import FilePath, settings_class


@settings_class()
class Options:
    """Output of the measurements."""

    save: FilePath | None = None
    """A JSON file to write the measurements to."""
    overwrite: Overwrite = False


COMMAND = Command(
    "benchmark", "Measure what MixMo costs on this machine, and what the fast settings gain.", (Options, Benchmark)
)


def run(arguments: list[str]) -> None:
    """Run ``mixmo benchmark [--backbone NAME --batch_size 64 --num_members 2 …] [--save FILE]``."""
    (output, case), _ = COMMAND.parse(arguments)
    if output.save is not None:
        check_output_path(Path(output.save), is_marked(Path(output.save)), output.overwrite)
    about = asdict(case) | {
        "device": str(case.device), "precision": case.fastest, "threads": torch.get_num_threads(),
    }  # fmt: skip
    report(benchmark(case), about, output.save)
