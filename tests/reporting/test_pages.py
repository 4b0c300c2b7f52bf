"""The pages in a browser: nothing overflows at any width, and everything has a name instead of a key."""

import re

import numpy as np
import pytest
import torch
from conftest import write_images

from mixmo.cli.main import main
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.results import EvaluationOptions, evaluate_runs
from mixmo.metrics.catalogue import METRICS
from mixmo.reporting.run_page import write_report
from mixmo.runs import RunFolder
from mixmo.training.fit import fit

WIDTHS = (1280, 768, 400)
KEYS = re.compile(r"\b(\w+_two_fold|two fold|d re|accuracy_\w+|nll_\w+|ece_\w+|member_\d\S*|\w+_auroc)\b")


def check(opened, page, **options):
    """Check a page at every width; return its text and its background."""
    frames, log = opened(page, *WIDTHS, **options)
    assert "CONSOLE" not in log
    for width, found in zip(WIDTHS, frames, strict=True):
        assert found["inner"] == width
        assert found["closed"] <= width and found["opened"] <= width
        assert found["outside"] == [] and found["unnamed"] == 0 and found["repeated"] == []
        answer = found["text"].split("Reproduce")[0]
        assert KEYS.findall(answer) == []
    return answer, found["background"]


@pytest.fixture(scope="module")
def pages(trained, tmp_path_factory):
    """A complete report of two members, a report of one network, and a comparison of three entries."""
    folder, two, one = trained
    out = tmp_path_factory.mktemp("pages")
    options = EvaluationOptions(ood=[f"folder:{folder}/other"], corruptions=True)
    made = {
        "two": write_report(TrainedRun(two), evaluate_runs([two], options)),
        "one": write_report(TrainedRun(one), evaluate_runs([one])),
    }
    generator = torch.Generator().manual_seed(0)
    targets = evaluate_runs([one]).predictions.targets
    logits = torch.randn(len(targets), 3, generator=generator)
    np.savez(out / "a file with a rather long name of its own.npz", logits=logits.numpy(), targets=targets.numpy())
    words = [
        str(one.path),
        f"deep ensemble={one.path}+{two.path}",
        f"{out}/a file with a rather long name of its own.npz",
    ]
    assert main(["compare", *words, "--out", str(out), "--ood", f"folder:{folder}/other"]) == 0
    return made | {"comparison": out / "comparison.html"}


@pytest.mark.parametrize(("name", "dark"), [("two", False), ("one", True), ("comparison", False)])
def test_nothing_overflows_and_dark_mode_is_dark(pages, chromium, name, dark):
    answer, background = check(chromium, pages[name], dark=dark)
    assert background == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    for text in ("Accuracy", "Brier score", "Misclassification AUROC", "All metrics", "12 test images"):
        assert text in answer


@pytest.mark.parametrize("name", ["two", "one", "comparison"])
def test_pages_are_self_contained(pages, name):
    page = pages[name].read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert not re.search(r"url\((?!#)", page) and "@import" not in page and "<script" not in page
    assert "could not be drawn" not in page


def test_many_classes_with_long_names(tmp_path, chromium):
    names = [f"a rather long name of a class, number {number:02}" for number in range(40)]
    write_images(tmp_path / "data" / "train", names, count=2)
    write_images(tmp_path / "data" / "test", names, count=1, seed=1)
    words = [f"--data.name=folder:{tmp_path}/data", "--data.batch_size=8", "--data.padding=1", "--data.channels=3"]
    words += ["--data.image_size=null", "--data.validation=0", "--trainer.max_epochs=1"]
    run = RunFolder(tmp_path / "many")
    fit(make_plan(load_recipe("digits-cut"), words), run)
    page = write_report(TrainedRun(run), evaluate_runs([run]))
    assert "Most confused pairs" in check(chromium, page)[0]
    text = page.read_text()
    assert "Confusion matrix" not in text and "15 worst" in text


def test_every_metric_of_an_evaluation_has_a_name(trained):
    folder, two, _ = trained
    found = evaluate_runs([two], EvaluationOptions(ood=[f"folder:{folder}/other"], corruptions=True))
    keys = {*found.metrics.average, *found.metrics.diversity, *found.metrics.members[0], *found.scaled}
    keys |= {f"corruption/{key}" for key in found.corruptions.means() if "/" not in key}
    assert keys <= set(METRICS)
    names = [metric.name for metric in METRICS.values()]
    assert len(set(names)) == len(names)
    for metric in METRICS.values():
        assert metric.meaning.endswith(".") and "_" not in metric.name
