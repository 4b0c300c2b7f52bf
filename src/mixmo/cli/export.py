"""``mixmo export``: export the network of a run for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mixmo.cli.options import Command, Download, Overwrite, Positional
from mixmo.deploy.export import ExportOptions, export
from mixmo.escaping import printable
from mixmo.evaluation.calibration import Weights
from mixmo.library import Run
from mixmo.runs import Checkpoint
from mixmo.validation import FilePath, settings_class


@settings_class()
class Options:
    """The network, the format and the output."""

    run: Positional[str]
    """The run's folder; RUN+RUN is an ensemble, for onnx."""
    format: Literal["timm", "onnx", "safetensors"]
    """timm, onnx or safetensors."""
    out: FilePath | None = None
    """The output file or folder; in the run's folder by default."""
    overwrite: Overwrite = False
    checkpoint: Checkpoint = "last"
    """The last checkpoint, or the best on the validation set."""
    download: Download = False
    weights: Weights = "equal"
    """Weights of an ensemble's runs: equal, or fitted on validation images."""


COMMAND = Command(
    "export", "Export the network of a run as a file or folder for other programs.", (Options, ExportOptions)
)


def run(arguments: list[str]) -> None:
    """Run ``mixmo export RUN --format timm|onnx|safetensors [--out PATH]``."""
    (chosen, options), _ = COMMAND.parse(arguments)
    paths = [chosen.run] if Path(chosen.run).exists() else chosen.run.split("+")
    runs = [Run(path, chosen.checkpoint, download=chosen.download) for path in paths]
    out = None if chosen.out is None else Path(chosen.out)
    exported = export(runs, chosen.format, out, options, chosen.overwrite, chosen.weights)
    print(
        f"written: {printable(str(exported.path))}, {exported.size / 1e6:.2f} MB; its log-probabilities differ from "
        f"the trained network's by at most {exported.difference:.2g}"
    )
    if exported.needs_mixmo:
        print(f"{exported.needs_mixmo} is not in timm: `import mixmo` before timm.create_model (not needed for ONNX)")
