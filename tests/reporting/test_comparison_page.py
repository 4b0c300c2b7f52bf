"""``mixmo compare``: figures, costs and intervals of runs side by side."""

import csv
import errno
import math
import os
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from markupsafe import escape
from scipy.stats import bootstrap

import mixmo
from mixmo.cli.compare import show
from mixmo.cli.main import main
from mixmo.evaluation.comparison import sample_scores
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import predict
from mixmo.evaluation.results import evaluate_run
from mixmo.reporting import charts, pictures
from mixmo.reporting import comparison_page as comparison
from mixmo.reporting.comparison_lead import lead_sentence
from mixmo.reporting.comparison_tables import differences, group_replicas

compare = partial(comparison.compare, show=show)


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
        figures = evaluate_run(run)
        for key in ("accuracy", "nll", "ece", "aurc"):
            assert float(row[key]) == pytest.approx(figures[key])
        net = mixmo.load(run.path)
        assert float(row["parameters"]) == sum(p.numel() for p in net.parameters())
        assert float(row["images"]) == 2 * (27 // 4) * 8  # two epochs of 27 images, U = 8 / 2
        assert float(row["minutes"]) > 0 and float(row["latency_ms"]) > 0
    stem = 2 * 27 * 16 * 64  # both networks have one stem at inference; heads differ by one of 64×3
    assert float(rows["two"]["macs"]) - float(rows["one"]["macs"]) == pytest.approx(192, abs=stem)
    text = (tmp_path / "deep" / "out" / "comparison.md").read_text()
    assert text.count("\n| --- |") == 3 and "**" in text
    page = (tmp_path / "deep" / "out" / "comparison.html").read_text()
    assert "★" in page and not re.search(r'(?:src|href)="(?!data:|#)', page)


def test_folders_of_seeds_are_averaged(trained, another_seed, tmp_path, capsys):
    _, two, one = trained
    for run in (two, another_seed):
        shutil.copytree(run.path, tmp_path / "seeds" / run.path.name)
    groups = compare([one.path, tmp_path / "seeds"], tmp_path / "out")
    seeds = groups[1]
    assert [group.name for group in groups] == ["one", "seeds"] and len(seeds.entries) == 2
    values = seeds.values("nll")
    assert values[0] != values[1]
    assert seeds.mean("nll") == pytest.approx(np.mean(values))
    assert seeds.deviation("nll") == pytest.approx(np.std(values, ddof=1))
    assert "±" in capsys.readouterr().out
    made = [predict(TrainedRun(entry.runs[0])) for entry in seeds.entries]
    expected = [torch.nn.functional.cross_entropy(each.logits.mean(1), each.targets) for each in made]
    assert sample_scores(seeds)["nll"].mean() == pytest.approx(np.mean(expected), rel=1e-5)


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
        f"mixmo: {tmp_path}/runs holds no seeds of one method: data.batch_repetition is 2 in {tmp_path}/runs/a but "
        f"4 in {tmp_path}/runs/b; compare such runs by naming them one by one.\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [("epochs: 2", "epochs: 2"), ("workers: 2", "workers: 0"), ("accelerator: auto", "accelerator: cpu")],
)
def test_seeds_may_be_of_different_machines(trained, tmp_path, old, new):
    _, two, _ = trained
    with_setting(two, tmp_path / "runs" / "a", old, old)
    with_setting(two, tmp_path / "runs" / "b", old, new, seed=1)
    (group,) = compare([tmp_path / "runs"], tmp_path / "out")
    assert len(group.entries) == 2


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("metrics.csv", "epoch,step\n1,6\n", "metrics.csv is damaged: row 1 has no number for &#39;seconds&#39;."),
        ("metrics.csv", "epoch,step,seconds\n1,six,1\n", "row 1 has &#39;six&#39; for &#39;step&#39;."),
        ("metrics.csv", "\0\udcff", "metrics.csv is damaged: each row has an epoch"),
        ("environment.json", "{", "environment.json cannot be read: "),
        ("environment.json", "[]", "environment.json is damaged: it names no command."),
        ("environment.json", None, "environment.json cannot be read: "),
    ],
)
def test_damaged_files_of_a_run_are_a_sentence_of_the_page(trained, tmp_path, name, content, sentence):
    _, two, one = trained
    shutil.copytree(one.path, tmp_path / "one")
    (tmp_path / "one" / name).unlink()
    if content is not None:
        (tmp_path / "one" / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert main(["compare", str(tmp_path / "one"), str(two.path), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert sentence in page and page.count("It is left out.") == 1
    assert main(["test", str(tmp_path / "one")]) == 0
    assert sentence in (tmp_path / "one" / "report.html").read_text()


def test_a_picture_that_fails_costs_nothing_else(trained, tmp_path, monkeypatch, caplog):
    _, two, one = trained

    def fail(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr(charts, "risk_coverage", fail)
    monkeypatch.setattr(pictures, "image_grid", fail)
    compare([one.path, two.path], tmp_path)
    page = (tmp_path / "comparison.html").read_text()
    assert page.count("could not be drawn: no font.") == 4 and page.count("<svg") == 9
    assert len(caplog.records) == 4
    assert (tmp_path / "comparison.csv").is_file() and (tmp_path / "comparison.md").is_file()


def test_metrics_are_written_before_the_page(trained, tmp_path, monkeypatch):
    _, _, one = trained

    def fail(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(comparison, "comparison_page", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        compare([one.path], tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"comparison.csv", "comparison.md"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_one_sentence(tmp_path, monkeypatch, capsys, code):
    np.savez(tmp_path / "a.npz", logits=np.eye(3), targets=np.arange(3))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.csv").write_text("group,run,corruptions\n")

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    assert main(["compare", str(tmp_path / "a.npz"), "--out", str(tmp_path / "out")]) == 2
    out, error = capsys.readouterr()
    assert "a.npz" in out
    assert error == f"mixmo: {tmp_path}/out/comparison.csv cannot be written: {os.strerror(code)}.\n"
    assert [(file.name, file.read_text()) for file in (tmp_path / "out").iterdir()] == [
        ("comparison.csv", "group,run,corruptions\n")
    ]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", logits=np.eye(3), targets=np.arange(3))
    (tmp_path / "file").write_text("")
    assert main(["compare", str(tmp_path / "a.npz"), "--out", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err == f"mixmo: {tmp_path}/file/out cannot be written: Not a directory.\n"


def test_ensembles_and_files_stand_in_the_same_table(trained, tmp_path):
    """One run, two as an ensemble, and the same two as another program would hand them over."""
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
    wanted = ["Differences to one", "Confidence", "Images", "Learning curves", "Out-of-distribution images", "Members"]
    assert re.findall(r"<h2>(.*?)</h2>", page) == wanted


def test_folders_of_one_name_are_told_apart(trained, tmp_path):
    _, two, one = trained
    words = []
    for kind, run in (("a", one), ("b", two)):
        shutil.copytree(run.path, tmp_path / kind / "0")
        words.append(f"{tmp_path}/{kind}/0")
    assert [group.name for group in compare(words, tmp_path / "out")] == words


def test_seeds_of_single_networks_beside_two_members(trained, tmp_path):
    """Single networks have no diversity, alone or averaged over seeds."""
    _, two, one = trained
    for seed in (0, 1):
        with_setting(one, tmp_path / "seeds" / str(seed), "seed: 0", f"seed: {seed}")
    groups = compare([two.path, tmp_path / "seeds"], tmp_path / "out")
    assert math.isnan(groups[1].mean("d_re")) and groups[1].deviation("accuracy") == 0
    assert "One [/x]" in compare([f"One [/x]={one.path}", two.path], tmp_path / "out")[0].name


def test_files_alone_have_no_costs(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", logits=np.eye(3), targets=np.arange(3))
    compare([tmp_path / "a.npz"], tmp_path / "out")
    assert "Latency" not in capsys.readouterr().out
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<h2>Images</h2>" not in page and "MACs" not in page


def test_the_first_sentence_compares_the_best_with_the_first(trained, tmp_path):
    _, two, one = trained
    targets = np.arange(12) % 3
    for name, right in (("all", 12), ("most", 9), ("same", 9)):
        logits = 3.0 * np.eye(3)[np.where(np.arange(12) < right, targets, (targets + 1) % 3)]
        np.savez(tmp_path / f"{name}.npz", logits=logits, targets=targets)
    names = {key: str(tmp_path / f"{key}.npz") for key in ("all", "most", "same")}
    for words, wanted in {
        ("most", "all"): "all.npz classifies 100.0 % [100.0, 100.0] of 12 test images correctly, 25.0 points",
        ("all", "most"): "all.npz classifies 100.0 % [100.0, 100.0] of 12 test images correctly, 25.0 points",
        ("most", "same"): "correctly, as many as same.npz ([+0.0, +0.0] points; McNemar's p = 1). Its NLL is "
        "0.845, +0.000 [+0.000, +0.000] against that one: the difference may be chance.",
        ("most",): "of 12 test images correctly (ECE",
    }.items():
        groups = compare([names[word] for word in words], tmp_path / "out")
        lead = lead_sentence(groups, group_replicas(groups))
        assert wanted in lead and "  " not in lead
        page = (tmp_path / "out" / "comparison.html").read_text()
        assert str(escape(lead)) in page
    groups = compare([one.path, f"both={one.path}+{two.path}"], tmp_path / "out")
    assert re.search(r"It costs (2|0.5) times the MACs of", lead_sentence(groups, group_replicas(groups)))


def test_differences_are_paired(trained, tmp_path):
    """Their interval is that of the mean of paired differences, by SciPy's bootstrap."""
    _, two, one = trained
    groups = compare([one.path, two.path], tmp_path / "out")
    own, first = sample_scores(groups[1]), sample_scores(groups[0])
    found = differences(groups[1], groups[0], group_replicas(groups))
    for key in ("accuracy", "nll", "brier"):
        difference = own[key] - first[key]
        drawn = bootstrap((difference,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1))
        low, high = drawn.confidence_interval
        assert found[key].value == pytest.approx(difference.mean())
        spread = max(high - low, 1e-9)
        assert found[key].low == pytest.approx(low, abs=0.2 * spread)
        assert found[key].high == pytest.approx(high, abs=0.2 * spread)


def test_bad_input_is_one_sentence(trained, tmp_path, capsys):
    _, _, one = trained
    (tmp_path / "empty").mkdir()
    for name in ("short", "more"):
        np.savez(tmp_path / f"{name}.npz", logits=np.zeros((2, 3)), targets=np.zeros(2, int))
    np.savez(tmp_path / "four.npz", logits=np.zeros((2, 4)), targets=np.zeros(2, int))
    for words, message in {
        ("nowhere",): "there is no run folder nowhere",
        (str(tmp_path / "empty"),): "is no run's folder and holds none",
        (str(one.path), f"{tmp_path}/short.npz"): "was tested on other images or classes",
        (f"{tmp_path}/short.npz+{tmp_path}/more.npz",): "cannot be one ensemble; only runs can",
        (str(one.path), f"--out={tmp_path}/short.npz"): "is a file; choose a folder",
        (str(one.path), "--precision=16"): "unknown precision '16'",
        (f"{tmp_path}/short.npz", f"{tmp_path}/four.npz"): "was tested on other images or classes",
        (str(one.path), str(one.path)): "is named twice",
        (f"{one.path}+nowhere",): "there is no run folder nowhere",
    }.items():
        assert main(["compare", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
