"""Compare the forms of a trained network: accuracy, NLL, images per second, size.

    python benchmarks/deployment.py runs/photos [--images FOLDER] [--save FILE]

Every form predicts the run's whole test set. Times are of one batch, interleaved between forms, relative to the plain
backbone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mixmo import evaluate, fuse
from mixmo.deploy.export import FORMATS, ExportOptions, export
from mixmo.deploy.images import list_images
from mixmo.deploy.models import Model, OnnxModel, TorchModel, open_model, open_run
from mixmo.deploy.predictor import Predictor
from mixmo.evaluation.benchmark import summarise, take_turns, time_call
from mixmo.evaluation.inference import TrainedRun
from mixmo.network import create_backbone
from mixmo.reporting.measurements import report
from mixmo.runs import RunFolder

Rows = dict[str, dict[str, float]]
BATCH = 64


def forms_of(run: TrainedRun, folder: Path) -> tuple[dict[str, Model], dict[str, int]]:
    """Return the network in every form, and the sizes in bytes of those that are files."""
    whole = open_run(run)
    forms: dict[str, Model] = {"members apart": whole, "fused": TorchModel(fuse(run.network).eval(), whole.spec)}
    sizes: dict[str, int] = {}
    for name, format, options in (
        ("timm folder", "timm", ExportOptions()),
        ("ONNX", "onnx", ExportOptions()),
        ("ONNX, members apart", "onnx", ExportOptions(members=True)),
    ):
        place = folder / name.replace(", ", "-").replace(" ", "-")
        place.mkdir()
        exported = export(run, format, place / FORMATS[format], options)
        forms[name], sizes[name] = open_model(exported.path), exported.size
    return forms, sizes


def test_set(run: TrainedRun) -> tuple[Tensor, Tensor]:
    """Return the test images (N, H, W, C) uint8 and their class numbers, shuffled.

    Datasets are sorted by class, and a batch of a single class would be unrepresentative.
    """
    images, _ = run.images("test")
    batch = images.__getitems__(torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist())
    return batch.images[batch.chosen], batch.labels[batch.chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=Path, help="a folder of image files, to time mixmo predict")
    parser.add_argument("--save", metavar="FILE", help="keep the results in a JSON file")
    given = parser.parse_args()
    run = TrainedRun(RunFolder(given.run))
    images, labels = test_set(run)
    with tempfile.TemporaryDirectory() as folder:
        forms, sizes = forms_of(run, Path(folder))
        tables = {"forms, ratios to the plain backbone": in_every_form(run, forms, sizes, images, labels, given.rounds)}
    if given.images:
        tables["mixmo predict"] = predicting(given.run, given.images)
    about = {"run": given.run.name, "backbone": run.settings.model.backbone, "test images": len(images), "batch": BATCH}
    report(tables, about | {"threads": torch.get_num_threads()}, given.save)


def in_every_form(
    run: TrainedRun, forms: dict[str, Model], sizes: dict[str, int], images: Tensor, labels: Tensor, rounds: int
) -> Rows:
    """Return times, accuracy, NLL and size of every form."""
    own, spec, shown = run.settings, forms["fused"].spec, images[:BATCH]
    options = own.model.options | {"in_chans": own.data.channels, "num_classes": len(spec.classes)}
    every = {"plain backbone": TorchModel(create_backbone(own.model.backbone, **options).eval(), spec), **forms}
    seconds: dict[str, list[float]] = {}
    for kind in (False, True):  # onnxruntime's threads spin for a while after a call, which slows the next one
        timers = {name: partial(time_call, partial(model.logits, shown)) for name, model in every.items()
                  if isinstance(model, OnnxModel) == kind}  # fmt: skip
        seconds |= take_turns(timers, rounds)
    rows = {name: summarise(taken, against=seconds["plain backbone"]) for name, taken in seconds.items()}
    for name, model in forms.items():
        found = evaluate(torch.cat([model.logits(part) for part in images.split(BATCH)]), labels)
        rows[name] |= {"accuracy": found["accuracy"], "nll": found["nll"]}
        rows[name] |= {"MB": sizes[name] / 1e6} if name in sizes else {}
    return rows


def predicting(run: Path, folder: Path) -> Rows:
    """Return images per second from files on disk to predictions."""
    files, predictor, rows = list_images([str(folder)]), Predictor(run), {}
    for workers in (0, 2):
        start = time.perf_counter()
        predictor(list(files), BATCH, workers)
        rows[f"{workers} workers"] = {"images": len(files), "a second": len(files) / (time.perf_counter() - start)}
    return rows


if __name__ == "__main__":
    main()
