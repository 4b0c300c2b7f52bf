"""Learning rates, runs, checkpoints: published schedules, resuming bit for bit, stopping in time."""

import csv
import json
import math
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from conftest import describe_otherwise, plan_of, write_splits
from tensorboard.backend.event_processing import event_accumulator

import mixmo
from mixmo.config.plan import make_plan
from mixmo.config.recipes import catalogue, load_recipe
from mixmo.config.settings import OptimizerSettings
from mixmo.errors import TrainingError
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.results import EvaluationOptions
from mixmo.evaluation.results_file import evaluate_run
from mixmo.runs import RunFolder
from mixmo.training.fit import fit
from mixmo.training.optimizers import Schedule, build_optimizer, warmup_steps


def weights(run, which="last"):
    return torch.load(run.checkpoint_file(which), weights_only=True)["state_dict"]


def test_published_drops_are_before_epochs_101_201_and_226():
    own = load_recipe("cifar100-wrn28x10-cut")["schedule"]
    schedule = Schedule("multistep", 3125, 300, 0, tuple(own["milestones"]), own["gamma"])
    rates = [schedule((epoch - 1) * 3125) for epoch in range(1, 301)]
    drops = [epoch for epoch in range(2, 301) if rates[epoch - 1] < rates[epoch - 2]]
    assert drops == [101, 201, 226]
    assert rates[-1] == pytest.approx(1e-3)
    assert schedule(100 * 3125 - 1) == 1.0


def test_published_drops_of_tiny_imagenet_are_before_epochs_600_and_900():
    own = load_recipe("tiny-preact18x1-cut")["schedule"]
    schedule = Schedule("multistep", 10, 1200, 0, tuple(own["milestones"]), own["gamma"])
    rates = [schedule((epoch - 1) * 10) for epoch in range(1, 1201)]
    assert [epoch for epoch in range(2, 1201) if rates[epoch - 1] < rates[epoch - 2]] == [600, 900]


def test_published_warm_up_and_peak_follow_batch_repetition():
    assert [warmup_steps(50_000, 64, b, 1) for b in (1, 2, 4)] == [782, 1564, 3128]
    assert [warmup_steps(100_000, 100, b, 1) for b in (1, 4)] == [1000, 4000]
    schedule = Schedule("multistep", 781, 300, 782)
    assert [schedule(k - 1) for k in (1, 2, 391, 782, 783)] == pytest.approx([1 / 782, 2 / 782, 0.5, 1, 1])
    for b, peak in {1: 0.05, 2: 0.025, 4: 0.0125}.items():
        plan = make_plan(load_recipe("cifar100-wrn28x10-cut"), [f"--data.batch_repetition={b}"])
        assert plan.settings.optimizer.peak_lr(b) == pytest.approx(peak)
        own = make_plan(load_recipe("cifar100-wrn28x10-cut"), [f"--data.batch_repetition={b}", "--optimizer.lr=0.3"])
        assert own.settings.optimizer.peak_lr(b) == 0.3


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_shaped_masks_are_drawn_until_the_last_twelfth_of_the_steps(whole, tmp_path, observed, epochs):
    """p is 1 until 11/12 of the steps are done, then 12 (1 - t): about 23/24 of all batches."""
    folder, _ = whole
    words = ["--mixer.probability=1", "--data.batch_repetition=8", f"--trainer.max_epochs={epochs}"]
    fit(plan_of(folder, *words), RunFolder(tmp_path / "run"))
    steps = 18 * epochs  # 18 images, U = 1
    certain = sum(12 * (1 - step / steps) >= 1 for step in range(steps))
    assert len(observed.shaped) == steps and certain >= 11 * steps // 12
    assert observed.shaped[:certain].count(False) <= certain // 20  # a rectangle can be empty or cover all


def test_published_staircase_of_p(whole, tmp_path, monkeypatch):
    """With epochs counted from 1 the whole last epoch has p = 0; published recipes set this, short ones do not."""
    folder, _ = whole
    progresses, sample = [], mixmo.Mixer.sample

    def noted(self, size, shape, generator=None, progress=0.0, device=None):
        progresses.append(progress)
        return sample(self, size, shape, generator, progress, device)

    monkeypatch.setattr(mixmo.Mixer, "sample", noted)
    wanted = {
        "steps": [step / 12 for step in range(12)],
        "epochs": [epoch / 3 for epoch in (1, 2, 3) for _ in range(4)],
    }
    for way, progress in wanted.items():
        fit(plan_of(folder, f"--mixer.progress={way}", "--trainer.max_epochs=3"), RunFolder(tmp_path / way))
        assert progresses[-12:] == pytest.approx(progress)  # 4 steps an epoch
    for name, recipe in catalogue().items():
        published = name.startswith(("cifar10-", "cifar100-wrn", "tiny-"))
        assert recipe["mixer"].get("progress", "steps") == ("epochs" if published else "steps"), name


def test_what_a_run_is_too_short_for_is_said(whole, tmp_path, caplog):
    folder, _ = whole
    short = ["--mixer.progress=epochs", "--trainer.max_epochs=1", "--optimizer.ema_decay=0.99"]
    short += ["--data.scale=[0.5,1]", "--data.color_jitter=0"]
    fit(plan_of(folder, *short), RunFolder(tmp_path / "short"))
    assert "the warm-up takes 6 steps and the run has 4, so the learning rate" in caplog.text
    assert "the last of 1 epochs has no shaped masks; use steps" in caplog.text
    assert "data.scale and data.color_jitter have no effect without data.augmentation photo" in caplog.text
    assert "averages over about 100 steps, more than a tenth of the run's 4; leave it out" in caplog.text
    caplog.clear()
    long = ["--trainer.max_epochs=2", "--optimizer.ema_decay=0.5", "--data.batch_repetition=8", "--data.color_jitter=0"]
    fit(plan_of(folder, *long), RunFolder(tmp_path / "long"))
    assert not caplog.text


def test_cosine_ends_at_zero():
    schedule = Schedule("cosine", 10, 5, 10)
    assert schedule(9) == pytest.approx(0.5 * (1 + math.cos(math.pi * 9 / 50)))
    assert schedule(50) == pytest.approx(0)


def test_a_short_run_trains_its_first_epoch_at_the_peak():
    """Although a third of one epoch rounds to none."""
    schedule = Schedule("multistep", 10, 1, milestones=(1 / 3, 2 / 3, 0.75))
    assert [schedule(step) for step in (0, 9, 10)] == pytest.approx([1, 1, 1e-3])


def test_decay_reaches_every_parameter_or_only_weights():
    net = mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=4)
    (group,) = build_optimizer(net, OptimizerSettings(weight_decay=6e-4, decay_all=True), 0.1).param_groups
    assert len(group["params"]) == len(list(net.parameters())) and group["weight_decay"] == 6e-4
    adamw = build_optimizer(net, OptimizerSettings(name="adamw", decay_all=False), 0.1)
    decayed = {g["weight_decay"]: g["params"] for g in adamw.param_groups}
    assert all(p.dim() < 2 for p in decayed[0.0]) and all(p.dim() > 1 for p in decayed[6e-4])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four epochs, and its data."""
    folder = write_splits(tmp_path_factory.mktemp("data"))
    run = RunFolder(folder / "run")
    fit(plan_of(folder, "--trainer.max_epochs=4", "--pixels.kind=cutmix"), run)
    return folder, run


def test_a_run_keeps_all_there_is_to_know(whole):
    _, run = whole
    files = {file.relative_to(run.path).as_posix() for file in run.path.rglob("*") if file.is_file()}
    wanted = {"config.yaml", "environment.json", "metrics.csv", "split.csv", ".lock"}
    assert files == wanted | {f"checkpoints/{name}.ckpt" for name in ("last", "previous", "best")}
    with run.metrics_file.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert [int(row["step"]) for row in rows] == [4, 8, 12, 16]  # 18 images, U = 4, the last two left out
    wanted = {"train_loss", "images_per_second", "val_accuracy", "val_nll", "val_member_1_accuracy", "lr", "seconds"}
    wanted |= {"train_member_0_accuracy", "train_member_1_accuracy"}
    assert wanted <= rows[0].keys()
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    environment = json.loads((run.path / "environment.json").read_text())
    assert torch.__version__.startswith(environment["packages"]["torch"]) and environment["cores"]


def test_the_stored_settings_make_the_same_run(whole, tmp_path):
    _, run = whole
    again = RunFolder(tmp_path / "again")
    fit(make_plan(run.config()), again)
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(again).values(), strict=True))


@pytest.mark.slow
def test_an_interrupted_process_leaves_a_run_that_goes_on(whole, tmp_path):
    """Killed processes are tested in test_resume.py."""
    folder, _ = whole
    run = RunFolder(tmp_path / "stopped")
    words = ["fit", "digits-cut", f"--data.name=folder:{folder}", "--data.batch_size=8", "--data.padding=1"]
    words += ["--data.image_size=null", "--data.channels=3", "--trainer.max_epochs=400", f"--run={run.path}"]
    code = f"""
import signal, sys, torch
from mixmo.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
torch.set_num_threads(1)
sys.exit(main({words}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while len(run.read_metrics()) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    assert process.returncode == 130
    assert re.search(rf"stopped by SIGINT after (step|epoch) \d+; `mixmo fit {run.path}` resumes it", error)
    done = len(run.read_metrics())
    assert done >= 2
    config = run.config()
    config["trainer"]["max_epochs"] = done + 2
    run.config_file.write_text(yaml.safe_dump(config))
    fit(make_plan(run.config()), run, resume=True)
    assert [int(row["epoch"]) for row in run.read_metrics()] == list(range(1, done + 3))
    assert mixmo.load(run.path).num_members == 2


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(whole, tmp_path):
    folder, _ = whole
    run = RunFolder(tmp_path / "run")
    plan = plan_of(folder, "--trainer.max_epochs=3")
    forward = mixmo.MixMo.forward

    def broken_in_the_second_epoch(self, inputs, masks=None, step=[0]):  # noqa: B006
        step[0] += self.training
        return forward(self, inputs, masks) * (float("nan") if step[0] == 6 else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixmo.MixMo, "forward", broken_in_the_second_epoch)
        with pytest.raises(TrainingError, match=r"not finite at step 5, with learning rate 0\.\d+"):
            fit(plan, run)
    assert torch.load(run.checkpoint_file(), weights_only=True)["epoch"] == 0
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_a_learning_rate_that_breaks_training_is_named(whole, tmp_path):
    folder, _ = whole
    plan = plan_of(folder, "--trainer.max_epochs=3", "--optimizer.lr=1e30", "--schedule.warmup_steps=0")
    with pytest.raises(TrainingError, match="learning rate"):
        fit(plan, RunFolder(tmp_path / "run"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["--model.num_members=1"],
        ["--model.num_members=5"],
        ["--mixer.kind=mimo", "--trainer.precision=bf16-mixed"],
        ["--data.batch_repetition=8"],
        ["--data.input_repetition=0.5"],
        ["--optimizer.name=adamw", "--optimizer.decay_all=false", "--optimizer.lr=0.001"],
        ["--data.in_memory=false", "--data.image_size=8", "--data.workers=1"],
        ["--data.channels=1", "--data.crop_size=6", "--data.validation=0.0", "--pixels.kind=mixup"],
        ["--loggers=[tensorboard]"],
        ["--model.mix_at=stages.0", "--mixer.kind=fmix"],
        ['--mixer.kind={"cut": 0.5, "channel": 0.5}', "--mixer.draw_per=sample"],
        ["--trainer.limit_train_batches=2", "--trainer.gradient_clip_val=1.0"],
    ],
    ids=lambda overrides: overrides[0][2:],
)
def test_settings_train_and_test(whole, tmp_path, overrides):
    folder, _ = whole
    run = RunFolder(tmp_path / "run")
    fit(plan_of(folder, "--trainer.max_epochs=2", *overrides), run)
    figures = evaluate_run(TrainedRun(run)).flat()
    stored = json.loads((run.path / "test.json").read_text())
    assert {key: stored[key] for key in figures} == figures
    assert stored["about"]["epochs"] == 2 and stored["about"]["images"] == 12
    assert 0 <= figures["accuracy"] <= 1 and math.isfinite(figures["nll"])
    if "--loggers=[tensorboard]" in overrides:
        events = event_accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload()
        losses = [float(row["train_loss"]) for row in run.read_metrics()]
        assert [event.value for event in events.Scalars("train_loss")] == pytest.approx(losses, rel=1e-4)


def test_test_json_repeats_what_the_loaded_network_says(whole):
    _, run = whole
    figures = evaluate_run(TrainedRun(run, "best"), EvaluationOptions(checkpoint="best")).flat()
    net = mixmo.load(run.path, "best")
    from mixmo.data.batches import Augmentation
    from mixmo.data.module import DataModule

    data = make_plan(run.config()).settings.data
    test = DataModule(data, 0).test
    with torch.no_grad():
        logits = net.members(Augmentation(data).center(test.images, torch.arange(12)))
    expected = mixmo.evaluate(logits, test.labels)
    assert {key: figures[key] for key in expected} == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert not net.training


def test_damaged_and_foreign_checkpoints_are_refused(whole, tmp_path):
    _, whole_run = whole
    run = RunFolder(tmp_path / "run")
    run.create(whole_run.config_file.read_text(), {})
    file = run.checkpoint_folder / "last.ckpt"
    content = whole_run.checkpoint_file().read_bytes()
    file.write_bytes(content[: len(content) // 2])
    for action in (lambda: mixmo.load(run.path), lambda: fit(make_plan(run.config()), run, resume=True)):
        with pytest.raises(ValueError, match=r"last\.ckpt is damaged"):
            action()
    file.write_bytes(content)
    config = run.config()
    config["model"]["backbone"] = "wide_resnet10_2"
    run.config_file.write_text(yaml.safe_dump(config))
    assert mixmo.load(run.path).backbone.stages[0][0].conv1.out_channels == 16  # as the checkpoint describes it
    with pytest.raises(ValueError, match=r"is not a checkpoint of this run: .* of another network"):
        fit(make_plan(run.config()), run, resume=True)
    assert file.read_bytes() == content
    describe_otherwise(run, backbone="wide_resnet10_2")
    with pytest.raises(ValueError, match="does not hold the network"):
        mixmo.load(run.path)


def test_what_is_missing_is_named(tmp_path, whole):
    with pytest.raises(FileNotFoundError, match="there is no run folder"):
        mixmo.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml"):
        mixmo.load(tmp_path)
    run = RunFolder(tmp_path / "run")
    run.create(whole[1].config_file.read_text(), {})
    with pytest.raises(FileNotFoundError, match="no last checkpoint"):
        mixmo.load(run.path)
    with pytest.raises(ValueError, match="unknown checkpoint 'lst'"):
        mixmo.load(run.path, "lst")


def test_a_run_is_never_overwritten(whole):
    folder, run = whole
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"exists already; .* resumes it"):
        fit(plan_of(folder), run)
    assert before == {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}


def test_images_that_do_not_fit_the_backbone_are_refused_before_the_run_exists(whole, tmp_path):
    folder, _ = whole
    run = RunFolder(tmp_path / "run")
    for overrides, message in {
        ("--model.backbone=vit_tiny_patch16_224",): "cannot take images of 8×8.*img_size",
        (
            "--model.backbone=vit_tiny_patch16_224",
            "--model.options.dynamic_img_size=true",
            "--model.options.dynamic_img_pad=true",  # to 16×16, with masks next to it
        ): "changes its input before its stem",
        ("--data.crop_size=20",): "crop_size is 20, larger than images of 8×8",
        ("--data.padding=8", "--data.padding_mode=reflect"): "images of 8×8 can be reflected by less than",
        ("--mixer.kind=cute",): "did you mean 'cut'",
    }.items():
        with pytest.raises(ValueError, match=message):
            fit(plan_of(folder, *overrides), run)
    assert not run.path.exists()


@pytest.mark.parametrize("units", [True, False])
def test_a_precision_that_the_processor_emulates_is_warned_of(whole, tmp_path, monkeypatch, caplog, units):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    for precision, slow in (("bf16-mixed", not units), ("32-true", False), ("null", False)):
        caplog.clear()
        fit(plan_of(whole[0], f"--trainer.precision={precision}"), RunFolder(tmp_path / precision))
        assert ("precision is bf16-mixed, but torch knows of no units for it on this cpu" in caplog.text) is slow


@pytest.mark.parametrize("name", [name for name in catalogue() if name.startswith(("cifar100-mini", "cifar100-fast"))])
def test_small_and_fast_recipes_take_the_precision_of_the_machine(monkeypatch, name):
    for units, precision in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda units=units: units)
        assert make_plan(load_recipe(name), ["--trainer.accelerator=cpu"]).settings.trainer.precision == precision
