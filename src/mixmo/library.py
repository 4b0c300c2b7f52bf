"""``mixmo.fit``, training in one call, and ``mixmo.Run``, a trained run."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from typing_extensions import Unpack

from mixmo.config.keywords import FitSettings, name_settings
from mixmo.config.plan import Plan, flatten, make_plan
from mixmo.config.recipes import Recipe, load_recipe
from mixmo.data.given import add_groups
from mixmo.data.given_splits import open_sources, set_data, warn_of_preprocessing, warn_of_random_validation
from mixmo.data.messages import log_level, reset_warnings
from mixmo.data.module import DataModule
from mixmo.data.sources import Source
from mixmo.deploy.export import Exported, ExportOptions, export
from mixmo.deploy.image_predictions import ImagePredictions, LabelPredictions
from mixmo.deploy.images import AnyImage
from mixmo.deploy.predictor import Predictor
from mixmo.errors import InputError
from mixmo.evaluation.calibration import calibrate_run
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.results import EvaluationOptions
from mixmo.evaluation.results_file import evaluate_run, tested_checkpoint
from mixmo.launching import count_devices, is_first
from mixmo.loading import MODULE
from mixmo.network import MixMo
from mixmo.reporting.run_page import write_report
from mixmo.runs import RunFolder, fill_open_settings
from mixmo.training.fit import fit as train_run
from mixmo.training.resuming import check_finished_data, check_unchanged

log = logging.getLogger("mixmo")


def fit(
    model: str | nn.Module | None = None,
    train: Any = None,
    val: Any = None,
    test: Any = None,
    *,
    groups: Any = None,
    num_members: int | None = None,
    epochs: int | None = None,
    recipe: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    **settings: Unpack[FitSettings],
) -> Run:
    """Train an image classifier as an ensemble of M members that costs one network.

    Images are a map-style Dataset of (image, label), a pair of arrays or tensors (images, labels), a Hugging Face
    dataset, or a LightningDataModule. PIL images and uint8 stay in device memory if they fit, and are augmented there
    (``flip``, ``padding`` …). A Dataset with random transforms, or with floating-point images, is read again for each
    copy of an image, which goes to the network unchanged. Labels are class numbers from 0, or names; for multi-label
    images, arrays (K,) of 0 and 1 or lists of numbers or names, which are trained with binary cross-entropy
    (docs/multi-label.md).

    Args:
        model: A timm name, a module whose head has one output per class (trained if ``pretrained=True``), or a
            :class:`MixMo`, which can name the stem and head of your own module. Modules are copied. ``None`` uses the
            recipe's; the same holds for ``train``, ``num_members`` and ``epochs``.
        train: Training images, or a dataset's name as in recipes (``folder:photos``, ``torch/cifar100`` …), which
            comes with validation and test images.
        val: Validation images; ``None`` holds out a share of the training images (``validation``, 0.1 by default).
        test: Test images for :meth:`Run.test`, never used for selection; with ``folds`` a fold is the test set.
        groups: A number or name per training image. Images of one group, such as a patient or a burst of photos, are
            never split between training, validation and folds.
        num_members: M, 2 without a recipe; 1 is the ordinary network.
        epochs: Epochs; each shows every image ``batch_repetition`` times.
        recipe: The name of a shipped recipe, or a YAML file; arguments and keywords override its settings. With your
            own images, its ``images_per_class`` is dropped, and its sizes, mean and std apply, with a warning.
        out: The run's folder; ``None`` uses a temporary one that is deleted with the :class:`Run`.
        resume: Resume the run in the folder, if there is one, exactly where it stopped.
        progress: Show a progress bar in a terminal or notebook, elsewhere a line per epoch.
        callbacks: Lightning callbacks.
        **settings: Any other setting by keyword, such as ``lr``, ``batch_size`` or ``mixer_kind``
            (:class:`~mixmo.config.keywords.FitSettings` lists them).

    Returns:
        The trained run.

    Raises:
        InputError: before training starts, if an argument is invalid.
        TrainingError: if the loss is not finite.

    Example:
        >>> import torch
        >>> images, labels = torch.randint(256, (40, 8, 8, 1), dtype=torch.uint8), torch.arange(40) % 2
        >>> run = fit("wide_resnet10_1", (images, labels), epochs=1, batch_size=8, lr=0.1, progress=False)
        >>> run.network(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 2])
        >>> fit(recipe="digits-cut", epochs=1, limit_train_batches=1, progress=False).network.num_members
        2
    """
    reset_warnings()
    if recipe is None:
        _check_arguments(model, train, epochs)
    _check_program(model, callbacks)
    if resume and out is None:
        raise InputError("resume is true, but out is missing; give the folder of the run to resume.")
    overrides = name_settings(settings) | {"trainer.enable_progress_bar": progress}
    if epochs is not None:
        overrides["trainer.max_epochs"] = epochs
    _set_model(overrides, model, num_members)
    base = {} if recipe is None else load_recipe(recipe)
    on_error = (dict(flatten(base)) | overrides).get("data.on_error", "raise")
    name, sources = open_sources(train, val, test, on_error)
    if groups is not None:
        if sources is None:
            raise InputError("groups needs training images in train; a table has its groups in the column `group`.")
        sources["train"] = add_groups(sources["train"], groups)
    if name is not None:
        overrides["data.name"] = name
    if sources is not None:
        if overrides.get("data.columns"):
            raise InputError("columns is for datasets by name; rename the columns of images passed from Python.")
        set_data(overrides, sources)
    elif overrides.get("data.own_transforms"):
        raise InputError("own_transforms is for a Dataset passed from Python; leave it out.")
    base = _drop_dataset_settings(base, sources)
    if sources is not None:
        warn_of_preprocessing(recipe, base, overrides)
    module = model if isinstance(model, nn.Module) else None
    temporary = tempfile.TemporaryDirectory(prefix="mixmo-") if out is None else None
    folder = RunFolder(Path(temporary.name, "run") if temporary else str(out))
    if temporary:
        folder.how_to_resume = "only a run with out=… can be resumed"
    elif sources is not None or module is not None:
        folder.how_to_resume = f"mixmo.fit(…, out={str(out)!r}, resume=True) resumes it"
        folder.option = "out"
    resumed = resume and folder.config_file.is_file()
    if resumed:
        base = fill_open_settings(base, folder.resolved())  # as on the first machine
    plan = make_plan(base, overrides)
    if sources is not None and plan.settings.data.validation:
        warn_of_random_validation(sources)
    if temporary and math.prod(count_devices(plan.settings.trainer.devices, plan.settings.trainer.num_nodes)) > 1:
        raise InputError("out is missing: a run on several devices needs a folder for all of them; set out=….")
    if plan.settings.data.folds and "test" in (sources or ()):
        raise InputError("test and folds are both set, but one of the folds is the test set; leave one of them out.")
    data = DataModule(plan.settings.data, plan.settings.seed, check=True, given=sources)
    with _show_log(progress):
        train_plan(plan, folder, resumed, data, callbacks, module)
    run = Run(folder.path, model=module)
    run.given, run._temporary = None if sources is None else data, temporary
    return run


def train_plan(
    plan: Plan,
    folder: RunFolder,
    resume: bool = False,
    data: DataModule | None = None,
    callbacks: Sequence[Callback] = (),
    module: nn.Module | None = None,
    accept_changes: bool = False,
) -> bool:
    """Train a plan and save the calibration of its checkpoints; return whether any epoch remained to be trained.

    Args:
        plan: The checked settings (:func:`mixmo.config.plan.make_plan`).
        folder: The run's folder.
        resume: Resume the run in it; a finished one is only checked for changes and calibrated.
        data: The images; ``None`` opens those that the plan names.
        callbacks: Lightning callbacks.
        module: A backbone in place of the one that the plan names.
        accept_changes: Resume although settings have changed.
    """
    data = data or DataModule(plan.settings.data, plan.settings.seed, check=True)
    first = is_first()
    unfinished = not resume or folder.finished_epochs() != plan.epochs
    if unfinished:
        train_run(plan, folder, resume, callbacks, accept_changes, data, module)
    else:
        if not accept_changes:
            check_unchanged(folder, plan)
        check_finished_data(folder, data)
    if first:
        try:
            calibrate_run(folder, plan.settings, data, module)
        except InputError as error:
            if not unfinished:
                raise
            log.warning("%s is trained, but confidence cannot be calibrated: %s", folder.path, error)
    return unfinished


class Run(TrainedRun):
    """A trained run: tests, predicts with and exports its network.

    Args:
        path: The run's folder.
        checkpoint: ``last``, or ``best`` on the validation set.
        model: What was trained, if that was a module of your own or a MixMo around it.
        download: Whether the backbone and datasets may be downloaded.

    Raises:
        MissingError: if there is no such run.

    Example:
        >>> trained = fit(recipe="digits-cut", epochs=1, limit_train_batches=2, progress=False)
        >>> run = Run(trained.path)
        >>> run.network.num_members, len(run.metrics), 0 < run.test()["accuracy"] < 1
        (2, 1, True)
        >>> run.export("safetensors").path.name, run.report.name
        ('model.safetensors', 'report.html')
    """

    def __init__(
        self, path: str | Path, checkpoint: str = "last", model: nn.Module | None = None, download: bool = False
    ) -> None:
        super().__init__(RunFolder(path), checkpoint, download, "download=True", module=model)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``, one per epoch; ``pandas.DataFrame(run.metrics)`` makes a table of them."""
        return self.folder.read_metrics()

    @property
    def report(self) -> Path:
        """The page ``report.html``, written by :meth:`test` if missing or of another checkpoint."""
        file = self.path / "report.html"
        if not file.is_file() or tested_checkpoint(self) != self.folder.digest(self.checkpoint):
            self.test()
        return file

    def test(self, images: Any = None, **options: Any) -> dict[str, float]:
        """Evaluate the network; write ``test.json`` and ``report.html`` into the run's folder.

        Args:
            images: Other test images, prepared like the training images: a Dataset, a pair of arrays (images, labels)
                or a Hugging Face dataset; ``None`` uses the run's own.
            **options: Fields of :class:`~mixmo.evaluation.results.EvaluationOptions`: ``ood``, ``corruptions`` ….

        Returns:
            The metrics by the keys of ``test.json``.

        Raises:
            InputError: if there are no test images, or their classes, type or size differ from the training images'.
        """
        defaults: dict[str, Any] = {"checkpoint": self.checkpoint, "download": self.download}
        settings = EvaluationOptions(**defaults | options)
        trained = self.reopen(settings.checkpoint, settings.download)
        if trained.given is not None:
            trained.given.forget_fingerprints()
        trained = trained if images is None else trained.with_test_images(images)
        result = evaluate_run(trained, settings)
        write_report(trained, result)
        return result.flat()

    def predict(self, images: AnyImage | Sequence[AnyImage], **options: Any) -> ImagePredictions | LabelPredictions:
        """Predict classes, calibrated confidence and uncertainty; for multi-label runs, labels above thresholds.

        Args:
            images: One or several paths, PIL images, arrays or tensors; for a run whose Dataset prepared the images,
                floating-point tensors (N, C, H, W), prepared in the same way.
            **options: Arguments of :class:`~mixmo.Predictor`: ``coverage``, ``max_error_rate`` ….

        Returns:
            Predictions; confidence and sets are calibrated if the run has validation images.

        Raises:
            InputError: if an image cannot be read.
        """
        return Predictor(self, **options)(images)

    def export(self, format: str, out: str | Path | None = None, overwrite: bool = False, **options: Any) -> Exported:
        """Export the network for other programs (:func:`mixmo.deploy.export.export`).

        Args:
            format: ``timm``, ``safetensors`` or ``onnx``.
            out: The file or folder to write; ``None`` writes into the run's folder.
            overwrite: Whether to replace a file that mixmo did not export.
            **options: Fields of :class:`~mixmo.deploy.export.ExportOptions`: ``softmax``, ``members`` ….

        Returns:
            Its path, its size and the largest difference of its outputs from the network's.

        Raises:
            InputError: if the format is unknown or does not support an option, the network cannot be fused, or other
                files are in the way.
        """
        path = None if out is None else Path(out)
        return export(self.reopen(), format, path, ExportOptions(**options), overwrite)


def _check_arguments(model: Any, train: Any, epochs: int | None) -> None:
    """Refuse a call without a recipe that lacks a required argument."""
    arguments = {"model": model, "train": train, "epochs": epochs}
    if missing := [name for name, value in arguments.items() if value is None]:
        raise InputError(f"missing: {', '.join(missing)}; give all of them, or recipe=….")


def _check_program(model: Any, callbacks: Any) -> None:
    """Refuse what a program gets wrong and Lightning or torch would report after the run has begun."""
    if not isinstance(callbacks, Sequence) or not all(isinstance(each, Callback) for each in callbacks):
        raise InputError(f"callbacks is {callbacks!r}; give a list of Lightning's callbacks.")
    if isinstance(inner := getattr(model, "_orig_mod", getattr(model, "module", None)), MixMo):
        raise InputError(f"model is a {type(model).__name__} of a {type(inner).__name__}; pass the MixMo itself.")
    if isinstance(model, nn.Module) and any(each.dtype != torch.float32 for each in model.parameters()):
        raise InputError("model has weights that are not float32; convert it by model.float(), and set precision.")
    if not torch.is_grad_enabled():
        raise InputError("gradients are switched off here (no_grad or inference_mode), but training needs them.")


def _set_model(overrides: dict[str, Any], model: str | nn.Module | None, num_members: int | None) -> None:
    """Set the settings that follow from the model."""
    if num_members is not None:
        overrides["model.num_members"] = num_members
    if isinstance(model, MixMo):
        for key in ("num_members", "mix_at"):
            value, own = overrides.get(f"model.{key}"), getattr(model, key)
            if value is not None and value != own:
                raise InputError(f"{key} is {value!r}, but that of the MixMo is {own!r}; leave it out.")
            overrides[f"model.{key}"] = own
    if model is not None:
        module = model.backbone if isinstance(model, MixMo) else model
        overrides["model.backbone"] = module if isinstance(module, str) else f"{MODULE}{type(module).__name__}"


def _drop_dataset_settings(recipe: Recipe, sources: Mapping[str, Source] | None) -> Recipe:
    """Drop the settings that only suit the recipe's dataset, if other images are given."""
    if sources is None or not isinstance(recipe.get("data"), dict):
        return recipe
    dropped = {"images_per_class", "own_transforms"} | ({"validation"} if "validation" in sources else set())
    return recipe | {"data": {key: value for key, value in recipe["data"].items() if key not in dropped}}


@contextmanager
def _show_log(progress: bool) -> Iterator[None]:
    """Log to standard error if ``progress`` is set and the program has no log handlers."""
    if not progress or log.hasHandlers():
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    try:
        with log_level(logging.INFO, "mixmo"):
            yield
    finally:
        log.removeHandler(handler)
