"""``mixmo export``: a run's network as a file or folder that other programs open."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser

from mixmo.cli.options import add_flag, add_overwrite
from mixmo.config.plan import parse
from mixmo.deploy.export import FORMATS, ExportOptions, export
from mixmo.evaluation.inference import TrainedRun
from mixmo.names import printable
from mixmo.runs import Run

ABOUT = "Write a run's network as a file or folder that other programs open."


def run(words: list[str]) -> None:
    """``mixmo export RUN --format timm|onnx|torch-export|safetensors [--out PATH]``."""
    parser = ArgumentParser(prog="mixmo export", exit_on_error=False, description=ABOUT)
    parser.add_argument("run", type=str, help="the run's folder")
    parser.add_argument("--format", type=str, required=True, help=", ".join(FORMATS))
    parser.add_argument("--out", type=str | None, default=None, help="the file or folder; in the run's by default")
    add_overwrite(parser)
    add_flag(parser, "--normalize", help="take pixels from 0 to 255")
    add_flag(parser, "--softmax", help="give probabilities in place of logits")
    add_flag(parser, "--temperature", help="divide logits by the validation set's temperature")
    add_flag(parser, "--members", help="give members' probabilities and mutual information too")
    add_flag(parser, "--int8", help="8-bit integers, and the accuracy that they cost (onnx)")
    parser.add_argument("--opset", type=int, default=18, help="version of ONNX's operators")
    parser.add_argument("--checkpoint", type=str, default="last", help="last, or best on the validation set")
    add_flag(parser, "--download", help="allow downloads of datasets and networks")
    chosen = parse(parser, words)
    options = ExportOptions(**{each.name: chosen[each.name] for each in fields(ExportOptions)})
    trained = TrainedRun(Run(chosen.run), chosen.checkpoint, chosen.download)
    out = None if chosen.out is None else Path(chosen.out)
    found = export(trained, chosen.format, out, options, chosen.overwrite)
    print(
        f"written: {printable(str(found.path))}, {found.size / 1e6:.2f} MB; read again, its log-probabilities differ "
        f"from the trained network's by {found.difference:.2g} at most"
    )
    if found.needs_mixmo:
        print(
            f"timm itself does not know {found.needs_mixmo}: `import mixmo` before timm.create_model (onnx and "
            "torch-export need nothing)"
        )
    if found.accuracy is not None:
        before, after = (100 * share for share in found.accuracy)
        print(f"accuracy on the test set: {before:.2f} % in float32, {after:.2f} % in int8")
