"""``mixmo test --corruptions``: metrics under corruption, generated or read from published files."""

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import copy_run, plan_of, write_images, write_splits

from mixmo.cache import cache_json
from mixmo.cli.main import main
from mixmo.corruptions import KINDS, SEVERITIES, corrupt
from mixmo.errors import InputError
from mixmo.evaluation import inference, robustness
from mixmo.evaluation.evaluate import evaluate
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.robustness import GeneratedCorruptions, evaluate_corruptions
from mixmo.reporting.tables import corruption_table, severity_means
from mixmo.runs import RunFolder
from mixmo.seeding import generator_for
from mixmo.training.fit import fit

TARGETS = torch.arange(3).repeat_interleave(4)
"""Of the test images of ``trained``."""


@pytest.fixture
def few(monkeypatch):
    """Two kinds of corruption instead of all, for speed; order matters."""
    chosen = {kind: KINDS[kind] for kind in ("fog", "contrast")}
    monkeypatch.setattr(robustness, "KINDS", chosen)
    return list(chosen)


@pytest.fixture
def published(trained, tmp_path):
    """Files like CIFAR-10-C's for the test images of ``trained``, unchanged at every severity."""
    _, two, _ = trained
    images, _ = TrainedRun(two).images("test")
    folder = tmp_path / "PICTURES-C"
    folder.mkdir()
    for kind in ("fog", "rain"):
        np.save(folder / f"{kind}.npy", np.tile(images.images.numpy(), (5, 1, 1, 1)))
    np.save(folder / "labels.npy", np.tile(images.labels.numpy(), 5).astype(np.uint8))
    return folder


def test_metrics_are_those_of_corrupted_images(trained, few):
    _, two, _ = trained
    found = evaluate_corruptions([TrainedRun(two)], TARGETS, refresh=True)  # other tests keep other kinds
    run, (images, _) = TrainedRun(two), TrainedRun(two).images("test")
    for place, kind in enumerate(few):
        for severity in (1, 4):
            generator = generator_for(place * 5 + severity - 1, 0, "corruption")
            corrupted = corrupt(images.images, kind, severity, generator)
            with torch.no_grad():
                logits = run.network.members(run.prepare(corrupted))
            metrics = evaluate(logits, images.labels)
            for key, value in found.kinds[kind][severity].items():
                assert value == pytest.approx(metrics[key]), key
    names = {f"{who}{key}" for who in ("", "member_0/", "member_1/") for key in ("accuracy", "nll", "ece")}
    assert set(found.kinds["fog"][1]) == names
    assert "CIFAR-C" in found.source and "generated" in found.source


def test_every_network_sees_the_same_corruptions(trained):
    _, two, one = trained
    sets = [GeneratedCorruptions(TrainedRun(run)) for run in (two, one)]
    for kind in ("glass_blur", "snow"):
        first, second = (next(each.batches(kind, 3))[0] for each in sets)
        assert torch.equal(first, second)


def test_streamed_images_are_corrupted_alike(trained):
    _, two, _ = trained
    in_memory = GeneratedCorruptions(TrainedRun(two))
    run = TrainedRun(two)
    run.settings.data.in_memory, run.settings.data.image_size = False, 8
    streamed = GeneratedCorruptions(run)
    for (a, b), (c, d) in zip(in_memory.batches("frost", 2), streamed.batches("frost", 2), strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)


def test_a_stopped_call_is_resumed_and_a_second_one_costs_nothing(trained, few, evaluated, monkeypatch):
    _, two, _ = trained
    before = set((two.path / "predictions").glob("corruptions-*.json"))
    whole = evaluate_corruptions([TrainedRun(two)], TARGETS, precision="bf16-mixed")
    (file,) = set((two.path / "predictions").glob("corruptions-*.json")) - before
    note = json.loads(file.read_text())
    del note["sha256"]
    cache_json(file, note | {"whole": False, "kinds": {"fog": note["kinds"]["fog"]}})
    evaluated.clear()
    assert evaluate_corruptions([TrainedRun(two)], TARGETS, precision="bf16-mixed") == whole
    assert set(evaluated) == {"contrast"}
    evaluated.clear()
    file.write_text("damaged")
    assert evaluate_corruptions([TrainedRun(two)], TARGETS, precision="bf16-mixed") == whole
    assert set(evaluated) == {"fog", "contrast"}
    monkeypatch.setattr(inference, "load_checkpoint", None)
    assert evaluate_corruptions([TrainedRun(two)], TARGETS, precision="bf16-mixed") == whole


def test_replaced_pictures_are_corrupted_again(trained, few, tmp_path):
    folder, two, _ = trained
    run = copy_run(two, folder, tmp_path)
    before = evaluate_corruptions([TrainedRun(run)], TARGETS)
    shutil.rmtree(tmp_path / "data" / "test")
    write_images(tmp_path / "data" / "test", count=4, seed=9)
    after = evaluate_corruptions([TrainedRun(run)], TARGETS)
    assert after != before
    shutil.rmtree(run.path / "predictions")
    assert evaluate_corruptions([TrainedRun(run)], TARGETS) == after


def test_views_and_weights_hold_for_corrupted_images_too(trained, few):
    """Against a manual computation: logits of image and mirror image, times the weight of their run."""
    runs, weights = [TrainedRun(run) for run in trained[1:]], (1.5, 0.5)
    found = evaluate_corruptions(runs, TARGETS, tta="flip", weights=weights).kinds["fog"][3]
    ((images, labels),) = GeneratedCorruptions(runs[0]).batches("fog", 3)
    logits = []
    for run, weight in zip(runs, weights, strict=True):
        shown = run.prepare(images)
        with torch.no_grad():
            logits.append(weight * (run.network.members(shown) + run.network.members(shown.flip(3))) / 2)
    average = torch.cat(logits, 1).double().mean(1)
    assert found["nll"] == pytest.approx(torch.nn.functional.cross_entropy(average, labels).item(), rel=1e-5)


def test_members_of_a_network_without_weight_are_left_out(trained, few):
    """As on clean images; the others' logits average to the ensemble's."""
    runs = [TrainedRun(trained[2]), TrainedRun(trained[1])]
    found = evaluate_corruptions(runs, TARGETS, weights=(0.0, 2.0)).kinds["fog"][3]
    ((images, labels),) = GeneratedCorruptions(runs[0]).batches("fog", 3)
    with torch.no_grad():
        logits = 2 * 2 / 3 * runs[1].network.members(runs[1].prepare(images))
    for member in (0, 1):
        nll = torch.nn.functional.cross_entropy(logits[:, member], labels).item()
        assert found[f"member_{member}/nll"] == pytest.approx(nll, rel=1e-5)
    assert "member_2/nll" not in found


@pytest.mark.parametrize(("key", "value"), [("window", [0.0, 9.0]), ("interpolation", "bilinear"), ("image_size", 6)])
def test_networks_of_other_pixels_are_no_ensemble(trained, key, value):
    """The first run's decoded images are corrupted for all."""
    runs = [TrainedRun(run) for run in trained[1:]]
    setattr(runs[1].settings.data, key, value)
    with pytest.raises(InputError, match=rf"one has data\.{key} .*: they cannot be ensembled"):
        evaluate_corruptions(runs, TARGETS)


@pytest.fixture
def evaluated(monkeypatch):
    """The kinds of corruption for which a network predicted."""
    honest, kinds = robustness._measure, []

    def counted(networks, corruptions, kind, *rest):
        kinds.append(kind)
        return honest(networks, corruptions, kind, *rest)

    monkeypatch.setattr(robustness, "_measure", counted)
    return kinds


def test_what_makes_corruptions_be_evaluated_again(trained, few, evaluated, monkeypatch):
    _, two, _ = trained
    evaluate_corruptions([TrainedRun(two)], TARGETS)
    evaluated.clear()
    evaluate_corruptions([TrainedRun(two)], TARGETS)
    assert not evaluated
    evaluate_corruptions([TrainedRun(two)], TARGETS, refresh=True)
    assert set(evaluated) == set(few)
    evaluated.clear()
    for name, value in (("__version__", "0.0.7"), ("REVISION", 1)):
        evaluated.clear()
        monkeypatch.setattr(robustness, name, value)
        evaluate_corruptions([TrainedRun(two)], TARGETS)
        assert set(evaluated) == set(few)


def test_changed_metrics_are_noticed(trained, few, caplog):
    """Valid JSON with changed values."""
    _, two, _ = trained
    whole = evaluate_corruptions([TrainedRun(two)], TARGETS)
    for file in (two.path / "predictions").glob("corruptions-*.json"):
        file.write_text(re.sub(r'"accuracy": 0\.\d+', '"accuracy": 0.99', file.read_text()))
    assert evaluate_corruptions([TrainedRun(two)], TARGETS) == whole
    (warning,) = caplog.messages
    assert warning.endswith("is damaged or of an earlier version; it is computed again.")


def test_metrics_that_cannot_be_kept_are_shown(trained, few, tmp_path, monkeypatch, caplog):
    folder, two, _ = trained
    run = copy_run(two, folder, tmp_path)
    expected = evaluate_corruptions([TrainedRun(two)], TARGETS).kinds

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    assert evaluate_corruptions([TrainedRun(run)], TARGETS).kinds == expected
    (warning,) = caplog.messages  # one, not one for each kind
    assert warning.endswith("No space left on device. The result is not cached.")


def test_published_files(trained, published, capsys):
    """Images that no severity changes: every metric is the clean one."""
    _, two, _ = trained
    assert main(["test", str(two.path), "--corruptions", str(published)]) == 0
    assert "rain" in capsys.readouterr().out
    content = json.loads((two.path / "test.json").read_text())
    assert list(content["corruptions"]["kinds"]) == ["fog", "rain"]
    assert content["corruptions"]["source"] == f"read from {published}"
    for key in ("accuracy", "nll", "ece"):
        assert content[f"corruption/{key}"] == pytest.approx(content[key])
        assert content[f"corruption/member_1/{key}"] == pytest.approx(content[f"member_1/{key}"])


def test_published_files_of_another_size_are_refused(tmp_path):
    """Also for a run whose images are not scaled."""
    folder = write_splits(tmp_path / "data", size=8)
    run = RunFolder(tmp_path / "run")
    fit(plan_of(folder, "--data.image_size=null", "--trainer.max_epochs=1"), run)
    labels = np.tile(np.repeat(np.arange(3), 4), 5)
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "fog.npy", np.zeros((len(labels), 32, 32, 3), np.uint8))
    with pytest.raises(InputError, match=r"fog.npy holds uint8 of shape \(60, 32, 32, 3\); .* \(60, 8, 8, 3\)"):
        evaluate_corruptions([TrainedRun(run)], torch.arange(3).repeat_interleave(4), tmp_path)


def test_corruptions_of_an_ensemble_of_runs(trained, few):
    _, two, one = trained
    found = evaluate_corruptions([TrainedRun(two), TrainedRun(one)], TARGETS).kinds
    parts = [evaluate_corruptions([TrainedRun(run)], TARGETS).kinds for run in (two, one)]
    assert found["fog"][2]["member_0/nll"] == pytest.approx(parts[0]["fog"][2]["member_0/nll"])
    assert found["fog"][2]["member_2/nll"] == pytest.approx(parts[1]["fog"][2]["nll"])


def test_test_shows_and_keeps_them(trained, few, capsys):
    _, two, _ = trained
    assert main(["test", str(two.path), "--corruptions"]) == 0
    out = capsys.readouterr().out
    assert "corruptions, generated" in out and "contrast" in out
    content = json.loads((two.path / "test.json").read_text())
    cells = [cell["nll"] for kind in content["corruptions"]["kinds"].values() for cell in kind.values()]
    assert len(cells) == 2 * len(SEVERITIES)
    assert content["corruption/nll"] == pytest.approx(np.mean(cells))
    page = (two.path / "report.html").read_text()
    assert "<h2>Corruptions</h2>" in page and "Accuracy, %, at severity" in page


def test_means_and_tables(trained, few):
    _, two, _ = trained
    found = evaluate_corruptions([TrainedRun(two)], TARGETS, refresh=True)  # other tests keep other kinds
    assert [row[0] for row in corruption_table(found).rows] == [*few, "mean"]
    by_severity = severity_means(found, "member_1")
    assert np.mean(by_severity) == pytest.approx(100 * found.means()["member_1/accuracy"])


def shape(name, *size, kind=np.uint8):
    return lambda folder: np.save(folder / f"{name}.npy", np.zeros(size, kind))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "labels.npy").unlink(), "holds no corruptions"),
        (lambda folder: [file.unlink() for file in folder.glob("[fr]*.npy")], "holds no corruptions"),
        (lambda folder: (folder / "fog.npy").write_bytes(b"broken"), "fog.npy cannot be read as an .npy file"),
        (shape("fog", 60, 8, 8), "fog.npy holds uint8 of shape (60, 8, 8)"),
        (shape("fog", 30, 8, 8, 3), "of shape (60, 8, 8, 3)"),
        (shape("fog", 60, 8, 8, 3, kind=float), "fog.npy holds float64"),
        (shape("labels", 60), "labels.npy does not have the test set's class counts"),
        (lambda folder: np.save(folder / "fog.npy", np.array([None] * 60)), "Python objects in dtype"),
        (lambda folder: (folder / "fog.npy").write_bytes(b""), "fog.npy cannot be read as an .npy file"),
        (lambda folder: (folder / "fog.npy").write_bytes((folder / "fog.npy").read_bytes()[:-9]), "mmap length"),
        (shape("fog", 0), "fog.npy holds uint8 of shape (0,)"),
        (
            lambda folder: np.save(folder / "labels.npy", np.full(60, 2**64 - 1, np.uint64)),
            "labels.npy does not have the test set's class counts",
        ),
        (shape("labels", 58), "labels.npy holds uint8 of shape (58,)"),
        (lambda folder: np.save(folder / "labels.npy", np.array(3)), "labels.npy holds int64 of shape ()"),
        (lambda folder: np.save(folder / "labels.npy", np.array(["a"] * 60)), "labels.npy holds <U1"),
        (
            lambda folder: np.save(folder / "labels.npy", np.full(60, 7)),
            "labels.npy does not have the test set's class counts",
        ),
    ],
)
def test_bad_files_are_one_sentence(trained, published, capsys, spoil, message):
    _, two, _ = trained
    spoil(published)
    assert main(["test", str(two.path), "--corruptions", str(published)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_missing_folder_is_one_sentence(trained, capsys):
    _, two, _ = trained
    assert main(["test", str(two.path), "--corruptions", "nowhere"]) == 2
    assert "there is no folder of corruptions nowhere" in capsys.readouterr().err


def test_clean_images_are_untouched(trained):
    """No corruption modifies its input in place."""
    _, two, _ = trained
    corruptions = GeneratedCorruptions(TrainedRun(two))
    images = corruptions.loader.dataset.images
    before = images.clone()
    for kind in KINDS:
        for corrupted, _ in corruptions.batches(kind, 5):
            assert corrupted.shape == images.shape
    assert torch.equal(images, before)
