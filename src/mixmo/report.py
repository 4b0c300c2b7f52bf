"""``report.html``: all there is to know about a run on one page that stands alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mixmo import pages
from mixmo.data import load_test_images
from mixmo.files import write_text
from mixmo.metrics.ood import ood_scores
from mixmo.metrics.selective import cumulative_errors
from mixmo.plans import make_plan
from mixmo.predictions import Predictions
from mixmo.runs import Run

PICTURES = 12
BINS = 15
SHOWN = {
    "accuracy": ("top-1 %", 100, 2), "accuracy_top5": ("top-5 %", 100, 2), "nll": ("NLL", 1, 4),
    "brier": ("Brier", 1, 4), "ece": ("ECE %", 100, 2), "ece_adaptive": ("adaptive ECE %", 100, 2),
    "aurc": ("AURC %", 100, 2), "auroc_correct": ("AUROC right/wrong", 1, 4),
}  # fmt: skip


def write_report(
    run: Run, tested: Predictions, figures: Mapping[str, float], strangers: Mapping[str, Predictions]
) -> Path:
    """Write ``report.html`` into a run's folder and return its path.

    Args:
        run: The run.
        tested: Its predictions on the test set.
        figures: Those of ``test.json``.
        strangers: Predictions on other datasets, by name.
    """
    config, members = run.config(), tested.logits.shape[1]
    what = [[f"{section}.{key}", str(config[section][key])] for section, key in (
        ("data", "name"), ("model", "backbone"), ("model", "num_members"), ("mixer", "kind"), ("pixels", "kind"),
        ("data", "batch_repetition"), ("data", "batch_size"), ("trainer", "max_epochs"), ("trainer", "precision"),
    )]  # fmt: skip
    what += [["seed", str(config["seed"])], ["test images", str(len(tested.targets))], ["epochs", str(tested.epochs)]]
    parts = [
        pages.section("What was trained", pages.table(["setting", "value"], what)),
        pages.section("Figures", _figures_table(figures, members), *_other_tables(figures, strangers)),
        *_curves(run),
        pages.section(
            "Calibration",
            pages.picture(pages.png_of(_reliability(tested)), "Accuracy by confidence; the line is perfection"),
        ),
        pages.section(
            "Selective prediction",
            pages.picture(pages.png_of(_risk_coverage(tested)), "Error among the most confident predictions"),
        ),
    ]
    if strangers:
        picture = pages.png_of(_confidences(tested, strangers))
        parts.append(
            pages.section("Out of distribution", pages.picture(picture, "Confidence on test images and others"))
        )
    if members > 1:
        picture = pages.png_of(_disagreements(tested))
        parts.append(
            pages.section("Diversity", pages.picture(picture, "Share of images on which two members disagree"))
        )
    parts.append(_pictures(run, tested))
    environment = (run.path / "environment.json").read_text("utf-8")
    command = json.loads(environment)["command"]
    parts.append(
        pages.section(
            "How to repeat it",
            pages.listing(command),
            pages.listing(environment.strip()),
            pages.listing(run.config_file.read_text("utf-8").strip()),
        )
    )
    return write_text(run.path / "report.html", pages.page(f"Run {run.path.name}", parts))


def averages(tested: Predictions) -> dict[str, Tensor]:
    """Return the probabilities (N, K) of the logit average and, for several members, of each of them.

    Example:
        >>> one = Predictions(torch.zeros(4, 2, 3), torch.zeros(4, dtype=torch.long), ["a", "b", "c"])
        >>> list(averages(one))
        ['ensemble', 'member 0', 'member 1']
    """
    logits = tested.logits.double()
    if logits.shape[1] == 1:
        return {"network": logits[:, 0].softmax(1)}
    members = {f"member {index}": logits[:, index].softmax(1) for index in range(logits.shape[1])}
    return {"ensemble": logits.mean(1).softmax(1)} | members


def _figures_table(figures: Mapping[str, float], members: int) -> str:
    rows = {"ensemble, logit average": "", "ensemble, probability average": "probability_average/"}
    rows |= {f"member {index}": f"member_{index}/" for index in range(members)}
    if members == 1:
        rows = {"network": ""}
    cells = [
        [name, *(f"{figures[prefix + key] * by:.{digits}f}" for key, (_, by, digits) in SHOWN.items())]
        for name, prefix in rows.items()
    ]
    return pages.table(["", *(heading for heading, _, _ in SHOWN.values())], cells)


def _other_tables(figures: Mapping[str, float], strangers: Mapping[str, Predictions]) -> list[str]:
    """Return a table of the figures that stand for the whole run, and one for each other dataset."""
    shared = [
        [key.replace("_", " "), f"{value:.4f}"] for key, value in figures.items() if "/" not in key and key not in SHOWN
    ]
    tables = [pages.table(["ensemble and members together", ""], shared)]
    for name in strangers:
        prefix = f"ood/{name}/"
        scores = dict.fromkeys(key.removeprefix(prefix).split("/")[0] for key in figures if key.startswith(prefix))
        rows = [
            [score.replace("_", " "), *(f"{figures[f'{prefix}{score}/{m}']:.4f}" for m in ("auroc", "aupr", "fpr95"))]
            for score in scores
        ]
        tables.append(pages.table([f"strangers: {name}", "AUROC", "AUPR", "FPR95"], rows))
    return tables


def _axes(count: int, height: float = 3.0) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(3.6 * count, height))
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _curves(run: Run) -> list[str]:
    rows = run.read_metrics()
    if not rows:
        return []
    epochs = [int(row["epoch"]) for row in rows]
    figure, (left, right) = _axes(2)
    left.plot(epochs, [float(row["train_loss"]) for row in rows], marker="." if len(rows) < 30 else None)
    left.set_title("training loss, summed over members", fontsize=9)
    for key in rows[-1]:
        if key.endswith("accuracy"):
            values = [100 * float(row[key] or "nan") for row in rows]
            own = "-" if key == "val_accuracy" else "--" if key.startswith("val") else ":"
            right.plot(epochs, values, own, label=key.replace("_accuracy", "").replace("_", " ") or "val")
    right.set_title("top-1 %", fontsize=9)
    right.legend(fontsize=7)
    for axis in (left, right):
        axis.set_xlabel("epoch", fontsize=8)
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    text = "Learning curves; training accuracies are those of the mixtures"
    return [pages.section("Learning curves", pages.picture(pages.png_of(figure), text))]


def _reliability(tested: Predictions) -> Figure:
    parts = averages(tested)
    figure, axes = _axes(len(parts))
    for axis, (name, probabilities) in zip(axes, parts.items(), strict=True):
        confidence, predicted = probabilities.max(1)
        correct = (predicted == tested.targets).double().numpy()
        number = np.clip(np.ceil(confidence.numpy() * BINS).astype(int) - 1, 0, BINS - 1)
        counts = np.bincount(number, minlength=BINS)
        accuracy = np.bincount(number, correct, BINS) / np.maximum(counts, 1)
        centres = (np.arange(BINS) + 0.5) / BINS
        axis.bar(centres, accuracy, 0.9 / BINS, color="tab:blue", alpha=0.8, label="accuracy")
        axis.bar(centres, counts / counts.max(), 0.9 / BINS, fill=False, edgecolor="0.5", label="images (scaled)")
        axis.plot([0, 1], [0, 1], "k--", linewidth=1)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("confidence", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    return figure


def _risk_coverage(tested: Predictions) -> Figure:
    figure, (axis,) = _axes(1)
    for name, probabilities in averages(tested).items():
        confidence, predicted = probabilities.max(1)
        errors = cumulative_errors(confidence, predicted == tested.targets).numpy()
        kept = np.arange(1, len(errors) + 1)
        axis.plot(100 * kept / len(errors), 100 * errors / kept, label=name, linewidth=1.2)
    axis.set_xlabel("coverage, %", fontsize=8)
    axis.set_ylabel("error, %", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7)
    figure.tight_layout()
    return figure


def _confidences(tested: Predictions, strangers: Mapping[str, Predictions]) -> Figure:
    figure, (axis,) = _axes(1)
    for name, found in {"test images": tested, **strangers}.items():
        confidence = -ood_scores(found.logits)["max_probability"].numpy()
        axis.hist(confidence, bins=30, range=(0, 1), density=True, alpha=0.5, label=name)
    axis.set_xlabel("largest probability", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7)
    figure.tight_layout()
    return figure


def _disagreements(tested: Predictions) -> Figure:
    predicted = tested.logits.argmax(2)
    matrix = 100 * (predicted[:, :, None] != predicted[:, None]).double().mean(0).numpy()
    figure, (axis,) = _axes(1)
    axis.imshow(matrix, cmap="Blues", vmin=0, vmax=max(2 * matrix.max(), 1e-9))  # pale, so that text can be read
    for row, column in np.ndindex(*matrix.shape):
        axis.text(column, row, f"{matrix[row, column]:.1f} %", ha="center", va="center", fontsize=8)
    axis.set_xticks(range(len(matrix)), [f"member {index}" for index in range(len(matrix))], fontsize=7)
    axis.set_yticks(range(len(matrix)), [f"member {index}" for index in range(len(matrix))], fontsize=7)
    figure.tight_layout()
    return figure


def _pictures(run: Run, tested: Predictions) -> str:
    """Return the most confident mistakes and, with several members, the images they disagree on most."""
    images, _ = load_test_images(make_plan(run.config()).settings.data)
    probabilities = next(iter(averages(tested).values()))
    confidence, predicted = probabilities.max(1)
    mistakes = torch.where(predicted != tested.targets, confidence, -1.0)
    parts = []
    for heading, score, shown in [
        ("The most confident mistakes", mistakes, mistakes > 0),
        ("The images on which members disagree most", ood_scores(tested.logits)["mutual_information"], mistakes > -2),
    ]:
        chosen = [index for index in score.argsort(descending=True)[:PICTURES].tolist() if shown[index]]
        if not chosen or (tested.logits.shape[1] == 1 and heading.endswith("most")):
            continue
        figure = Figure(figsize=(9, 1.9 * -(-len(chosen) // 6)))
        axes = figure.subplots(-(-len(chosen) // 6), 6, squeeze=False).flat
        for axis in axes:
            axis.set_axis_off()
        for axis, index in zip(figure.axes, chosen, strict=False):
            batch = images.__getitems__([index])
            axis.imshow(batch.images[batch.chosen[0]].cpu().numpy().squeeze(), cmap="gray", interpolation="nearest")
            said = [tested.classes[k] for k in tested.logits[index].argmax(1).tolist()]
            guess = " / ".join(said) if heading.endswith("most") else tested.classes[int(predicted[index])]
            axis.set_title(f"{guess}\n({tested.classes[int(tested.targets[index])]})", fontsize=7)
        figure.tight_layout()
        parts.append(pages.picture(pages.png_of(figure), f"{heading}: what was said, and in brackets the truth"))
    return pages.section("Images", *(parts or [pages.paragraph("No mistakes.")]))
