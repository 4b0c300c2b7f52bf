"""Methods other than MixMo: each trains with equal compute, and makes each of its rows once."""

import doctest
import importlib
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import InThisProcess, write_images

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
methods, training, study_plans = map(importlib.import_module, ("methods", "methods_training", "study_plans"))

STUDY = """
seeds: [3]
settings:
  extends: [digits]
  model: {backbone: wide_resnet10_2}
  data: {batch_size: 20, validation: 0.0, images_per_class: 4, image_size: 8, padding: 1}
tasks: {few: {passes: 2}}
"""
PACKAGES = {
    "MC dropout": "torch_uncertainty",
    "BatchEnsemble": "torch_uncertainty",
    "Masksembles": "torch_uncertainty",
    "Packed-Ensembles": "torch_uncertainty",
    "last-layer Laplace": "laplace",
}
MEMBERS = {"two networks, equal training": 2, "snapshot ensemble": 4, "flip TTA": 2, "MC dropout": 10,
           "BatchEnsemble": 2, "Masksembles": 2, "Packed-Ensembles": 4, "Asymmetric Duo": 2}  # fmt: skip


def plan_of(**data):
    """Return the plan of a method on the task, with changed data settings."""
    study = yaml.safe_load(STUDY)
    parts = [study["settings"], study["tasks"]["few"], {**methods.BASE, "data": data}]
    return next(study_plans.plans_of(parts, 3, {}))


def opened(plan):
    """Open its images, with few test images."""
    data = methods.DataModule(plan.settings.data, plan.settings.seed, check=True)
    test = data.source("test")
    data.leave_out({test.name(index) for index in range(60, len(test))})
    return data


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs the program in this process (other tests cover subprocesses); returns its output."""
    for module in (methods, importlib.import_module("tuning")):
        monkeypatch.setattr(module, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def called(*names):
        words = [str(tmp_path / "few.yaml"), f"--out={tmp_path / 'rows'}", "--jobs=1", "--methods", *names]
        monkeypatch.setattr(sys, "argv", ["methods.py", *words])
        methods.main()
        return capsys.readouterr().out

    return called


@pytest.fixture(scope="module")
def single():
    plan = plan_of()
    return training.train_single(opened(plan), plan.settings, 3)


@pytest.mark.parametrize("name", training.METHODS)
def test_each_method_trains_at_equal_compute(name, single):
    """Logits are finite, members differ, and as many images are seen as by one network in the same passes."""
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    plan = plan_of(flip=name == "flip TTA")
    data = opened(plan)
    trained = training.METHODS[name](data, plan.settings, 3)
    test = methods.predict_all(trained, data, plan.settings, [])["test"]
    members = MEMBERS.get(name, 1)
    assert test.logits.shape == (len(data.test), members, 10) and test.logits.isfinite().all()
    for one, other in zip(test.logits.unbind(1), test.logits.unbind(1)[1:], strict=False):
        assert not torch.allclose(one, other)
    assert single.images_seen == 2 * 40
    if name == "Asymmetric Duo":  # whole steps of two networks
        assert 0.75 * single.images_seen < trained.images_seen <= single.images_seen
    else:
        assert trained.images_seen == single.images_seen
    assert trained.parameters >= single.parameters
    macs = training.macs_of(trained.members, training.first_images(data, plan.settings, 1))
    own = training.macs_of(single.members, training.first_images(data, plan.settings, 1))
    costs = {"Asymmetric Duo": 1.27, "Packed-Ensembles": 1}.get(name, members)
    if name == "last-layer Laplace":  # and what its variances cost
        assert macs > own
    else:
        assert macs == pytest.approx(costs * own, rel=0.03)


def test_draws_depend_on_the_seed_alone():
    plan = plan_of()
    one, two, other = (
        methods.predict(training.train_single(data, plan.settings, seed), data.test, plan.settings).logits
        for seed in (3, 3, 4)
        for data in [opened(plan)]
    )
    assert torch.equal(one, two) and not torch.allclose(one, other)


def test_masks_have_a_seed():
    """torch-uncertainty draws them from a separate generator."""
    pytest.importorskip("torch_uncertainty")
    plan = plan_of()
    data = opened(plan)
    one, two = (training.train_masksembles(data, plan.settings, 3) for _ in range(2))
    images = training.first_images(data, plan.settings, 4)
    assert torch.equal(one.members(images), two.members(images))


def test_methods_that_do_not_fit_say_why():
    plan = plan_of()
    with pytest.raises(training.SkippedError, match="mirrors no images"):
        training.train_flipped(opened(plan), plan.settings, 3)
    with pytest.raises(training.SkippedError, match=r"nothing\.installed is not installed"):
        training.need("nothing.installed", "nothing.installed")
    plan = plan_of(batch_size=13)
    with pytest.raises(training.SkippedError, match="cannot share a batch of 13"):
        training.repeated(torch.nn.Identity(), opened(plan), plan.settings, 3)


def test_rows_are_made_once(tmp_path, call):
    """A second call trains nothing; only columns that the task does not define are empty."""
    (tmp_path / "few.yaml").write_text(STUDY)
    names = ("single", "SWA")
    call(*names)
    file = tmp_path / "rows" / "few.methods.csv"
    rows, content = study_plans.read_rows(file), file.read_text()
    assert [row["method"] for row in rows] == list(names) and {row["images_in_training"] for row in rows} == {"80"}
    assert all({key for key, value in row.items() if not value} == {"ood_auroc", "ood_fpr95"} for row in rows)
    file.write_text("".join(content.splitlines(True)[:-1]))  # stopped before the last row
    assert call(*names).count("'task'") == 1
    assert [row["method"] for row in study_plans.read_rows(file)] == list(names)
    assert "'task'" not in call(*names)


def test_methods_are_tuned_as_a_study_is(tmp_path, call):
    """By folds of the training images, which are then excluded from the test set."""
    tuning = "evaluate: {ood: [torch/fashion_mnist]}\n"
    tuning += "tuning: {trials: 2, seed: 1, folds: 2, space: {optimizer.base_lr: {low: 0.01, high: 0.1}}}\n"
    (tmp_path / "few.yaml").write_text(STUDY.replace("validation: 0.0", "validation: 0.1") + tuning)
    for folder in ("train", "test"):
        write_images(tmp_path / "others" / folder, classes=("cat", "dog"), count=3)
    others = f"folder:{tmp_path / 'others'}"
    printed = call("single", "flip TTA", "--data", f"torch/fashion_mnist={others}")
    assert "flip TTA is left out: training mirrors no images" in printed
    row, trials, chosen = (
        study_plans.read_rows(tmp_path / f"rows/few.methods{kind}.csv") for kind in ("", ".trials", ".chosen")
    )
    assert {(each["trial"], each["fold"]) for each in trials} == {("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")}
    assert {(each["training_images"], each["validation_images"]) for each in trials} == {("20", "20")}
    assert float(row[0]["base_lr"]) == yaml.safe_load(chosen[0]["settings"]).get("optimizer.base_lr", 0.1)
    assert 1 <= float(row[0]["set_size_95_two_fold"]) <= 10 and 0 <= float(row[0]["ood_auroc"]) <= 1


def test_rates_and_weights():
    """Restarts begin at the peak; an uninformative member gets no weight, and weights have mean 1."""
    assert [training.cosine(share) for share in (0, 0.5, 1)] == [1, 0.5, 0]
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (400,), generator=generator)
    good = 1.5 * torch.eye(3)[targets] + torch.randn(400, 3, generator=generator)
    noise = torch.randn(400, 3, generator=generator)
    weights = methods.fit_weights(torch.stack([good, noise], 1), targets)
    assert weights.mean().item() == pytest.approx(1) and weights[0] > 1.6
    found = {"test": methods.Predictions(torch.stack([good, noise], 1), targets, ["a", "b", "c"])}
    weighed = methods.weigh(found)["test"].logits.mean(1)
    plain = methods.evaluate(torch.stack([good, noise], 1), targets)
    assert methods.evaluate(weighed, targets)["nll_two_fold"] < plain["nll_two_fold"]


def test_examples_in_methods():
    found = doctest.testmod(training)
    assert found.attempted >= 1 and not found.failed
