"""Models for prediction: runs, ensembles of runs, exported files and folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import timm
import torch
from safetensors import safe_open
from torch import Tensor

from mixmo.config.hardware import PRECISIONS
from mixmo.deploy.images import Form
from mixmo.deploy.members import MEMBERS, load_members, load_weights
from mixmo.deploy.spec import Spec, check_temperature, describe_run
from mixmo.digests import SPEC, check_files, has_digest
from mixmo.errors import InputError, MissingError, reason
from mixmo.evaluation.calibration import Calibration, pool_calibration
from mixmo.evaluation.inference import TrainedRun, autocast
from mixmo.evaluation.predictions import Predictions, load_kept_predictions
from mixmo.files import check_regular
from mixmo.names import printable
from mixmo.network import MixMo
from mixmo.runs import RunFolder
from mixmo.seeding import DrawingFrom


class Model(Protocol):
    """A network with its description."""

    spec: Spec

    def logits(self, images: Tensor) -> Tensor:
        """Return the members' logits (B, M, K), on the CPU, of images (B, H, W, C) uint8 of the description's size."""


def get_form(spec: Spec) -> Form:
    """Return what images a network takes."""
    window = None if spec.data.window is None else tuple(spec.data.window)
    return Form(spec.size, spec.data.channels, spec.data.interpolation, window)


class RunModel:
    """A run's network, its members' logits apart.

    Args:
        trained: The run; its dataset may be gone.
        precision: ``32-true`` or ``bf16-mixed``.

    Raises:
        MissingError: if there is no such run or checkpoint.
        InputError: if it is damaged, or does not say the size of its images.
    """

    def __init__(self, trained: TrainedRun, precision: str = "32-true") -> None:
        self.trained, self.precision = trained, precision
        self.spec = describe_run(trained)
        _ = trained.network  # a checkpoint that is damaged is refused here

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, M, K)."""
        device = self.trained.device
        with autocast(device, self.precision):
            found: Tensor = self.trained.network.members(self.spec.prepared(images.to(device)))
        return found.float().cpu()


class OnnxModel:
    """A file that ``mixmo export --format onnx`` wrote, run by onnxruntime.

    Args:
        file: The file.

    Raises:
        InputError: if onnxruntime is missing, or the file is damaged or none of mixmo's.
    """

    def __init__(self, file: Path) -> None:
        try:
            onnxruntime: Any = import_module("onnxruntime")
        except ImportError as error:
            raise InputError(f"{file} needs onnxruntime; `pip install 'mixmo[onnx]'` installs it.") from error
        digest = has_digest(file)
        try:
            self.session = onnxruntime.InferenceSession(file, providers=onnxruntime.get_available_providers())
        except Exception as error:  # onnxruntime may raise anything for the file
            raise InputError(f"{file} cannot be opened by onnxruntime: {reason(error)}.") from error
        known = self.session.get_modelmeta().custom_metadata_map
        self.spec = Spec.from_json(known.get(SPEC, ""), str(file), digest)
        self.options = _options(known.get("options", ""), file)
        _check_classes(self, file)

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, M, K); logarithms of probabilities where the file has these."""
        pixels = prepare_input(images, self.spec, self.options).numpy()
        found = self.session.run(None, {self.session.get_inputs()[0].name: pixels})
        return _as_logits([torch.from_numpy(np.asarray(each)) for each in found], self.options)


class ExportedModel:
    """A file that ``mixmo export --format torch-export`` wrote.

    Args:
        file: The ``.pt2`` file; code in it can run when torch opens it.

    Raises:
        InputError: if it is damaged or none of mixmo's.
    """

    def __init__(self, file: Path) -> None:
        digest, extra = has_digest(file), {SPEC: "", "options": ""}
        try:
            self.net: Any = torch.export.load(file, extra_files=extra).module()
        except Exception as error:  # torch may raise anything for the file
            raise InputError(f"{file} cannot be opened by torch.export: {reason(error)}.") from error
        self.spec = Spec.from_json(extra[SPEC], str(file), digest)
        self.options = _options(extra["options"], file)
        _check_classes(self, file)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, M, K); logarithms of probabilities where the file has these."""
        found = self.net(prepare_input(images, self.spec, self.options))
        return _as_logits(list(found) if isinstance(found, tuple) else [found], self.options)


class PlainModel:
    """A network in this process.

    Args:
        net: A :class:`~mixmo.MixMo` or a plain network, in evaluation mode.
        spec: Its description.
    """

    def __init__(self, net: torch.nn.Module, spec: Spec) -> None:
        self.net, self.spec = net, spec

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, M, K)."""
        prepared = self.spec.prepared(images)
        return self.net.members(prepared) if isinstance(self.net, MixMo) else self.net(prepared)[:, None]


class TimmModel(PlainModel):
    """A folder that ``mixmo export --format timm`` wrote.

    Args:
        folder: The folder.

    Raises:
        MissingError: if it is none of mixmo's.
        InputError: if it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        try:
            digest = check_files(folder, ("config.json", "model.safetensors"))
            text = (folder / SPEC).read_text("utf-8", "replace")
        except OSError as error:
            missing = Path(error.filename or SPEC).name
            raise MissingError(
                f"{folder} is neither a run's folder nor an exported one: it has no {missing}."
            ) from error
        spec = Spec.from_json(text, str(folder / SPEC), digest)
        try:
            for file in folder.iterdir():
                check_regular(file)
            with DrawingFrom(torch.Generator()):
                net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            _check_weights(net, folder / "model.safetensors")
        except Exception as error:  # timm may raise anything for the folder
            raise InputError(f"{folder} cannot be opened by timm: {reason(error)}.") from error
        super().__init__(net, spec)
        _check_classes(self, folder)


def _check_weights(net: torch.nn.Module, file: Path) -> None:
    """Refuse a network that is not of the weights of a file: timm leaves a head out that does not fit, and draws one.

    Raises:
        InputError: naming the first tensor that differs.
    """
    with safe_open(file, "pt") as content:
        held = {name: list(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    described = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    for name in sorted(held.keys() | described.keys()):
        if held.get(name) != described.get(name):
            one, other = (each.get(name, "missing") for each in (described, held))
            raise InputError(f"by its config.json {name} is {one}, but in {file.name} {other}; export it again")


def prepare_input(images: Tensor, spec: Spec, options: dict[str, Any]) -> Tensor:
    """Return what an exported file takes, of images (B, H, W, C) uint8: pixels from 0 to 255 if it normalises."""
    if not options.get("normalize"):
        return spec.prepared(images)
    return replace(spec, data=replace(spec.data, mean=[0.0], std=[1 / 255])).prepared(images)


def _options(text: str, file: Path) -> dict[str, Any]:
    """Return what an exported file computes (``ExportOptions``), and its temperature."""
    try:
        options = json.loads(text)
        if not isinstance(options, dict):
            raise InputError("it is no mapping")
        if options.get("temperature") is not None:
            options["temperature"] = check_temperature(options["temperature"])
    except (ValueError, RecursionError, InputError) as error:
        raise InputError(f"{file} does not say what it computes, as mixmo's files do: {reason(error)}.") from error
    return options


def _check_classes(model: Model, file: Path) -> None:
    """Refuse a file whose answers are not of the classes that it names."""
    spec = model.spec
    try:
        found = model.logits(torch.zeros(1, *spec.size, spec.data.channels, dtype=torch.uint8)).shape
    except Exception as error:  # the network may raise anything for another image
        raise InputError(f"{file} does not take the images that it describes: {reason(error)}.") from error
    if len(found) != 3 or found[2] != len(spec.classes):
        raise InputError(f"{file} names {len(spec.classes)} classes, but answers {tuple(found[1:])}; export it again.")


def _as_logits(found: Sequence[Tensor], options: dict[str, Any]) -> Tensor:
    """Return logits (B, M, K) up to a constant, of the outputs of an exported file; its temperature is taken back."""
    tiny = torch.finfo(torch.float32).tiny
    if options.get("members"):
        return found[1].float().clamp(min=tiny).log()
    answers = found[0].float()
    logits = answers.clamp(min=tiny).log() if options.get("softmax") else answers
    return (logits * (options.get("temperature") or 1.0))[:, None]


class Ensemble:
    """Networks of the same classes as one.

    Args:
        models: One network or several.
        names: Where they are, for the reason why there is no calibration.

    Attributes:
        calibration: That of the one network, or of all together, by validation images that they share; or ``None``.
        uncalibrated: Why there is none; empty if there is one.

    Raises:
        InputError: if their classes differ.
    """

    def __init__(self, models: Sequence[Model], names: Sequence[str]) -> None:
        self.models = models
        self.spec = models[0].spec
        for model in models[1:]:
            if model.spec.classes != self.spec.classes:
                raise InputError("the networks of an ensemble have other classes; join those of the same data.")
        self.calibration, self.uncalibrated = _find_calibration(models, names)

    @cached_property
    def forms(self) -> list[Form]:
        """What images the networks take, each form once."""
        return list(dict.fromkeys(get_form(model.spec) for model in self.models))

    def logits(self, images: dict[Form, Tensor]) -> Tensor:
        """Return the logits (B, M, K) of all members of all networks."""
        return torch.cat([model.logits(images[get_form(model.spec)]) for model in self.models], 1)


def _find_calibration(models: Sequence[Model], names: Sequence[str]) -> tuple[Calibration | None, str]:
    """Return the calibration of networks together, or why there is none."""
    if len(models) > 1:
        try:
            parts = [_on_validation(model, name) for model, name in zip(models, names, strict=True)]
            return pool_calibration(parts, names), ""
        except InputError as error:
            return None, str(error)
    (model,), (name,) = models, names
    if model.spec.calibration is not None:
        return model.spec.calibration, ""
    if isinstance(model, RunModel) and _held_out(model.trained):
        return None, f"{name} has not been calibrated yet; `mixmo test {name}` does so."
    if isinstance(model, OnnxModel) and model.options.get("int8"):
        return None, f"{name} has 8-bit weights, for which the calibration of the network in float32 does not hold."
    return None, f"{name} has no calibration; one of a run with validation images (data.validation) has."


def _held_out(run: TrainedRun) -> bool:
    """Return whether a run held out images for validation, as far as its configuration can be read."""
    try:
        return bool(run.settings.data.validation)
    except InputError:
        return False


def _on_validation(model: Model, name: str) -> Predictions:
    """Return what a run predicted for its validation images when it was calibrated."""
    if not isinstance(model, RunModel):
        raise InputError(f"{name} is an exported network, which keeps no predictions on validation images; join runs.")
    run = model.trained
    if not _held_out(run):
        raise InputError(f"{name} held out no images for validation (data.validation is 0).")
    for precision in dict.fromkeys((model.precision, *PRECISIONS)):
        if (found := load_kept_predictions(run, "validation", precision)) is not None:
            return found
    raise InputError(f"{name} keeps no predictions on its validation images; `mixmo test {name}` makes them.")


def open_model(
    path: str | Path, checkpoint: str = "last", precision: str = "32-true", download: bool = False, trust: bool = False
) -> Model:
    """Return the network of a run's folder, an exported folder, or an ``.onnx``, ``.pt2`` or ``.safetensors`` file.

    Args:
        path: Where it is.
        checkpoint: Of a run.
        precision: Of a run.
        download: Of a run.
        trust: Open a ``.pt2`` file, whose code can run when torch opens it.

    Raises:
        MissingError: if there is nothing.
        InputError: if it cannot be opened.
    """
    where = Path(path)
    if where.is_file():
        kinds: dict[str, Any] = {
            ".onnx": OnnxModel, ".pt2": ExportedModel, ".safetensors": lambda file: PlainModel(*load_weights(file)),
        }  # fmt: skip
        if where.suffix not in kinds:
            raise InputError(
                f"{printable(str(path))} is no network: it is a run's folder, an .onnx, .pt2 or .safetensors file."
            )
        if where.suffix == ".pt2" and not trust:
            raise InputError(
                f"{printable(str(path))} can run code of its maker's when torch opens it; if you trust its "
                "maker, add --trust (trust=True in Python). An .onnx file holds no such code."
            )
        return kinds[where.suffix](where)  # type: ignore[no-any-return]
    if (where / MEMBERS).is_file():
        return PlainModel(*load_members(where))
    if (where / SPEC).is_file():
        return TimmModel(where)
    return RunModel(TrainedRun(RunFolder(where), checkpoint, download), precision)
