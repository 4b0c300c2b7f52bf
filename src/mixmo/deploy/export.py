"""Export to other formats; every file is read back and compared with the trained network."""

from __future__ import annotations

import json
import logging
import math
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mixmo.deploy.load import TIMM_CONFIG, WEIGHTS, load_timm, load_weights
from mixmo.deploy.models import Model, OnnxModel, TorchModel, find_calibration, open_run
from mixmo.deploy.spec import Spec, describe_run, write_description
from mixmo.digests import DIGEST, SPEC, is_whole_export, placeholder, write_digest
from mixmo.errors import InputError, explain_errors, import_extra, one_of, refuse_labels
from mixmo.evaluation.calibration import ClassCalibration, Weights, check_weights
from mixmo.evaluation.inference import TrainedRun
from mixmo.files import assemble, check_output_path, make_folder
from mixmo.fusing import ProbabilityAverage, fuse
from mixmo.loading import MODULE
from mixmo.metrics.ood import decompose_uncertainty
from mixmo.models.copying import copy_module
from mixmo.validation import Boolean, settings_class

logger = logging.getLogger("mixmo")

FORMATS = {"timm": "timm", "onnx": "model.onnx", "safetensors": "model.safetensors"}
"""Formats, and the default names of their files in a run's folder."""

TIMM_FILES = {TIMM_CONFIG, WEIGHTS, SPEC}

TIMM_KEYS = ("first_conv", "classifier", "pool_size", "fixed_input_size")
"""Keys that are copied from timm's configuration of a backbone."""

OPSET = 18
"""The ONNX operator set that torch's exporter targets."""

TOLERANCE = 1e-3
"""Largest difference in log-probabilities from the trained network, relative to 1 + their largest magnitude."""


@settings_class(frozen=True)
class ExportOptions:
    """What an ONNX file computes: ``run.export("onnx", softmax=True)``.

    Raises:
        InputError: if a value is neither true nor false.

    Example:
        >>> ExportOptions(softmax=True, temperature=True).members
        False
    """

    normalize: Boolean = False
    """Take pixels from 0 to 255 instead of normalised ones."""
    softmax: Boolean = False
    """Return probabilities instead of logits."""
    temperature: Boolean = False
    """Divide logits by the temperature fitted on the validation set."""
    members: Boolean = False
    """Also return the members' probabilities (B, M, K) and their mutual information (B,)."""

    def check(self, format: str) -> None:
        """Refuse options that ``format`` does not support."""
        one_of(format, FORMATS, "format")
        enabled = [key for key, value in asdict(self).items() if value]
        if enabled and format != "onnx":
            raise InputError(f"--{enabled[0]} is for onnx; {format} holds only weights.")


class ExportedNetwork(nn.Module):
    """A plain network, with logits (B, K) of the average or (B, M * K) of all members, that applies the options."""

    def __init__(self, plain: nn.Module, spec: Spec, options: ExportOptions) -> None:
        super().__init__()
        self.plain, self.options, self.num_classes = plain, options, len(spec.classes)
        constants = (torch.tensor(values).expand(spec.data.channels) for values in (spec.data.mean, spec.data.std))
        self.mean, self.std = (nn.Buffer(values[:, None, None].clone()) for values in constants)
        self.temperature = spec.calibration.temperature if options.temperature and spec.calibration else 1.0

    def forward(self, images: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Map images (B, C, h, w) to logits or probabilities (B, K), with ``members`` also to its outputs."""
        if self.options.normalize:
            images = (images / 255 - self.mean) / self.std
        members = self.plain(images).unflatten(1, (-1, self.num_classes))
        average = members.mean(1) / self.temperature
        output = average.softmax(1) if self.options.softmax else average
        if not self.options.members:
            return output  # type: ignore[no-any-return]
        logs = members.log_softmax(2)
        return output, logs.exp(), decompose_uncertainty(logs).epistemic


class ParallelNetworks(nn.Module):
    """Networks in parallel, from images to (B, n * K): the concatenation of their logits, each times its scale.

    Example:
        >>> ParallelNetworks([nn.Identity(), nn.Identity()], [1.0, 3.0])(torch.tensor([[2.0, 1.0]]))
        tensor([[2., 1., 6., 3.]])
    """

    def __init__(self, networks: Sequence[nn.Module], scales: Sequence[float]) -> None:
        super().__init__()
        self.networks, self.scales = nn.ModuleList(networks), list(scales)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, h, w) to (B, Σ n * K)."""
        parts = zip(self.networks, self.scales, strict=True)
        return torch.cat([scale * network(images) for network, scale in parts], 1)


@dataclass(frozen=True)
class Exported:
    """An exported file or folder.

    Attributes:
        path: Its path.
        difference: Largest difference in log-probabilities from the trained network.
        size: Bytes.
        needs_mixmo: timm's name of the network in a ``timm`` folder, if timm has it only after ``import mixmo``.
    """

    path: Path
    difference: float
    size: int
    needs_mixmo: str | None = None


def export(
    run: TrainedRun | Sequence[TrainedRun],
    format: str,
    out: str | Path | None = None,
    options: ExportOptions | None = None,
    overwrite: bool = False,
    weights: Weights = "equal",
) -> Exported:
    """Export a run's network for other programs, whole or not at all, with a digest that detects damage.

    * ``timm``: a folder for ``timm.create_model("local-dir:FOLDER", pretrained=True)``, with class names and
      preprocessing.
    * ``safetensors``: the plain backbone's weights.
    * ``onnx``: the fused network as a graph with a dynamic batch size.

    Args:
        run: The run, or several for an ensemble with a common calibration (``onnx`` only).
        format: One of these.
        out: The file or folder; by default in the run's folder. An intact earlier export there is replaced.
        options: What an ONNX file computes.
        overwrite: Whether to also replace other files, damaged exports and those of earlier versions.
        weights: Of an ensemble's runs: ``equal``, or ``fitted`` on their common validation images.
    """
    options = options or ExportOptions()
    options.check(format)
    runs = [run] if isinstance(run, TrainedRun) else [*run]
    if runs[0].header.multi_label:
        single_label = {"softmax": options.softmax, "members": options.members, "weights": weights != "equal"}
        refuse_labels(str(runs[0].path), single_label)
    if len({each.path.resolve() for each in runs}) < len(runs):
        raise InputError("a run is named twice; an ensemble needs different networks.")
    if len(runs) > 1 and format != "onnx":
        raise InputError(f"format {format} holds one network; export several runs as onnx, or one by one.")
    if len(runs) > 1 and out is None:
        raise InputError("several runs are exported as one .onnx file; name it (out).")
    out = Path(out or runs[0].path / FORMATS[format])
    _check_destination(out, format, overwrite)
    check_weights(weights, [each.path for each in runs])
    several = len(runs) > 1
    spec, scales = _describe_ensemble(runs, weights, options) if several else (describe_run(runs[0]), [1.0])
    if format != "onnx" and spec.backbone.startswith(MODULE):
        raise InputError(
            f"format {format} is for timm's networks; export a {spec.backbone} as onnx, or save the weights of "
            "mixmo.fuse(run.network)."
        )
    if options.temperature and spec.calibration is None:
        raise InputError("temperature needs a calibration, from a run with a validation set.")
    if options.normalize and spec.data.own_transforms:
        raise InputError("normalize is for pixels from 0 to 255, but a Dataset prepared the images; leave it out.")
    if spec.data.own_transforms:
        logger.warning(
            "the network was trained on what the Dataset's own transforms return, and takes nothing else: the export "
            "describes no other preparation of images."
        )
    plain, net = _fuse_runs(runs, scales, spec, options.members)
    make_folder(out.parent)
    with assemble(out) as made:
        difference = _check_outputs(_write(made, format, plain, spec, options), net, spec)
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.iterdir()))
    unknown = format == "timm" and not is_known_to_timm(name := architecture(plain, spec.backbone))
    return Exported(out, difference, size, name if unknown else None)


def _fuse_runs(
    runs: Sequence[TrainedRun], scales: Sequence[float], spec: Spec, members: bool
) -> tuple[nn.Module, nn.Module]:
    """Return the fused network, of several runs in parallel, and the unfused one for comparison."""
    total = sum(run.net.num_members for run in runs)
    used = [(run, scale) for run, scale in zip(runs, scales, strict=True) if scale]  # as in weight_members
    nets = [copy_module(run.net).cpu() for run, _ in used]
    fused = [fuse(net, spec.input_size, "probabilities" if members else "logits").eval() for net in nets]
    plains = [net.backbone if isinstance(net, ProbabilityAverage) else net for net in fused]
    if len(runs) == 1:
        return plains[0], nets[0]
    share = sum(net.num_members for net in nets) / total
    factors = [share * scale for _, scale in used]
    # Weights of the runs' averages in the mean over all members.
    shares = [scale * net.num_members * len(nets) / total for net, (_, scale) in zip(nets, used, strict=True)]
    return ParallelNetworks(plains, factors if members else shares), ParallelNetworks(nets, shares)


def _describe_ensemble(
    runs: Sequence[TrainedRun], weights: Weights, options: ExportOptions
) -> tuple[Spec, list[float]]:
    """Return the description of an ensemble of runs, and the weight of each."""
    models, names = [open_run(run) for run in runs], [str(run.path) for run in runs]
    first = models[0].spec
    for model, name in zip(models[1:], names[1:], strict=True):
        for key in ("classes", "multi_label", "size", "data"):
            if getattr(model.spec, key) != getattr(first, key):
                what = "prepares images differently from" if key in ("size", "data") else "has different classes from"
                raise InputError(f"{name} {what} {names[0]}: they cannot be one file; export them one by one.")
    calibration, why = find_calibration(models, names, weights=weights)
    if calibration is None and (weights == "fitted" or options.temperature):
        raise InputError(f"the runs have no common {'weights' if weights == 'fitted' else 'temperature'}: {why}")
    scales = [1.0] * len(runs) if calibration is None else [*(calibration.weights or [1.0] * len(runs))]
    if isinstance(calibration, ClassCalibration):
        calibration = replace(calibration, weights=None)  # they are part of the graph
    used = [model.spec for model, scale in zip(models, scales, strict=True) if scale]
    backbone, members = " + ".join(spec.backbone for spec in used), sum(spec.num_members for spec in used)
    first = replace(first, backbone=backbone, options={}, num_members=members, mix_at=None)
    return replace(first, calibration=calibration), scales


def _write(made: Path, format: str, plain: nn.Module, spec: Spec, options: ExportOptions) -> Model:
    """Write a file or folder, and return the network that is read back from it."""
    if format == "timm":
        _write_timm(made, plain, spec)
        return TorchModel(*load_timm(made))
    if format == "safetensors":
        token = placeholder()
        made.write_bytes(safetensors.torch.save(copy_weights(plain), {SPEC: spec.to_json(**{DIGEST: token})}))
        write_digest(made, token)
        return TorchModel(*load_weights(made, download=True))  # the run's backbone is downloaded already
    net = ExportedNetwork(plain, spec, options).eval()
    settings = json.dumps(asdict(options) | {"temperature": net.temperature if options.temperature else None})
    _write_onnx(made, net, torch.zeros(2, spec.data.channels, *spec.input_size), spec, settings)
    return OnnxModel(made)


def _write_timm(folder: Path, plain: Any, spec: Spec) -> None:
    """Write the plain backbone in the format of timm's ``save_for_hf``, with the run's preprocessing."""
    channels, (height, width) = spec.data.channels, spec.input_size
    if height * spec.size[1] != width * spec.size[0]:  # crop_pct is one share for both sides
        logger.warning(
            "timm's own transform scales these images differently: it cannot crop %d×%d from %d×%d; prepare them with "
            "mixmo, or train with data.image_size of the shape of data.crop_size.", height, width, *spec.size,
        )  # fmt: skip
    elif any((whole - side) % 4 == 3 for whole, side in zip(spec.size, spec.input_size, strict=True)):
        logger.warning(
            "timm's own transform crops %d×%d from %d×%d one pixel further down and right: prepare images with mixmo.",
            height, width, *spec.size,
        )  # fmt: skip
    mean, std = (list(values) * (channels // len(values)) for values in (spec.data.mean, spec.data.std))
    copied = {key: value for key, value in dict(plain.pretrained_cfg).items() if key in TIMM_KEYS}
    if channels not in (1, 3):
        copied.pop("first_conv", None)  # timm would adapt weights of three channels, and before 1.0.31 lose these
    inputs = {"input_size": [channels, *spec.input_size], "crop_pct": _crop_share(height, spec.size[0]),
              "crop_mode": "center", "interpolation": spec.data.interpolation, "mean": mean, "std": std}  # fmt: skip
    content = {
        "architecture": architecture(plain, spec.backbone),
        "num_classes": len(spec.classes),
        "num_features": plain.num_features,
        "label_names": spec.classes,
        "model_args": spec.options | ({} if channels == 3 else {"in_chans": channels}),
        "pretrained_cfg": copied | inputs | {"num_classes": len(spec.classes)},
    }
    folder.mkdir()
    (folder / TIMM_CONFIG).write_text(json.dumps(content, indent=2), "utf-8")  # ASCII: names may be no valid Unicode
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(copy_weights(plain)))  # save_file hides it from other users
    write_description(folder, spec)


def _crop_share(side: int, whole: int) -> float:
    """Return timm's ``crop_pct`` for a crop of a side from a whole image: floor(side / crop_pct) is the whole.

    Example:
        >>> _crop_share(224, 256), 36 // _crop_share(36, 56), 36 // (36 / 56)
        (0.875, 56.0, 55.0)
    """
    share = side / whole
    while share and side / share < whole:
        share = math.nextafter(share, 0)
    return share


def _write_onnx(file: Path, net: nn.Module, example: Tensor, spec: Spec, options: str) -> None:
    """Write a graph with a dynamic batch size, with the network's description, its options in JSON, and a digest.

    ``net`` is in evaluation mode; ``example`` is a batch of its images.
    """
    onnx, *_ = (import_extra(name, "onnx", f"ONNX needs {name}") for name in ("onnx", "onnxscript", "onnxruntime"))
    outputs = len(result) if isinstance(result := net(example), tuple) else 1
    with explain_errors("the network cannot be written as ONNX"), _quiet():
        program = torch.onnx.export(
            net, (example,), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=["images"], output_names=["answers", "members", "mutual_information"][:outputs],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )  # fmt: skip
        model = program.model_proto  # type: ignore[union-attr]
    token = placeholder()
    onnx.helper.set_model_props(model, {"options": options, SPEC: spec.to_json(**{DIGEST: token})})
    file.write_bytes(model.SerializeToString())
    write_digest(file, token)


_SILENCE = threading.Lock()
"""Held while messages are silenced, which concerns the whole process."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's and onnxruntime's messages about every export."""
    with _SILENCE:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)


def copy_weights(net: nn.Module) -> dict[str, Tensor]:
    """Return copies of a network's tensors for safetensors, which refuses tensors that share memory."""
    return {name: each.cpu().clone(memory_format=torch.contiguous_format) for name, each in net.state_dict().items()}


def architecture(plain: Any, backbone: str) -> str:
    """Return timm's name of a backbone, also if ``backbone`` is a location (``local-dir:…``, ``hf-hub:…``)."""
    return str(plain.pretrained_cfg.get("architecture") or backbone).split(".")[0]


def is_known_to_timm(name: str) -> bool:
    """Return whether timm has a backbone by that name that mixmo does not register."""
    return timm.is_model(name) and not timm.model_entrypoint(name).__module__.startswith("mixmo.")


@torch.no_grad()
def _check_outputs(model: Model, net: nn.Module, spec: Spec) -> float:
    """Return the largest difference in log-probabilities between a file and the trained network, on random images."""
    generator = torch.Generator().manual_seed(0)
    log_probabilities = logsigmoid if spec.multi_label else partial(torch.log_softmax, dim=1)
    largest = 0.0
    for count in (1, 3):
        images = torch.randint(256, (count, *spec.size, spec.data.channels), generator=generator, dtype=torch.uint8)
        expected = log_probabilities(net(*spec.views(images)).unflatten(1, (-1, len(spec.classes))).mean(1))
        if not expected.isfinite().all():
            raise InputError("the network's outputs are not finite; its training has diverged.")
        actual = log_probabilities(model.logits(images).mean(1))
        difference = float((actual - expected).abs().max())
        if not difference <= TOLERANCE * (1 + float(expected.abs().max())):  # also refuses NaN
            raise InputError(f"the export does not match the network: log-probabilities differ by {difference:.3g}.")
        largest = max(largest, difference)
    return largest


def _check_destination(out: Path, format: str, overwrite: bool) -> None:
    """Refuse to replace anything but an intact earlier export, unless asked to."""
    if format != "timm":
        check_output_path(out, out.is_file() and is_whole_export(out), overwrite)
        return
    names = {file.name for file in out.iterdir()} if out.is_dir() else None
    replaceable = names == set() or (names == TIMM_FILES and (overwrite or is_whole_export(out)))
    check_output_path(out, replaceable, overwrite, folder=True)
