"""``mixmo test``: evaluate runs or another program's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, field, replace
from pathlib import Path

from mixmo.cli.options import Command, Word
from mixmo.errors import InputError
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.results import (
    EvaluationOptions,
    EvaluationResult,
    class_metrics,
    evaluate_predictions,
    evaluate_runs,
)
from mixmo.evaluation.results_file import with_earlier, write_results
from mixmo.names import printable
from mixmo.reporting.advice import advice
from mixmo.reporting.run_report import write_report
from mixmo.reporting.tables import calibration_sentence, class_table, corruption_table, metrics_table, ood_tables
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
        _test_file(Path(own.predictions), own.per_class)
    else:
        _test_runs([RunFolder(path) for path in own.runs], options, own.per_class)


def _test_runs(runs: Sequence[RunFolder], options: EvaluationOptions, per_class: bool) -> None:
    """Print tables and, for one run, write ``test.json`` and ``report.html`` into its folder."""
    trained = [TrainedRun(run, options.checkpoint, options.download) for run in runs]
    result = evaluate_runs(trained, options)
    result = replace(result, per_class=class_metrics(result.predictions) if per_class else {})
    shown, predictions = " + ".join(run.path.name for run in runs), result.predictions
    epochs = f"{options.checkpoint} checkpoint (epoch {predictions.epochs})"
    epochs = epochs if len(runs) == 1 else f"{options.checkpoint} checkpoints"  # each has an epoch of its own
    _print_tables(f"{shown}: {len(predictions.targets)} test images, {epochs}", result)
    verdict = advice(result.diagnosis, predictions.logits.shape[1])
    for text in (calibration_sentence(result.scaled), result.unscaled, verdict):
        if text:
            print(printable(text))
    if len(runs) == 1:
        (run,) = runs
        result = with_earlier(trained[0], result, options)
        print(f"metrics: {printable(str(write_results(run, result, options)))}")
        print(f"report: {printable(str(write_report(trained[0], result)))}")


def _test_file(file: Path, per_class: bool) -> None:
    result = evaluate_predictions(file)
    result = replace(result, per_class=class_metrics(result.predictions) if per_class else {})
    _print_tables(f"{file.name}: {len(result.predictions.targets)} images", result)


def _print_tables(title: str, result: EvaluationResult) -> None:
    tables = [metrics_table(result.metrics, title), *ood_tables(result.ood)]
    if result.corruptions is not None:
        tables.append(corruption_table(result.corruptions))
    if result.per_class:
        tables.append(class_table(result.per_class))
    for table in tables:
        table.show()
