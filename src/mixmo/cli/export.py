"""``mixmo export``: export a run's network for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mixmo.cli.options import Command, Download, Overwrite, Word
from mixmo.deploy.export import ExportOptions, export
from mixmo.escaping import printable
from mixmo.evaluation.calibration import Weights
from mixmo.library import Run
from mixmo.runs import Checkpoint
from mixmo.validation import Place, settings_class


@settings_class()
class Options:
    """Which network is written, how and where."""

    run: Word[str]
    """The run's folder; RUN+RUN is one ensemble, for onnx."""
    format: Literal["timm", "onnx", "safetensors"]
    """timm, onnx or safetensors."""
    out: Place | None = None
    """The file or folder; in the run's folder by default."""
    overwrite: Overwrite = False
    checkpoint: Checkpoint = "last"
    """The last checkpoint, or the best on the validation set."""
    download: Download = False
    weights: Weights = "equal"
    """fitted: weights of an ensemble's runs that fit their validation images."""


COMMAND = Command(
    "export", "Write a run's network as a file or folder that other programs open.", (Options, ExportOptions)
)


def run(words: list[str]) -> None:
    """``mixmo export RUN --format timm|onnx|safetensors [--out PATH]``."""
    (own, options), _ = COMMAND.read(words)
    paths = [own.run] if Path(own.run).exists() else own.run.split("+")
    runs = [Run(path, own.checkpoint, download=own.download) for path in paths]
    found = export(runs, own.format, None if own.out is None else Path(own.out), options, own.overwrite, own.weights)
    print(
        f"written: {printable(str(found.path))}, {found.size / 1e6:.2f} MB; read again, its log-probabilities differ "
        f"from the trained network's by {found.difference:.2g} at most"
    )
    if found.needs_mixmo:
        print(
            f"timm itself does not know {found.needs_mixmo}: `import mixmo` before timm.create_model (an ONNX file "
            "needs nothing)"
        )
