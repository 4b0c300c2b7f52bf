"""``mixmo export``: export a run's network for other programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from mixmo.cli.options import Command, Download, Overwrite, Word
from mixmo.deploy.export import ExportOptions
from mixmo.escaping import printable
from mixmo.library import Run
from mixmo.runs import Checkpoint
from mixmo.validation import Place, settings_class


@settings_class()
class Options:
    """Which network is written, how and where."""

    run: Word[str]
    """The run's folder."""
    format: Literal["timm", "onnx", "safetensors"]
    """timm, onnx or safetensors."""
    out: Place | None = None
    """The file or folder; in the run's by default."""
    overwrite: Overwrite = False
    checkpoint: Checkpoint = "last"
    """The last checkpoint, or the best on the validation set."""
    download: Download = False


COMMAND = Command(
    "export", "Write a run's network as a file or folder that other programs open.", (Options, ExportOptions)
)


def run(words: list[str]) -> None:
    """``mixmo export RUN --format timm|onnx|safetensors [--out PATH]``."""
    (own, options), _ = COMMAND.read(words)
    trained = Run(own.run, own.checkpoint, download=own.download)
    found = trained.export(own.format, own.out, own.overwrite, **asdict(options))
    print(
        f"written: {printable(str(found.path))}, {found.size / 1e6:.2f} MB; read again, its log-probabilities differ "
        f"from the trained network's by {found.difference:.2g} at most"
    )
    if found.needs_mixmo:
        print(
            f"timm itself does not know {found.needs_mixmo}: `import mixmo` before timm.create_model (an ONNX file "
            "needs nothing)"
        )
