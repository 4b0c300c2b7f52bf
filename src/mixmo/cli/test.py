"""``mixmo test``: evaluate runs, or another program's predictions."""

from __future__ import annotations

from dataclasses import asdict, field
from pathlib import Path

from mixmo.cli.options import Command, Positional
from mixmo.errors import InputError
from mixmo.escaping import printable
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.results import EvaluationOptions, EvaluationResult, evaluate_predictions, evaluate_runs
from mixmo.evaluation.results_file import merge_earlier, write_results
from mixmo.reporting.advice import advice
from mixmo.reporting.run_page import write_report
from mixmo.reporting.tables import describe_calibration, evaluation_tables
from mixmo.runs import RunFolder
from mixmo.validation import FilePath, settings_class


@settings_class()
class Options:
    """The runs or predictions to evaluate."""

    runs: Positional[list[str]] = field(default_factory=list)
    """Runs' folders; several form an ensemble."""
    predictions: FilePath | None = None
    """An .npz file, instead of runs."""


COMMAND = Command(
    "test", "Evaluate runs, or another program's predictions, on the test set.", (Options, EvaluationOptions)
)


def run(arguments: list[str]) -> None:
    """Run ``mixmo test RUN… [--ood DATASET …] [--per_class] …`` or ``mixmo test --predictions FILE``."""
    (chosen, options), _ = COMMAND.parse(arguments)
    if bool(chosen.runs) == (chosen.predictions is not None):
        raise InputError("test needs either folders of runs, or a file with --predictions.")
    if chosen.predictions is not None:
        default = asdict(EvaluationOptions(per_class=options.per_class))
        if given := [name for name, value in asdict(options).items() if value != default[name]]:
            raise InputError(f"--{given[0]} needs a run; leave it out with --predictions.")
        result = evaluate_predictions(chosen.predictions, options.per_class)
        _show(f"{Path(chosen.predictions).name}: {len(result.predictions.targets)} images", result)
        return
    runs = [TrainedRun(RunFolder(path), options.checkpoint, options.download) for path in chosen.runs]
    result = evaluate_runs(runs, options)
    epoch = f" (epoch {result.predictions.epochs})" if len(runs) == 1 else "s"  # several runs have several epochs
    names = " + ".join(run.path.name for run in runs)
    title = f"{names}: {len(result.predictions.targets)} test images, {options.checkpoint} checkpoint{epoch}"
    _show(title, result)
    if len(runs) == 1:
        result = merge_earlier(runs[0], result, options)
        print(f"metrics: {printable(str(write_results(runs[0], result, options)))}")
        print(f"report: {printable(str(write_report(runs[0], result)))}")


def _show(title: str, result: EvaluationResult) -> None:
    """Print the tables and remarks of an evaluation."""
    for table in evaluation_tables(result, title):
        table.show()
    verdict = advice(result.diagnosis, result.predictions.logits.shape[1])
    shares = () if result.calibration is None else result.calibration.weights or ()
    numbers = ", ".join(f"{share:.2f}" for share in shares)
    weights = f"Weights of the runs' logits, fitted on validation images: {numbers}." if numbers else ""
    for text in (describe_calibration(result.scaled), result.unscaled, weights, verdict):
        if text:
            print(printable(text))
