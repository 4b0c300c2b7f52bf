"""Networks to predict with: runs and exported files and folders, each with its description."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixmo.config.hardware import PRECISIONS
from mixmo.data.batches import Augmentations
from mixmo.deploy.images import InputFormat
from mixmo.deploy.load import MEMBERS, load_members, load_timm, load_weights
from mixmo.deploy.spec import Spec, describe_run
from mixmo.digests import SPEC, has_digest
from mixmo.errors import InputError, explain_errors, import_extra
from mixmo.escaping import printable
from mixmo.evaluation.calibration import AnyCalibration, Weights, calibrate, pool_calibration
from mixmo.evaluation.inference import TrainedRun, autocast, average_views
from mixmo.evaluation.predictions import Predictions, load_cached_predictions, predict
from mixmo.network import MixMo
from mixmo.runs import RunFolder


class TorchModel:
    """A :class:`~mixmo.MixMo` or plain network in this process, on the device of its run, else the CPU."""

    def __init__(self, net: nn.Module, spec: Spec, run: TrainedRun | None = None, precision: str = "32-true") -> None:
        self.net, self.spec, self.run, self.precision = net, spec, run, precision
        self.device = torch.device("cpu") if run is None else run.device

    def logits(self, images: Tensor, tta: Augmentations = "none") -> Tensor:
        """Return logits (B, M, K), averaged over the views of test-time augmentation."""
        net = self.net
        return self._forward(net.members if isinstance(net, MixMo) else lambda x: net(x)[:, None], images, tta)

    def features(self, images: Tensor, tta: Augmentations = "none") -> Tensor:
        """Return features (B, D), those of timm's ``forward_head(forward_features(x), pre_logits=True)``."""
        backbone: Any = self.net.backbone if isinstance(self.net, MixMo) else self.net
        if not hasattr(backbone, "forward_head"):
            raise InputError(
                f"a {type(backbone).__name__} gives no features; timm's networks do (forward_features, forward_head) "
                "if they mix after the stem."
            )
        head = partial(backbone.forward_head, pre_logits=True)
        return self._forward(lambda x: head(backbone.forward_features(x)).flatten(1), images, tta)

    @torch.no_grad()
    def _forward(self, forward: Callable[[Tensor], Tensor], images: Tensor, tta: Augmentations) -> Tensor:
        with autocast(self.device, self.precision):
            return average_views(forward, self.spec.views(images.to(self.device), tta)).cpu()


def open_run(run: TrainedRun, precision: str = "32-true") -> TorchModel:
    """Open a run's network, whose members have separate logits; needs no dataset."""
    return TorchModel(run.net, describe_run(run), run, precision)


class OnnxModel:
    """A file of ``mixmo export --format onnx``, run by onnxruntime."""

    run: TrainedRun | None = None

    def __init__(self, file: Path) -> None:
        onnxruntime = import_extra("onnxruntime", "onnx", f"{file} needs onnxruntime")
        digest = has_digest(file)
        with explain_errors(f"{file} cannot be opened by onnxruntime"):
            self.session = onnxruntime.InferenceSession(file, providers=onnxruntime.get_available_providers())
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.spec = Spec.from_json(metadata.get(SPEC, ""), str(file), digest)
        self.options: dict[str, Any] = json.loads(metadata.get("options", "{}"))  # an ExportOptions
        _check_classes(self, file)

    def logits(self, images: Tensor, tta: Augmentations = "none") -> Tensor:
        """Return logits (B, M, K) up to a constant, with a softmax and temperature in the file undone."""
        spec = self.spec
        if self.options.get("normalize"):  # the file takes pixels from 0 to 255
            spec = replace(spec, data=replace(spec.data, mean=[0.0], std=[1 / 255]))
        return average_views(self._run, spec.views(images, tta))

    def features(self, images: Tensor, tta: Augmentations = "none") -> Tensor:
        """Raise: the graph has no features."""
        raise InputError("an ONNX file gives no features; predict with the run, or its timm export.")

    def _run(self, pixels: Tensor) -> Tensor:
        arrays = self.session.run(None, {self.session.get_inputs()[0].name: pixels.numpy()})
        outputs = [torch.from_numpy(np.asarray(array)).float() for array in arrays]
        tiny = torch.finfo(torch.float32).tiny
        if self.options.get("members"):
            return outputs[1].clamp(min=tiny).log()
        logits = outputs[0].clamp(min=tiny).log() if self.options.get("softmax") else outputs[0]
        return (logits * (self.options.get("temperature") or 1.0))[:, None]


Model = TorchModel | OnnxModel
"""A network, its description ``spec`` and, if it has one, its ``run``."""


def _check_classes(model: Model, file: Path) -> None:
    """Refuse a file whose outputs do not match its classes."""
    spec = model.spec
    with explain_errors(f"{file} does not take the images that it describes"):
        shape = model.logits(torch.zeros(1, *spec.size, spec.data.channels, dtype=torch.uint8)).shape
    if len(shape) != 3 or shape[2] != len(spec.classes):
        raise InputError(f"{file} names {len(spec.classes)} classes, but outputs {tuple(shape[1:])}; export it again.")


def open_model(path: str | Path, checkpoint: str = "last", precision: str = "32-true", download: bool = False) -> Model:
    """Open the network of a run's folder, an exported folder, or an ``.onnx`` or ``.safetensors`` file."""
    where = Path(path)
    is_folder = any((where / name).is_file() for name in (MEMBERS, SPEC))
    if not where.is_file() and not is_folder:
        return open_run(TrainedRun(RunFolder(where), checkpoint, download), precision)
    if checkpoint != "last":
        raise InputError(f"{printable(str(path))} is an exported network, of one checkpoint; leave checkpoint out.")
    if where.suffix == ".onnx" and where.is_file():
        if precision != "32-true":
            raise InputError(f"precision is {precision}, but {printable(str(path))} has its own; leave it out.")
        return OnnxModel(where)
    if (where / MEMBERS).is_file():
        loaded: tuple[nn.Module, Spec] = load_members(where, download)
    elif is_folder:
        loaded = load_timm(where)
    elif where.suffix == ".safetensors":
        loaded = load_weights(where, download)
    else:
        raise InputError(f"{printable(str(path))} is not a network; name a run's folder, .onnx or .safetensors file.")
    model = TorchModel(*loaded, precision=precision)
    _check_classes(model, where)
    return model


def input_format(spec: Spec) -> InputFormat:
    """Return what images a network takes."""
    window = None if spec.data.window is None else tuple(spec.data.window)
    return InputFormat(spec.size, spec.data.channels, spec.data.interpolation, window)


def find_calibration(
    models: Sequence[Model], names: Sequence[str], tta: Augmentations = "none", weights: Weights = "equal"
) -> tuple[AnyCalibration | None, str]:
    """Return the calibration of a network, or of an ensemble on common validation images; else ``None`` and why.

    With test-time augmentation a run's validation images are predicted again.
    """
    if len(models) > 1:
        try:
            parts = [_validation_predictions(model, name, tta) for model, name in zip(models, names, strict=True)]
            return pool_calibration(parts, names, weights), ""
        except InputError as error:
            return None, str(error)
    (model,), (name,) = models, names
    run = model.run if model.run is not None and _held_out(model.run) else None
    if tta == "none" and model.spec.calibration is not None:
        return model.spec.calibration, ""
    if tta != "none" and model.run is None and model.spec.calibration is not None:
        return None, f"{name} is calibrated without test-time augmentation; predict with the run, or leave out tta."
    if tta != "none" and run is not None:
        try:
            return calibrate(run, tta=tta), ""
        except InputError as error:
            return None, f"{name} cannot be calibrated with tta {tta}: {error}"
    if run is not None:
        return None, f"{name} has not been calibrated yet; `mixmo test {name}` does so."
    return None, f"{name} has no calibration; one of a run with validation images (data.validation) has."


def _held_out(run: TrainedRun) -> bool:
    """Return whether a run held out validation images; ``False`` if its configuration cannot be read."""
    try:
        return bool(run.settings.data.validation)
    except InputError:
        return False


def _validation_predictions(model: Model, name: str, tta: Augmentations) -> Predictions:
    """Return a run's predictions on its validation images, cached since its calibration."""
    run = model.run
    if run is None:
        raise InputError(f"{name} is an exported network, without predictions on validation images; combine runs.")
    if not _held_out(run):
        raise InputError(f"{name} held out no images for validation (data.validation is 0).")
    for precision in PRECISIONS:
        if (found := load_cached_predictions(run, "validation", precision, tta)) is not None:
            return found
    if tta != "none":
        return predict(run, "validation", tta=tta)
    raise InputError(f"{name} has no predictions on its validation images; `mixmo test {name}` makes them.")
