"""``mixmo test``: evaluate runs or another program's predictions."""

from __future__ import annotations

from dataclasses import asdict, field, replace
from pathlib import Path

from mixmo.cli.options import Command, Word
from mixmo.errors import InputError
from mixmo.escaping import printable
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.results import (
    EvaluationOptions,
    EvaluationResult,
    class_metrics,
    evaluate_predictions,
    evaluate_runs,
)
from mixmo.evaluation.results_file import with_earlier, write_results
from mixmo.reporting.advice import advice
from mixmo.reporting.run_page import write_report
from mixmo.reporting.tables import calibration_sentence, evaluation_tables
from mixmo.runs import RunFolder
from mixmo.validation import Boolean, Place, settings_class


@settings_class()
class Options:
    """What is evaluated."""

    runs: Word[list[str]] = field(default_factory=list)
    """Runs' folders; several are evaluated as one ensemble."""
    predictions: Place | None = None
    """An .npz file in place of runs."""
    per_class: Boolean = False
    """Evaluate each class as well."""


COMMAND = Command(
    "test", "Evaluate runs, or another program's predictions, on the test set.", (Options, EvaluationOptions)
)


def run(words: list[str]) -> None:
    """``mixmo test RUN… [--ood DATASET …] [--per_class] …`` or ``mixmo test --predictions FILE``."""
    (own, options), _ = COMMAND.read(words)
    if bool(own.runs) == (own.predictions is not None):
        raise InputError("test needs a run's folder, or several, or --predictions with a file.")
    if own.predictions is not None:
        default = asdict(EvaluationOptions())
        if given := [name for name, value in asdict(options).items() if value != default[name]]:
            raise InputError(f"--{given[0]} needs a run; --predictions evaluates what its file holds.")
        result = evaluate_predictions(own.predictions)
        _show(f"{Path(own.predictions).name}: {len(result.predictions.targets)} images", result, own.per_class)
        return
    runs = [TrainedRun(RunFolder(path), options.checkpoint, options.download) for path in own.runs]
    result = evaluate_runs(runs, options)
    epoch = f" (epoch {result.predictions.epochs})" if len(runs) == 1 else "s"  # of several, each has one of its own
    shown = " + ".join(each.path.name for each in runs)
    title = f"{shown}: {len(result.predictions.targets)} test images, {options.checkpoint} checkpoint{epoch}"
    result = _show(title, result, own.per_class)
    if len(runs) == 1:
        result = with_earlier(runs[0], result, options)
        print(f"metrics: {printable(str(write_results(runs[0], result, options)))}")
        print(f"report: {printable(str(write_report(runs[0], result)))}")


def _show(title: str, result: EvaluationResult, per_class: bool) -> EvaluationResult:
    """Print the tables and sentences of an evaluation; return it, with the metrics of classes if asked for."""
    if per_class:
        result = replace(result, per_class=class_metrics(result.predictions, result.calibration))
    for table in evaluation_tables(result, title):
        table.show()
    verdict = advice(result.diagnosis, result.predictions.logits.shape[1])
    shares = () if result.calibration is None else result.calibration.weights or ()
    shown = ", ".join(f"{share:.2f}" for share in shares)
    weights = f"Weights of the runs' logits, fitted on validation images: {shown}." if shown else ""
    for text in (calibration_sentence(result.scaled), result.unscaled, weights, verdict):
        if text:
            print(printable(text))
    return result
