"""Images with several labels, from training to predictions: two digits side by side."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from torch.utils.data import Dataset

import mixmo
from mixmo import header
from mixmo.cli.main import main
from mixmo.data.tables import open_rows
from mixmo.deploy.export import export
from mixmo.deploy.hub import save_pretrained
from mixmo.errors import InputError
from mixmo.evaluation.calibration import load_cached_calibration, pool_calibration
from mixmo.evaluation.predictions import predict
from mixmo.metrics.chunks import mean_logits
from mixmo.metrics.multi_label import best_thresholds

FAST = {"batch_size": 16, "epochs": 2, "padding": 1, "flip": False, "progress": False,
        "precision": "32-true"}  # fmt: skip
NET = "wide_resnet10_1"
NAMES = ["zero", "one", "two", "three", "four"]


def draw(pool, count):
    """Pairs of digits (count, 8, 16), and whether each of five digits is among the two (count, 5)."""
    found = load_digits(n_class=5)
    pixels = (found.images * (255 / 16)).round().astype(np.uint8)
    first, second = np.random.default_rng(len(pool)).choice(pool, (2, count))
    labels = np.zeros((count, 5), np.uint8)
    for part in (first, second):
        labels[np.arange(count), found.target[part]] = 1
    return np.concatenate([pixels[first], pixels[second]], 2), labels


@pytest.fixture(scope="module")
def images():
    return {"train": draw(np.arange(600), 320), "test": draw(np.arange(600, 900), 120)}


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    return mixmo.fit(NET, **images, out=tmp_path_factory.mktemp("runs") / "two", **FAST)


def test_metrics_are_those_of_the_networks_logits(run, images):
    found = run.test()
    with torch.no_grad():
        members = run.network.members(torch.from_numpy(images["test"][0]).float()[:, None] / 127.5 - 1)
    logits, targets = members.mean(1).double(), torch.from_numpy(images["test"][1])
    p = logits.sigmoid().numpy()
    assert found["map"] == pytest.approx(average_precision_score(images["test"][1], p), abs=1e-4)
    assert found["map"] > images["test"][1].mean() + 0.15  # chance level, plus what it has learned
    validation = predict(run, "validation")
    known = load_cached_calibration(run)
    scaled = mean_logits(validation.logits).double() / known.temperature
    assert torch.equal(known.thresholds, best_thresholds(scaled.sigmoid(), validation.targets))
    row = run.metrics[-1]
    expected = average_precision_score(validation.targets.numpy(), scaled.numpy())
    assert row["val_map"] == pytest.approx(expected, abs=1e-4)
    tuned = (logits / known.temperature).sigmoid() > known.thresholds
    hits = (tuned & targets.bool()).sum()
    assert found["f1_micro_tuned"] == pytest.approx(float(2 * hits / (tuned.sum() + targets.sum())))
    assert not {"accuracy", "nll", "ece", "d_re", "aurc", "set_size_95", "train_accuracy"} & found.keys()
    page = run.report.read_text()
    assert "mean average precision of" in page and "Average precision, %" in page
    assert not any(word in page for word in ("Confusion", "Reliability", "Most confident mistakes", "Wilson"))


def test_predictions_are_the_labels_above_their_thresholds(run, images, tmp_path, capsys):
    some = list(images["test"][0][:4])
    found, known = run.predict(some), load_cached_calibration(run)
    with torch.no_grad():
        logits = run.network(torch.from_numpy(images["test"][0][:4]).float()[:, None] / 127.5 - 1).double()
    torch.testing.assert_close(found.probabilities, (logits / known.temperature).sigmoid())
    assert torch.equal(found.present, found.probabilities > known.thresholds)
    assert found.labels == [[str(k) for k in range(5) if row[k]] for row in found.present]
    for format in ("timm", "safetensors", "onnx"):
        path = run.export(format, tmp_path / format.replace("onnx", "n.onnx").replace("safet", "n.safet")).path
        again = mixmo.Predictor(path)(some)
        torch.testing.assert_close(again.probabilities, found.probabilities, atol=1e-5, rtol=1e-4)
        assert torch.equal(again.thresholds, found.thresholds)
    run.test()
    shared = save_pretrained(run.path, tmp_path / "hub")
    torch.testing.assert_close(mixmo.Predictor(shared)(some).probabilities, found.probabilities)
    card = (shared / "README.md").read_text()
    assert "| mAP ↑ |" in card and "the labels above their thresholds" in card and "epistemic" not in card
    Image.fromarray(some[0]).save(tmp_path / "a.png")
    assert main(["predict", str(run.path), str(tmp_path / "a.png"), "--out", str(tmp_path / "p.csv")]) == 0
    (row,) = csv.DictReader((tmp_path / "p.csv").open(newline=""))
    assert row["labels"] == "|".join(found.labels[0])
    assert row["probabilities"].startswith(f"0 {found.probabilities[0, 0]:.4f}; 1 ")


class Lists(Dataset):
    """A Dataset with labels as lists of names."""

    classes = NAMES

    def __init__(self, images, labels):
        self.images, self.targets = images, [[NAMES[k] for k in np.flatnonzero(row)] for row in labels]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.targets[index]


def test_lists_of_names_and_tensors_are_the_same_run(run, images):
    named = mixmo.fit(NET, Lists(*images["train"]), test=Lists(*images["test"]), **FAST)
    assert named.header.classes == NAMES and named.test()["map"] == run.test()["map"]
    images, labels = (torch.from_numpy(each) for each in images["train"])
    own = FAST | {"epochs": 1, "padding": 0}  # floats are not augmented
    floats = mixmo.fit(NET, (images[:64, None].float() / 127.5 - 1, labels[:64].float()), **own)
    assert floats.settings.data.multi_label and floats.settings.data.own_transforms


def test_several_runs_are_one_ensemble_and_are_compared(run, images, tmp_path):
    single = mixmo.fit(NET, **images, num_members=1, pixels_kind="cutmix", label_smoothing=0.1, **FAST)
    found = mixmo.compare({"two": run, "one": single, "both": [run, single]}, out=tmp_path)
    table = {row["group"]: row for row in found.table}
    joined = [predict(each).logits for each in (run, single)]
    average = torch.cat(joined, 1).double().mean(1)
    assert table["both"]["map"] == pytest.approx(average_precision_score(images["test"][1], average.numpy()))
    both = export([run, single], "onnx", tmp_path / "both.onnx").path
    known = pool_calibration([predict(each, "validation") for each in (run, single)], ["two", "one"])
    answers = mixmo.Predictor(both)(list(images["test"][0][:3]))
    torch.testing.assert_close(answers.probabilities, (average[:3] / known.temperature).sigmoid(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(answers.thresholds, known.thresholds)
    gain = found.differences["one"]["map"]
    assert gain.value == pytest.approx(table["one"]["map"] - table["two"]["map"]) and np.isnan(gain.low)
    assert found.sentence.startswith("two reaches a mean average precision of") and "mAP" in str(found)
    page = (tmp_path / "comparison.html").read_text()
    assert not any(word in page for word in ("McNemar", "Reliability", "correctly", "over test images"))


def sweep_of(folder):
    """Write a sweep of one and of two members, each with two seeds, on the table in a folder; return its file."""
    text = f"""extends: digits-cut
data: {{name: "csv:{folder}/t.csv", multi_label: true, batch_size: 16, validation: 0.2}}
trainer: {{max_epochs: 1}}
sweep: {{grid: {{model.num_members: [1, 2]}}, seeds: [0, 1]}}
"""
    (folder / "s.yaml").write_text(text)
    return str(folder / "s.yaml")


def test_a_table_is_trained_swept_and_tested_by_the_command_line(images, tmp_path, capsys):
    pixels, labels = (each[:60] for each in images["train"])
    rows = []
    for number, (image, row) in enumerate(zip(pixels, labels, strict=True)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'|'.join(NAMES[k] for k in np.flatnonzero(row))}")
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    assert main(["sweep", sweep_of(tmp_path), "--out", str(tmp_path / "sweep")]) == 0
    shown = capsys.readouterr().out
    with (tmp_path / "sweep/trials.csv").open(newline="") as file:
        trials = list(csv.DictReader(file))
    for trial in trials:
        row = mixmo.Run(tmp_path / "sweep" / trial["trial"]).metrics[-1]
        assert float(trial["val_score"]) == pytest.approx(row["val_map"], rel=1e-4) and "val_accuracy" not in row
    scores = {members: np.mean([float(row["val_score"]) for row in trials if row["model.num_members"] == members])
              for members in "12"}  # fmt: skip
    best = max(scores, key=scores.get)
    assert f"Selected on validation data: num_members-{best}, {100 * scores[best]:.1f} %" in shown and "mAP, %" in shown
    page = (tmp_path / "sweep/comparison/comparison.html").read_text()
    assert "over seeds" in page and f"num_members-{best}" in page
    out, words = str(tmp_path / "run"), ["--data.name", f"csv:{tmp_path}/t.csv", "--data.multi_label"]
    words += ["--data.batch_size", "16", "--trainer.max_epochs", "1", "--data.validation", "0.2"]
    assert main(["fit", "digits-cut", *words, "--run", out]) == 0
    assert main(["test", out, "--per_class"]) == 0
    shown = capsys.readouterr().out
    assert (
        "Training images" not in shown
        and "mAP, %" in shown
        and "Average precision, %" in shown
        and "a threshold for each class" in shown
    )
    assert main(["test", out]) == 0 and not {"accuracy", "ece"} & mixmo.Run(out).test().keys()


def test_what_is_of_one_class_for_each_image_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="ood is only for single-label networks"):
        run.test(ood=["digits"])
    with pytest.raises(InputError, match="corruptions is only for single-label networks"):
        run.test(corruptions=True)
    with pytest.raises(InputError, match="coverage is only for single-label networks"):
        run.predict(np.zeros((8, 16), np.uint8), coverage=0.9)
    with pytest.raises(InputError, match="sets is only for single-label networks"):
        run.predict(np.zeros((8, 16), np.uint8), sets="aps")
    for option in ("softmax", "members"):
        with pytest.raises(InputError, match=f"{option} is only for single-label networks"):
            run.export("onnx", tmp_path / "a.onnx", **{option: True})
    for setting in ({"class_weights": "balanced"}, {"sampler": "balanced"}):
        with pytest.raises(InputError, match=r"are only for single-label images; leave them out with"):
            mixmo.fit(NET, draw(np.arange(600), 80), **FAST, **setting)
    with pytest.raises(InputError, match="class_weights are only for single-label images"):
        mixmo.BatchMixer(run.network, multi_label=True, class_weights=[1.0] * 5)


def test_an_earlier_version_refuses_the_network(run, monkeypatch):
    assert run.header.to_dict()["format"] == 2 and run.header.multi_label
    monkeypatch.setattr(header, "FORMAT", 1)
    with pytest.raises(InputError, match="is of format 2, but this version of mixmo reads formats up to 1"):
        header.Header.from_dict(run.header.to_dict() | {"format": 2})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((8, 3), 0.5), r"train image 0 has the labels .* 0 or 1 for each class"),
        ([[0, 1], [1, 1]] * 4, r"train image 1 has the labels \[1, 1\]; .* each once"),
        ([[0, 1], 2] * 4, "train image 1 has the labels 2; they have to be a list"),
        ([["a"], ["b", 3]] * 4, "train image 1 has the label"),
        ([[]] * 8, "train has no class, since no image has a label"),
        (np.array([[1, 1, 0, 0], [0, 1, 1, 0]] * 4), "no training image of 3 exists or can be read"),
    ],
)
def test_labels_that_are_none_are_one_sentence(labels, message):
    with pytest.raises(InputError, match=message):
        mixmo.fit(NET, (np.zeros((8, 8, 8), np.uint8), labels), **FAST)


def test_validation_images_without_any_label_are_refused(images):
    pixels, labels = images["test"]
    with pytest.raises(InputError, match="no validation image of 'given' has a label"):
        mixmo.fit(NET, images["train"], val=(pixels[:8], 0 * labels[:8]), **FAST)


def test_thresholds_from_few_images_of_a_class_are_named(images, caplog):
    """The last class occurs only in a few of the first 40 images."""
    pixels, labels = images["train"][0], images["train"][1].copy()
    labels[40:, 4] = 0
    run = mixmo.fit(NET, (pixels, labels), **FAST | {"epochs": 1})
    counts = predict(run, "validation").targets.sum(0)
    rare = [str(number) for number in range(5) if counts[number] < 10]
    assert "4" in rare and len(rare) < 5
    (text,) = [text for text in caplog.messages if "thresholds" in text]
    assert text.startswith(f"{len(rare)} of 5 classes have fewer than 10 validation images: ") and "4" in text


def test_other_programs_predictions(run, images, tmp_path):
    logits, targets = predict(run).logits.numpy(), images["test"][1]
    np.savez(tmp_path / "l.npz", logits=logits, targets=targets)
    np.savez(tmp_path / "p.npz", probabilities=torch.from_numpy(logits).double().sigmoid().numpy(), targets=targets)
    found = mixmo.compare(*(tmp_path / f"{kind}.npz" for kind in "lp")).table
    assert found[0]["map"] == pytest.approx(run.test()["map"]) and found[1]["bce"] == pytest.approx(found[0]["bce"])


def test_one_label_each_is_told(images, caplog):
    with caplog.at_level("WARNING", "mixmo"):
        mixmo.fit(NET, (images["train"][0][:40], np.eye(5, dtype=int)[np.arange(40) % 5]), **FAST | {"epochs": 1})
    assert "each training image of 'given' has one label" in caplog.text


def test_a_table_whose_cells_list_labels_is_told_of(tmp_path, caplog):
    file = tmp_path / "t.csv"
    with caplog.at_level("WARNING", "mixmo"):
        assert open_rows(file, [("0.png", "a|b", ""), ("1.png", "b", "")], "raise").classes == ["a|b", "b"]
    assert "has the label a|b, used as one class" in caplog.text
