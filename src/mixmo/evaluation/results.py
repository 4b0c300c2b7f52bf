"""Everything that is known of one or several runs, or of another program's predictions, on their test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mixmo.config.hardware import PRECISIONS
from mixmo.errors import InputError, one_of
from mixmo.evaluation.evaluate import basic_figures, evaluate
from mixmo.evaluation.predictions import Predictions, joined, predict, read_predictions
from mixmo.evaluation.robustness import Corrupted, corruption_figures, mean_figures
from mixmo.metrics import OutOfDistribution, fit_temperature
from mixmo.metrics.chunks import mean_logits
from mixmo.runs import CHECKPOINTS, Run

MADE = "made"
"""Asks for corruptions made from the test images, where a folder could be named."""


@dataclass(frozen=True)
class Options:
    """How runs are judged.

    Args:
        checkpoint: ``last``, or ``best`` on the validation set.
        precision: ``32-true``, or ``bf16-mixed``, which is faster where the device has such units.
        ood: Datasets whose images are of none of the classes.
        corruptions: ``made`` from the test images, or the folder of CIFAR-10-C's or CIFAR-100-C's files.
        refresh: Predict anew, whatever is kept.
        download: Whether what the networks are built from may be downloaded.

    Raises:
        InputError: if the checkpoint or the precision is unknown.
    """

    checkpoint: str = "last"
    precision: str = "32-true"
    ood: Sequence[str] = ()
    corruptions: str | None = None
    refresh: bool = False
    download: bool = False

    def __post_init__(self) -> None:
        one_of(self.precision, PRECISIONS, "precision")
        one_of(self.checkpoint, CHECKPOINTS, "checkpoint")


@dataclass(frozen=True)
class Judgement:
    """What was found out.

    Attributes:
        tested: Predictions on the test set.
        figures: Those of :func:`mixmo.evaluate`; ``temperature``, ``nll_scaled`` and ``ece_scaled`` where one run has a
            validation set; ``ood/DATASET/SCORE/…`` (:class:`mixmo.metrics.OutOfDistribution`); ``corruption/…``
            (:func:`mixmo.evaluation.robustness.mean_figures`).
        strangers: Predictions on other datasets, by name.
        corrupted: Figures of every corruption and severity; ``None`` where they were not asked for.
    """

    tested: Predictions
    figures: dict[str, float]
    strangers: dict[str, Predictions] = field(default_factory=dict)
    corrupted: Corrupted | None = None


def judge_runs(runs: Sequence[Run], options: Options) -> Judgement:
    """Judge runs, as one ensemble of all their members.

    Args:
        runs: One or several.
        options: How.

    Raises:
        MissingError: if a run, its checkpoint or a dataset is missing.
        InputError: if a checkpoint is damaged or of another network, or the runs do not fit each other.
    """
    names = [str(run.path) for run in runs]

    def predictions(dataset: str) -> Predictions:
        how = options.checkpoint, options.precision, options.refresh, options.download
        return joined([predict(run, dataset, *how) for run in runs], names)

    tested = predictions("test")
    strangers = {dataset: predictions(dataset) for dataset in options.ood}
    figures = evaluate(tested.logits, tested.targets)
    if len(runs) == 1 and runs[0].config()["data"]["validation"]:
        figures |= scaled_figures(tested, predictions("validation"))
    for dataset, found in strangers.items():
        figures |= {f"ood/{dataset}/{key}": value for key, value in ood_figures(tested, found).items()}
    corrupted = None
    if options.corruptions is not None:
        folder = None if options.corruptions == MADE else options.corruptions
        how = options.checkpoint, options.precision, folder, options.refresh, options.download
        corrupted = corruption_figures(runs, tested.targets, *how)
        figures |= mean_figures(corrupted.kinds)
    return Judgement(tested, figures, strangers, corrupted)


def judge_predictions(file: str | Path) -> Judgement:
    """Judge predictions that another program saved (:func:`mixmo.evaluation.predictions.read_predictions`).

    Args:
        file: The ``.npz`` file.

    Raises:
        MissingError: if there is no such file.
        InputError: if it holds no predictions, or such that their average is not finite.
    """
    found = read_predictions(file)
    try:
        return Judgement(found, evaluate(found.logits, found.targets))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def scaled_figures(tested: Predictions, validation: Predictions) -> dict[str, float]:
    """Return the figures of the logit average on the test set, scaled by the temperature fitted on validation data."""
    temperature = fit_temperature(mean_logits(validation.logits), validation.targets)
    figures = basic_figures(mean_logits(tested.logits) / temperature, tested.targets)
    return {"temperature": temperature, "nll_scaled": figures["nll"], "ece_scaled": figures["ece"]}


def ood_figures(tested: Predictions, strangers: Predictions) -> dict[str, float]:
    """Return how well the members tell the test images from others."""
    metric = OutOfDistribution()
    metric.update(tested.logits, out=False)
    metric.update(strangers.logits, out=True)
    return {name: value.item() for name, value in metric.compute().items()}


def class_figures(tested: Predictions) -> dict[str, dict[str, float]]:
    """Return for each class the number of its images, and accuracy and likelihood of the logit average on them."""
    samples, found = tested.average(), {}
    for number, name in enumerate(tested.classes):
        own = tested.targets == number
        accuracy, nll = samples.right[own].mean().item(), samples.nll[own].mean().item()
        found[name] = {"images": int(own.sum()), "accuracy": accuracy, "nll": nll}
    return found
