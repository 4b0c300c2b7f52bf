"""``mixmo compare``: figures, costs and intervals of runs side by side."""

import csv
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from markupsafe import escape
from scipy.stats import t, ttest_rel

import mixmo
from mixmo import comparing
from mixmo.cli.main import main
from mixmo.corruptions import SEVERITIES
from mixmo.evaluation.comparison import Entry, Group
from mixmo.evaluation.costs import costs
from mixmo.evaluation.evaluate import measure
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import Predictions, predict
from mixmo.evaluation.results import EvaluationResult
from mixmo.evaluation.results_file import evaluate_run
from mixmo.evaluation.robustness import CorruptionResult
from mixmo.metrics.catalogue import COSTS
from mixmo.reporting import charts, comparison_page, pictures
from mixmo.reporting.comparison_tables import costs_table, differences, differences_table, metrics_table
from mixmo.reporting.headline import summarise_comparison


def compare(words, out=None, **options):
    """Compare and print the tables, as the command does; return the groups."""
    found = mixmo.compare(*words, out=out, **options)
    for table in found.tables:
        table.show()
    return found.groups


def test_runs_side_by_side(trained, tmp_path, capsys):
    _, two, one = trained
    assert main(["compare", str(one.path), str(two.path), "--out", str(tmp_path / "deep" / "out")]) == 0
    out = capsys.readouterr().out
    assert "│ one " in out and "two − one" in out and "McNemar" in out
    files = {file.name for file in (tmp_path / "deep" / "out").iterdir()}
    assert files == {"comparison.csv", "comparison.md", "comparison.html"}
    with (tmp_path / "deep" / "out" / "comparison.csv").open() as file:
        rows = {row["group"]: row for row in csv.DictReader(file)}
    for run, row in ((one, rows["one"]), (two, rows["two"])):
        figures = evaluate_run(TrainedRun(run)).flat()
        for key in ("accuracy", "nll", "ece", "aurc"):
            assert float(row[key]) == pytest.approx(figures[key])
        for key, value in costs(TrainedRun(run)).items():
            assert float(row[key]) == pytest.approx(value) or key == "latency_ms"
    text = (tmp_path / "deep" / "out" / "comparison.md").read_text()
    assert text.count("\n| --- |") == 3


def test_folders_of_seeds_are_averaged(trained, another_seed, tmp_path, capsys):
    _, two, one = trained
    for run in (two, another_seed):
        shutil.copytree(run.path, tmp_path / "seeds" / run.path.name)
    groups = compare([one.path, tmp_path / "seeds"])
    seeds = groups[1]
    assert [group.name for group in groups] == ["one", "seeds"] and len(seeds.entries) == 2
    values = seeds.values("nll")
    assert values[0] != values[1]
    assert seeds.mean("nll") == pytest.approx(np.mean(values))
    assert seeds.deviation("nll") == pytest.approx(np.std(values, ddof=1))
    assert "±" in capsys.readouterr().out
    made = [predict(TrainedRun(entry.runs[0])) for entry in seeds.entries]
    expected = [torch.nn.functional.cross_entropy(each.logits.mean(1), each.targets).item() for each in made]
    assert values == pytest.approx(expected, rel=1e-5)
    assert math.isnan(differences(seeds, groups[0])["nll"].low)  # of one seed against two nothing is known


def with_setting(run, to, old, new, seed=0):
    shutil.copytree(run.path, to)
    text = (to / "config.yaml").read_text()
    assert old in text
    (to / "config.yaml").write_text(text.replace(old, new).replace("seed: 0", f"seed: {seed}"))


def test_runs_of_different_methods_are_no_seeds(trained, tmp_path, capsys):
    _, two, _ = trained
    with_setting(two, tmp_path / "runs" / "a", "batch_repetition: 2", "batch_repetition: 2")
    with_setting(two, tmp_path / "runs" / "b", "batch_repetition: 2", "batch_repetition: 4", seed=1)
    assert main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"mixmo: runs in {tmp_path}/runs differ in more than the seed: data.batch_repetition is 2 in {tmp_path}/runs/a "
        f"but 4 in {tmp_path}/runs/b; to compare them, name them one by one.\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.csv", "epoch,step\n1,6\n", "metrics.csv is damaged: row 1 has None for &#39;seconds&#39;"),
        ("metrics.csv", "epoch,step,seconds\n1,9,1\n2,six,1\n", "row 2 has &#39;six&#39; for &#39;step&#39;"),
        ("metrics.csv", "epoch,step,seconds\n1,9,1,7\n", "metrics.csv is damaged: row 1 has [&#39;7&#39;] for None"),
        ("metrics.csv", "\0\udcff", "metrics.csv is damaged: "),
        ("environment.json", "{", "environment.json is missing or damaged."),
        ("environment.json", "[]", "environment.json is missing or damaged."),
        ("environment.json", None, "environment.json is missing or damaged."),
    ],
)
def test_damaged_files_of_a_run_are_reported_on_the_page(trained, tmp_path, name, content, message):
    _, two, one = trained
    shutil.copytree(one.path, tmp_path / "one")
    (tmp_path / "one" / name).unlink()
    if content is not None:
        (tmp_path / "one" / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert main(["compare", str(tmp_path / "one"), str(two.path), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert message in page and page.count("It is left out.") == 1
    assert main(["test", str(tmp_path / "one")]) == 0
    assert message in (tmp_path / "one" / "report.html").read_text()


def test_a_picture_that_fails_costs_nothing_else(trained, tmp_path, monkeypatch, caplog):
    _, two, one = trained

    def fail(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr(charts, "histograms", fail)
    monkeypatch.setattr(charts, "reliability", fail)
    monkeypatch.setattr(pictures, "photo_uri", fail)
    compare([one.path, two.path], tmp_path)
    page = (tmp_path / "comparison.html").read_text()
    assert page.count("could not be drawn: no font.") == 5 and page.count("data:image/svg") == 6
    assert len(caplog.records) == 5
    assert (tmp_path / "comparison.csv").is_file() and (tmp_path / "comparison.md").is_file()


def test_metrics_are_written_before_the_page(trained, tmp_path, monkeypatch):
    _, _, one = trained

    def fail(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(comparing, "comparison_page", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        compare([one.path], tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"comparison.csv", "comparison.md"}


def test_ensembles_and_files_stand_in_the_same_table(trained, tmp_path):
    """One run, two as an ensemble, and the same two as files of another program."""
    folder, two, one = trained
    both = predict(TrainedRun(one)).logits.numpy(), predict(TrainedRun(two)).logits.numpy()
    np.savez(tmp_path / "theirs.npz", logits=np.concatenate(both, 1), targets=predict(TrainedRun(one)).targets.numpy())
    words = [str(one.path), f"deep ensemble={one.path}+{two.path}", f"theirs={tmp_path}/theirs.npz"]
    out = tmp_path / "out"
    assert main(["compare", *words, "--out", str(out), "--ood", f"folder:{folder}/other"]) == 0
    with (out / "comparison.csv").open() as file:
        rows = {row["group"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["one", "deep ensemble", "theirs"]
    for key in ("accuracy", "nll", "brier", "d_re", "ece"):
        assert float(rows["deep ensemble"][key]) == pytest.approx(float(rows["theirs"][key]))
    parameters = [sum(p.numel() for p in mixmo.load(run.path).parameters()) for run in (one, two)]
    assert float(rows["deep ensemble"]["parameters"]) == sum(parameters)
    assert rows["theirs"]["parameters"] == "" and rows["theirs"][f"ood/folder:{folder}/other/entropy/auroc"] == ""
    page = (out / "comparison.html").read_text()
    wanted = ["Differences to one", "Confidence", "Images", "Learning curves", "Out-of-distribution images"]
    assert re.findall(r"<h2>(.*?)</h2>", page) == wanted


def test_folders_of_one_name_are_told_apart(trained, tmp_path):
    _, two, one = trained
    words = []
    for kind, run in (("a", one), ("b", two)):
        shutil.copytree(run.path, tmp_path / kind / "0")
        words.append(f"{tmp_path}/{kind}/0")
    assert [group.name for group in compare(words)] == words


def test_seeds_of_single_networks_beside_two_members(trained, tmp_path):
    """Single networks have no diversity, alone or averaged over seeds."""
    _, two, one = trained
    for seed in (0, 1):
        with_setting(one, tmp_path / "seeds" / str(seed), "seed: 0", f"seed: {seed}")
    groups = compare([two.path, tmp_path / "seeds"])
    assert math.isnan(groups[1].mean("d_re")) and groups[1].deviation("accuracy") == 0
    assert "One [/x]" in compare([f"One [/x]={one.path}", two.path])[0].name


def test_files_alone_have_no_costs(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", logits=np.eye(3), targets=np.arange(3))
    compare([tmp_path / "a.npz"], tmp_path / "out")
    assert "Latency" not in capsys.readouterr().out
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<h2>Images</h2>" not in page and "MACs" not in page


def answers(wrong, confidence=3.0, images=400):
    """Return one member's predictions that are wrong on the images with these numbers."""
    targets = torch.arange(images) % 3
    shown = (targets + torch.isin(torch.arange(images), torch.as_tensor(wrong))) % 3
    return Predictions(confidence * torch.eye(3)[shown][:, None], targets, list("abc"))


def group_of(name, *predictions, runs=(), costs=()):
    entries = [
        Entry(name, [run], EvaluationResult(each, measure(each.logits, each.targets)), dict(costs))
        for each, run in zip(predictions, runs or [None] * len(predictions), strict=True)
    ]
    return Group(name, [each if runs else replace(each, runs=[]) for each in entries])


class Seeded:
    """The parts of a run that a comparison uses."""

    def __init__(self, seed, fold=None, folds=3):
        self.seed, self.data = seed, SimpleNamespace(folds=None if fold is None else folds, fold=fold or 0)

    def settings(self):
        return self


def groups_of_seeds(*wrong):
    """Return groups of three seeds from the number of wrong predictions of each seed."""
    runs = [Seeded(seed) for seed in (5, 1, 3)]
    return [
        group_of(f"m{number}", *(answers(range(count)) for count in each), runs=runs)
        for number, each in enumerate(wrong)
    ]


def test_the_first_sentence_is_of_the_first_network_and_leaves_the_choice_to_validation_data():
    groups = [group_of("poor", answers(range(80))), group_of("good", answers(range(20)))]
    lead = summarise_comparison(groups)
    assert lead.startswith(
        "poor classifies 80.0 % [75.8, 83.6] of 400 test images correctly; good 95.0 % [92.4, 96.7],"
    )
    assert "the best" not in lead and "+15.0 points [+11.4, +18.5]" in lead and "chance" not in lead
    lead = summarise_comparison(groups, "good")
    assert lead.startswith("good, the best on validation data, classifies 95.0 %") and lead.count("the best") == 1
    lead = summarise_comparison([groups[0], group_of("same", answers(range(40, 120)))])
    assert re.search(r"\+0\.0 points \[−([\d.]+), \+\1\] \(the difference may be chance\)", lead)
    assert re.search(r"of 400 test images correctly \(ECE .* %\)\.$", summarise_comparison(groups[:1]))


def test_costs_are_compared_in_the_first_sentence(trained, tmp_path):
    _, two, one = trained
    groups = compare([one.path, f"both={one.path}+{two.path}"], tmp_path / "out")
    lead = summarise_comparison(groups)
    assert "both costs 2 times the MACs of one" in lead
    assert str(escape(lead)) in (tmp_path / "out" / "comparison.html").read_text()


def test_over_seeds_intervals_are_students_of_paired_seeds():
    """Regardless of the images, paired in the order of the seeds, and the same in every output."""
    first, second = groups_of_seeds((80, 84, 85), (40, 90, 70))
    gains = np.array([80 - 40, 84 - 90, 85 - 70]) / 400
    half = t.ppf(0.975, 2) * gains.std(ddof=1) / math.sqrt(3)
    found = differences(second, first)
    assert found["accuracy"] == pytest.approx((gains.mean(), gains.mean() - half, gains.mean() + half))
    expected = ttest_rel(second.values("nll"), first.values("nll")).confidence_interval()
    assert found["nll"][1:] == pytest.approx(tuple(expected))
    shown = f"[−{-100 * (gains.mean() - half):.1f}, +{100 * (gains.mean() + half):.1f}] (the difference may be chance)"
    assert shown in summarise_comparison([first, second])
    table = differences_table([first, second])
    assert "Student's over seeds" in table.title and "McNemar's p" not in table.header
    assert f"[−{-100 * (gains.mean() - half):.2f}, +" in table.markdown()
    second.entries.reverse()
    assert differences(second, first)["accuracy"] == pytest.approx(found["accuracy"])


@pytest.mark.parametrize("number", [3, 10])
def test_over_folds_intervals_are_wider_and_tables_say_so(number):
    """By the number of folds that were drawn, of which some may not be trained."""
    first, second = groups_of_seeds((80, 84, 85), (40, 90, 70))
    folds = [
        replace(each, entries=[replace(entry, runs=[Seeded(0, i, number)]) for i, entry in enumerate(each.entries)])
        for each in (first, second)
    ]
    (gain, low, high), seeds = (differences(pair[1], pair[0])["accuracy"] for pair in (folds, (first, second)))
    assert gain == seeds.value and high - low == pytest.approx(
        (seeds.high - seeds.low) * math.sqrt(1 + 3 / (number - 1))
    )
    assert folds[0].images == 1200 and "of 1200 test images" in summarise_comparison(folds)
    assert "over n folds" in metrics_table(folds).title and "over folds" in differences_table(folds).title
    twice = [replace(folds[0], entries=[*folds[0].entries, *(replace(entry, runs=[Seeded(1, fold)])
             for fold, entry in enumerate(folds[0].entries))])]  # fmt: skip
    assert twice[0].images == 1200 and "over n seeds and folds" in metrics_table(twice).title


def test_accuracies_under_corruption_have_no_stars():
    """Their table has no intervals, which a star stands for."""
    results = {}
    for name, wrong in (("poor", 80), ("good", 20)):
        cells = {severity: {"accuracy": 1 - wrong / 400} for severity in SEVERITIES}
        (entry,) = group_of(name, answers(range(wrong))).entries
        results[name] = replace(entry.result, corruptions=CorruptionResult({"fog": cells}, "drawn"))
    (section,) = comparison_page._corruption_sections(results)
    (table,) = section.subsections[0].tables
    assert table.rows == [["fog", "80.00", "95.00"]] and not table.best


def test_what_is_better_beyond_chance_is_stressed_and_costs_never_are():
    """By intervals over images or over seeds; not latencies, which are one short measurement."""
    costs = {key: 1.0 for key in COSTS}
    poor, good, close = (
        group_of(name, answers(range(count)), costs=costs | {"latency_ms": count})
        for name, count in (("poor", 80), ("good", 20), ("close", 24))
    )
    column = metrics_table([poor, good]).header.index("Accuracy, %")
    assert (1, column) in metrics_table([poor, good]).best
    assert not {place for place in metrics_table([poor, good, close]).best if place[1] == column}
    assert not costs_table([poor, good]).best
    for wrong, stressed in (((80, 84, 85), False), ((80, 81, 82), True)):
        found = metrics_table(groups_of_seeds(wrong, (40, 90, 70) if not stressed else (20, 22, 24))).best
        assert ((1, column) in found) == stressed and ((0, column) not in found)


def test_no_interval_is_one_of_ece(trained, another_seed, tmp_path):
    """Neither over images nor over seeds: binning biases it by an amount that depends on the network."""
    _, two, one = trained
    for number, (run, folder) in enumerate([(two, "a"), (another_seed, "a"), (one, "b"), (one, "b")]):
        with_setting(run, tmp_path / folder / str(number), "", "", seed=1 if number == 3 else 0)
    pairs = [["a.npz", "b.npz"], [tmp_path / "a", tmp_path / "b"]]
    for name, each in zip(pairs[0], (answers(range(80)), answers(range(20))), strict=True):
        np.savez(tmp_path / name, logits=each.logits.numpy(), targets=each.targets.numpy())
    for words in ([tmp_path / name for name in pairs[0]], pairs[1]):
        groups = compare(words, tmp_path / "out", overwrite=True)
        assert math.isnan(differences(groups[1], groups[0])["ece"].low)
        for table in (metrics_table(groups), differences_table(groups)):
            columns = [number for number, heading in enumerate(table.header) if "ECE" in heading]
            assert len(columns) == 1
            assert not any("[" in table.details.get((row, columns[0]), "") for row in range(2))
        page = (tmp_path / "out" / "comparison.html").read_text()
        assert "NLL, difference to" in page and "ECE, difference to" not in page


def test_differences_are_paired():
    """NLL and Brier score: Student's interval of the paired differences. Accuracy: Bonett and Price's closed form."""
    rng = np.random.default_rng(0)
    targets = torch.from_numpy(rng.integers(0, 3, 200))
    both = [Predictions(torch.from_numpy(rng.normal(size=(200, 2, 3))), targets, list("abc")) for _ in range(2)]
    found = differences(group_of("own", both[0]), group_of("other", both[1]))
    p = [np.exp(logits) / np.exp(logits).sum(1, keepdims=True) for logits in (b.logits.numpy().mean(1) for b in both)]
    one_hot = np.eye(3)[targets]
    scores = {
        "nll": [-np.log((each * one_hot).sum(1)) for each in p],
        "brier": [((each - one_hot) ** 2).sum(1) for each in p],
    }
    for key, (own, other) in scores.items():
        gain = own - other
        half = t.ppf(0.975, 199) * gain.std(ddof=1) / math.sqrt(200)
        assert found[key] == pytest.approx((gain.mean(), gain.mean() - half, gain.mean() + half))
    right, wrong = ((each.argmax(1) == targets.numpy()).astype(int) for each in p)
    up, down = (((right > wrong).sum() + 1) / 202, ((right < wrong).sum() + 1) / 202)
    half = 1.959964 * math.sqrt((up + down - (up - down) ** 2) / 202)
    assert found["accuracy"] == pytest.approx((right.mean() - wrong.mean(), up - down - half, up - down + half))


def test_bad_input_is_one_sentence(trained, tmp_path, capsys):
    _, _, one = trained
    (tmp_path / "empty").mkdir()
    for name in ("short", "more"):
        np.savez(tmp_path / f"{name}.npz", logits=np.zeros((2, 3)), targets=np.zeros(2, int))
    np.savez(tmp_path / "four.npz", logits=np.zeros((2, 4)), targets=np.zeros(2, int))
    for words, message in {
        ("nowhere",): "there is no run folder nowhere",
        (str(tmp_path / "empty"),): "is not a run's folder and contains none",
        (str(one.path), f"{tmp_path}/short.npz"): "were tested on different images or classes",
        (f"{tmp_path}/short.npz+{tmp_path}/more.npz",): "cannot be one ensemble; only runs can",
        (str(one.path), f"--out={tmp_path}/short.npz"): "is a file; choose a folder",
        (str(one.path), "--precision=16"): "unknown precision '16'",
        (f"{tmp_path}/short.npz", f"{tmp_path}/four.npz"): "were tested on different images or classes",
        (str(one.path), str(one.path)): "is named twice",
        (f"{one.path}+nowhere",): "there is no run folder nowhere",
    }.items():
        assert main(["compare", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
