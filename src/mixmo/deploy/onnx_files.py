"""ONNX export, and 8-bit quantisation by onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixmo.deploy.models import OnnxModel, prepare_input
from mixmo.deploy.spec import Spec
from mixmo.digests import DIGEST, SPEC, placeholder, write_digest
from mixmo.errors import InputError, reason
from mixmo.evaluation.inference import TrainedRun

CALIBRATION = 256
"""Training images by which the ranges of activations are found."""

BATCH = 64


def import_modules(*names: str) -> list[Any]:
    """Return modules of the ONNX extra.

    Raises:
        InputError: if one is missing.
    """
    try:
        return [import_module(name) for name in names]
    except ImportError as error:
        raise InputError(f"ONNX needs {error.name}; `pip install 'mixmo[onnx]'` installs it.") from error


def write_onnx(file: Path, net: nn.Module, example: Tensor, spec: Spec, computes: str, opset: int) -> None:
    """Write a network for any number of images.

    Args:
        file: The file.
        net: In evaluation mode.
        example: Images of the size it takes.
        spec: Its description, for the file's metadata.
        computes: What the file computes, as JSON.
        opset: Version of ONNX's operators.

    Raises:
        InputError: if a library is missing, or torch cannot write the network for that opset.
    """
    (onnx, _, _) = import_modules("onnx", "onnxscript", "onnxruntime")
    outputs = len(found) if isinstance(found := net(example), tuple) else 1
    try:
        with _quiet():
            program = torch.onnx.export(
                net, (example,), dynamo=True, opset_version=opset, verbose=False,
                input_names=["images"], output_names=["answers", "members", "mutual_information"][:outputs],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )  # fmt: skip
        written = program.model_proto  # type: ignore[union-attr]
    except Exception as error:  # torch may raise anything for the network
        raise InputError(f"the network cannot be written as ONNX with opset {opset}: {reason(error)}.") from error
    versions = {each.domain: each.version for each in written.opset_import}
    if versions.get("") != opset:
        raise InputError(
            f"the network cannot be written for opset {opset}: torch writes {versions.get('')}; take that."
        )
    _save(onnx, written, file, spec, {"options": computes})


def _save(onnx: Any, content: Any, file: Path, spec: Spec, notes: Mapping[str, str]) -> None:
    """Write a model with its description, notes, and the digest of all of it."""
    placed = placeholder()
    onnx.helper.set_model_props(content, {**notes, SPEC: spec.to_json(**{DIGEST: placed})})
    file.write_bytes(content.SerializeToString())
    write_digest(file, placed)


def write_int8(file: Path, run: TrainedRun) -> tuple[float, float]:
    """Make a file's weights and activations 8-bit integers, by ranges over training images.

    Args:
        file: An ONNX file of ours; replaced.
        run: The run, for its training and test images.

    Returns:
        Accuracy on the test set, before and after.

    Raises:
        MissingError: if the dataset is missing.
        InputError: if a library is missing, or the quantiser cannot.
    """
    onnx, quantisation = import_modules("onnx", "onnxruntime.quantization")
    before = OnnxModel(file)
    reader = _Reader(before, run)
    prepared, made = file.with_suffix(".prepared"), file.with_suffix(".int8")
    try:
        with _quiet():
            quantisation.quant_pre_process(file, prepared, skip_symbolic_shape=True)
            quantisation.quantize_static(prepared, made, reader, per_channel=True)
    except OSError:  # the disk
        raise
    except Exception as error:  # the quantiser may raise anything for the network
        raise InputError(f"onnxruntime cannot quantise the network: {reason(error)}.") from error
    alone = replace(before.spec, calibration=None)  # a calibration is of the network in float32
    _save(onnx, onnx.load(made), made, alone, before.session.get_modelmeta().custom_metadata_map)
    accuracy = _accuracy(before, run), _accuracy(OnnxModel(made), run)
    made.replace(file)
    prepared.unlink()
    return accuracy


class _Reader:
    """Shows the quantiser training images; it asks for ``get_next`` until that is nothing."""

    def __init__(self, model: OnnxModel, run: TrainedRun) -> None:
        images = run.data.train
        places = np.linspace(0, len(images) - 1, min(CALIBRATION, len(images))).round().astype(int).tolist()
        batch = images.__getitems__(places)
        pixels = batch.images[batch.chosen].cpu()
        name = model.session.get_inputs()[0].name
        self.batches = iter(
            {name: prepare_input(part, model.spec, model.options).numpy()} for part in pixels.split(BATCH)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch."""
        return next(self.batches, None)


def _accuracy(model: OnnxModel, run: TrainedRun) -> float:
    images, _ = run.images("test")
    right = 0
    for start in range(0, len(images), BATCH):
        batch = images.__getitems__(list(range(start, min(start + BATCH, len(images)))))
        answers = model.logits(batch.images[batch.chosen].cpu()).mean(1).argmax(1)
        right += int((answers == batch.labels[batch.chosen].cpu()).sum())
    return right / len(images)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch and onnxruntime log of every export."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
