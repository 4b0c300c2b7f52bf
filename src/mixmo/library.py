"""``mixmo.fit`` and ``mixmo.Run``: training in one call, and a trained run."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from lightning.pytorch.callbacks import Callback
from torch import nn
from typing_extensions import Unpack

from mixmo.config.keywords import FitSettings, name_settings
from mixmo.config.plan import Plan, make_plan
from mixmo.config.recipes import Recipe, load_recipe
from mixmo.data.given import GIVEN, DatasetImages, channels_of, gives_floats, open_given, with_groups
from mixmo.data.messages import start_over
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
from mixmo.evaluation.results_file import evaluate_run
from mixmo.launching import is_first
from mixmo.loading import MODULE
from mixmo.network import MixMo
from mixmo.reporting.run_page import write_report
from mixmo.runs import RunFolder
from mixmo.training.fit import fit as train_run
from mixmo.training.resuming import check_unchanged

PREPARING = ("image_size", "crop_size", "augmentation", "policy", "erasing")
"""Settings of ``data`` that do not apply to images prepared by a Dataset."""


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

    Images are a map-style Dataset of (image, label), a pair of arrays or tensors (images, labels), a dataset of the
    Hugging Face library, or a LightningDataModule's. PIL images and uint8 are kept on the device where they fit, and
    augmented there (``flip``, ``padding`` …). A Dataset whose own transforms are random, or give floating-point images,
    is asked again for each copy, and the network takes what it gives. Labels are class numbers from 0, or names; images
    with several have an array (K,) of 0 and 1, or a list of numbers or names, and are trained with binary
    cross-entropy (docs/multi-label.md).

    Args:
        model: A timm name, a module whose head has as many outputs as there are classes, or a :class:`MixMo`, which can
            name the stem and head of your own module; ``None`` takes the recipe's, and so do ``train``,
            ``num_members`` and ``epochs``.
        train: Training images, or the name of a dataset as recipes have it (``folder:photos``, ``torch/cifar100`` …),
            which has its own validation and test images.
        val: Validation images; ``None`` holds out a share of the training images (``validation``, 0.1 by default).
        test: Test images, for :meth:`Run.test`; they choose nothing. With ``folds`` a fold of the training images.
        groups: A number or name for each training image that is given: images of one group, such as a patient or a
            burst of photos, are never divided between training, validation and a fold.
        num_members: M, 2 without a recipe; 1 is the ordinary network.
        epochs: How often each image is shown, times ``batch_repetition``.
        recipe: The name of a shipped recipe, or a YAML file: arguments and keywords override its
            settings. With your own images it keeps all that does not depend on its dataset.
        out: The run's folder; ``None`` keeps it in a temporary one, for as long as the :class:`Run` lives.
        resume: Resume the run that is in the folder, if there is one, exactly where it was.
        progress: Whether a bar is shown, in a terminal or a notebook, or a line for each epoch elsewhere.
        callbacks: Lightning callbacks.
        **settings: Every other setting by name, such as ``lr``, ``batch_size`` or ``mixer_kind``
            (:class:`~mixmo.config.keywords.FitSettings` lists them).

    Returns:
        The trained run.

    Raises:
        InputError: in one sentence, before training starts, if something given does not fit.
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
    start_over()
    if recipe is None:
        _check_given(model, train, epochs)
        num_members = 2 if num_members is None else num_members
    own = name_settings(settings) | {"trainer.enable_progress_bar": progress}
    if epochs is not None:
        own["trainer.max_epochs"] = epochs
    _name_model(own, model, num_members)
    name, sources = _open_sources(train, val, test)
    if groups is not None:
        if sources is None:
            raise InputError("groups go with training images that are given; a table has its own in a column `group`.")
        sources["train"] = with_groups(sources["train"], groups)
    if name is not None:
        own["data.name"] = name
    if sources is not None:
        _inherit_from_images(own, sources)
    below = {} if recipe is None else _without_images(load_recipe(recipe), sources)
    module = model if isinstance(model, nn.Module) else None
    temporary = tempfile.TemporaryDirectory(prefix="mixmo-") if out is None else None
    folder = RunFolder(Path(temporary.name, "run") if temporary else str(out))
    resumed = resume and folder.config_file.is_file()
    plan = make_plan(below, own)
    if plan.settings.data.folds and "test" in (sources or ()):
        raise InputError("test and folds are both given, but one of the folds is the test set; leave one of them out.")
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
    """Train a plan, and save the calibration of its checkpoints; return whether there was anything left to train.

    Args:
        plan: What to train (:func:`mixmo.config.plan.make_plan`).
        folder: The run's folder.
        resume: Resume the run in it; one that is finished is only calibrated.
        data: Its images, where they are open; they are opened once.
        callbacks: Lightning callbacks.
        module: Its backbone, where a program gives it.
        accept_changes: Resume with settings that have changed.
    """
    data = data or DataModule(plan.settings.data, plan.settings.seed, check=True)
    first = is_first()
    unfinished = not resume or folder.finished_epochs() != plan.epochs
    if unfinished:
        train_run(plan, folder, resume, callbacks, accept_changes, data, module)
    elif not accept_changes:
        check_unchanged(folder, plan)
    if first:
        calibrate_run(folder, plan.settings, data, module)
    return unfinished


class Run(TrainedRun):
    """A trained run: its folder and network, to test, predict and export.

    Args:
        path: The run's folder.
        checkpoint: ``last``, or ``best`` on the validation set.
        model: The backbone of a run that was trained with a module of your own.
        download: Whether the run's backbone and datasets may be downloaded.

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
        """A row for each epoch, as ``metrics.csv`` has it; ``pandas.DataFrame(run.metrics)`` makes a table of it."""
        return self.folder.read_metrics()

    @property
    def report(self) -> Path:
        """The page ``report.html``, which :meth:`test` writes."""
        file = self.path / "report.html"
        if not file.is_file():
            self.test()
        return file

    def test(self, images: Any = None, **options: Any) -> dict[str, float]:
        """Evaluate the network; write ``test.json`` and ``report.html`` into the run's folder.

        Args:
            images: Test images, as :func:`fit` takes them; ``None`` takes those that the run was given or names.
            **options: Fields of :class:`~mixmo.evaluation.results.EvaluationOptions`: ``ood``, ``corruptions`` ….

        Returns:
            The metrics, by the keys of ``test.json``.

        Raises:
            InputError: if there are no test images, or their classes differ.
        """
        if images is not None:
            source = open_given(images, "test").with_classes(self.header.classes, "the test set")
            known = dict(self.given.given or {}) if self.given is not None else {}
            self.given = DataModule(self.settings.data, self.settings.seed, given=known | {"test": source})
            self.__dict__.pop("data", None)  # the previous images
        own: dict[str, Any] = {"checkpoint": self.checkpoint, "download": self.download}
        chosen = EvaluationOptions(**own | options)
        trained = self.reopen(chosen.checkpoint, chosen.download)
        result = evaluate_run(trained, chosen)
        write_report(trained, result)
        return result.flat()

    def predict(self, images: AnyImage | Sequence[AnyImage], **options: Any) -> ImagePredictions | LabelPredictions:
        """Return classes, calibrated confidence and uncertainty of images; with several labels, those above thresholds.

        Args:
            images: One or several: paths, PIL images, arrays, tensors; for a run whose Dataset prepared its images,
                floating-point tensors (N, C, H, W), as the Dataset gives them.
            **options: Arguments of :class:`~mixmo.Predictor`: ``coverage``, ``max_error_rate`` ….

        Returns:
            Predictions; confidence and sets are calibrated where the run held out validation images.

        Raises:
            InputError: if one cannot be read; it is named.
        """
        return Predictor(self, **options)(images)

    def export(self, format: str, out: str | Path | None = None, overwrite: bool = False, **options: Any) -> Exported:
        """Write the network as a file or folder that other programs open (:func:`mixmo.deploy.export.export`).

        Args:
            format: ``timm``, ``safetensors`` or ``onnx``.
            out: Where; ``None`` is in the run's folder.
            overwrite: Whether to replace a file that mixmo did not export.
            **options: Fields of :class:`~mixmo.deploy.export.ExportOptions`: ``softmax``, ``members`` ….

        Returns:
            Its path, its size and the largest difference of its outputs from the network's.

        Raises:
            InputError: if the format is unknown or does not support an option, the network cannot be fused, or other
                files are in the way.
        """
        place = None if out is None else Path(out)
        return export(self, format, place, ExportOptions(**options), overwrite)


def _check_given(model: Any, train: Any, epochs: int | None) -> None:
    """Refuse a call without what only a recipe could replace."""
    given = {"model": model, "train": train, "epochs": epochs}
    if missing := [name for name, value in given.items() if value is None]:
        raise InputError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; give them, or recipe=…."
        )


def _name_model(own: dict[str, Any], model: str | nn.Module | None, num_members: int | None) -> None:
    """Set the settings that follow from a given model."""
    members = model.num_members if isinstance(model, MixMo) else num_members
    if members is not None:
        own["model.num_members"] = members
    if model is not None:
        module = model.backbone if isinstance(model, MixMo) else model
        own["model.backbone"] = module if isinstance(module, str) else f"{MODULE}{type(module).__name__}"


def _without_images(recipe: Recipe, sources: Mapping[str, Source] | None) -> Recipe:
    """Return a recipe without the settings of its own images, if others are given."""
    if sources is None or not isinstance(recipe.get("data"), dict):
        return recipe
    dropped = {"images_per_class", "own_transforms"} | ({"validation"} if "validation" in sources else set())
    return recipe | {"data": {key: value for key, value in recipe["data"].items() if key not in dropped}}


def _open_sources(train: Any, val: Any, test: Any) -> tuple[str | None, dict[str, Source] | None]:
    """Return the name of the dataset, if one is named, and the sources given in its place."""
    if val is not None or test is not None:
        if train is None:
            raise InputError("val or test is given without train; give train as well.")
        if isinstance(train, str | LightningDataModule):
            what = f"{train!r}, a dataset by name" if isinstance(train, str) else "a LightningDataModule"
            raise InputError(f"train is {what}, which has its own val and test; leave them out.")
    if train is None or isinstance(train, str):
        return train, None
    if isinstance(train, LightningDataModule):
        train, val, test = _of_module(train)
    given = {"train": train, "validation": val, "test": test}
    for one, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        if given[one] is not None and given[one] is given[other]:
            raise InputError(f"{one} is the same object as {other}; give different images.")
    sources = {split: open_given(each, split) for split, each in given.items() if each is not None}
    if len(classes := sources["train"].classes) < 2:
        found = f"one class only ({classes[0]})" if classes else "no class, since no image has a label"
        raise InputError(f"train has {found}; a classifier needs two or more.")
    floats = {split: gives_floats(source) for split, source in sources.items()}
    if len(set(floats.values())) > 1:
        raise InputError(
            f"{' and '.join(split for split, is_float in floats.items() if is_float)} images are floating point, the "
            "others are not; give all of them in one form."
        )
    return GIVEN, sources


def _of_module(module: LightningDataModule) -> tuple[Any, Any, Any]:
    """Return the training, validation and test datasets of a LightningDataModule."""
    module.prepare_data()
    module.setup("fit")
    found = [module.train_dataloader()]
    for name, stage in (("val_dataloader", "fit"), ("test_dataloader", "test")):
        overridden = getattr(type(module), name) is not getattr(LightningDataModule, name)
        if overridden and stage == "test":
            module.setup("test")
        found.append(getattr(module, name)() if overridden else None)
    return tuple(getattr(loader, "dataset", loader) for loader in found)  # type: ignore[return-value]


def _inherit_from_images(own: dict[str, Any], sources: Mapping[str, Source]) -> None:
    """Set the settings that follow from given images: their channels, and whether a Dataset prepares them."""
    train = sources["train"]
    if "data.channels" not in own:
        own["data.channels"] = channels_of(train)
    own.setdefault("data.multi_label", train.multi_label)
    if not any(isinstance(each.images, DatasetImages) and each.images.prepared for each in sources.values()):
        return
    floats = gives_floats(train)
    for key in (*PREPARING, *(["window"] if floats else [])):
        if (value := own.get(f"data.{key}")) and value not in ("none", "crop"):
            why = "are floating point" if floats else "come from a Dataset with random transforms of its own"
            raise InputError(
                f"{key} is {value!r}, but the images {why}, and the network takes them as they are; leave it out, or "
                "give integers or PIL images without such transforms."
            )
    own["data.own_transforms"] = True
    own.setdefault("data.image_size", None)  # also with a recipe, whose size is that of its own images
    own.setdefault("data.crop_size", None)
    for source in sources.values():  # a validation set without random transforms is treated the same way
        if isinstance(source.images, DatasetImages):
            source.images.prepared = True
    if floats:
        own.setdefault("data.mean", [0.0])
        own.setdefault("data.std", [1.0])


@contextmanager
def _show_log(progress: bool) -> Iterator[None]:
    """Log training to standard error, unless the program handles logs itself or wants no progress."""
    log = logging.getLogger("mixmo")
    if not progress or log.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(), log.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
