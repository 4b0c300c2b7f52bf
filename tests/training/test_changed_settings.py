"""A run resumed with other settings is trained with these, not with those in its checkpoint."""

import math
import shutil

import pytest
import torch
from conftest import plan_of, write_splits
from killing import Ask
from lightning.pytorch.callbacks import Callback

import mixmo
from mixmo.cli.main import main
from mixmo.config.plan import make_plan
from mixmo.errors import InputError, StoppedError
from mixmo.runs import RunFolder
from mixmo.training import step
from mixmo.training.fit import fit
from mixmo.training.resuming import find_changes

COSINE = ("--schedule.kind=cosine", "--schedule.warmup_steps=0", "--optimizer.lr=0.1")


class Watch(Callback):
    """Records the optimiser's parameter groups at each step."""

    def __init__(self):
        self.groups = []

    def on_before_optimizer_step(self, trainer, training, optimizer):
        self.groups.append([{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups])

    def rates(self):
        return [group[0]["lr"] for group in self.groups]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("images"))


def begun(images, folder, *words):
    """A run of two epochs, of four steps each."""
    run = RunFolder(folder / "run")
    fit(plan_of(images, "--trainer.max_epochs=2", *COSINE, *words), run)
    return run


def resume(run, *words, accept=False):
    watch = Watch()
    fit(make_plan(run.resumed_config(), words), run, resume=True, callbacks=[watch], accept_changes=accept)
    return watch


def cosine(steps, total):
    return [0.05 * (1 + math.cos(math.pi * step / total)) for step in steps]


def test_a_run_made_longer_follows_the_schedule_of_its_new_length(images, tmp_path, monkeypatch, caplog):
    progresses, sample, repeated, pair = [], mixmo.Mixer.sample, [], mixmo.batch_mixing.pair

    def noted(self, size, shape, generator=None, progress=0.0, device=None):
        progresses.append(progress)
        return sample(self, size, shape, generator, progress, device)

    def paired(count, members, repetition, rho, *rest):
        repeated.append(rho)
        return pair(count, members, repetition, rho, *rest)

    caplog.set_level("INFO", "mixmo")
    run = begun(images, tmp_path, "--data.input_repetition=0.8", "--data.input_repetition_end=0.0")
    monkeypatch.setattr(mixmo.Mixer, "sample", noted)
    monkeypatch.setattr(mixmo.batch_mixing, "pair_eagerly", paired)
    assert resume(run, "--trainer.max_epochs=4").rates() == pytest.approx(cosine(range(8, 16), 16))
    assert progresses[-8:] == pytest.approx([step / 16 for step in range(8, 16)])
    assert repeated[-8:] == pytest.approx([0.8 * (1 - step / 16) for step in range(8, 16)])
    assert "trainer.max_epochs 2 -> 4 from step 8 (epoch 3) on." in caplog.messages
    done = {"after_epoch": 2, "after_step": 8, "settings": {"trainer.max_epochs": [2, 4]}}
    assert run.about()["changes"] == [done] and run.config()["trainer"]["max_epochs"] == 4
    caplog.clear()
    assert resume(run).rates() == [] and not any("->" in text for text in caplog.messages)  # nothing new


def test_a_run_stopped_within_an_epoch_and_made_shorter_ends_at_rate_zero(images, tmp_path):
    run = RunFolder(tmp_path / "run")
    with pytest.raises(StoppedError):
        fit(plan_of(images, "--trainer.max_epochs=40", *COSINE), run, callbacks=[Ask(3)])
    assert resume(run, "--trainer.max_epochs=2").rates() == pytest.approx(cosine(range(3, 8), 8))


def test_another_schedule_is_the_one_that_is_trained(images, tmp_path):
    run = begun(images, tmp_path)
    words = ["--trainer.max_epochs=4", "--schedule.kind=multistep", "--schedule.milestones=[0.75]"]
    with pytest.raises(InputError, match=r"schedule\.kind is 'multistep', and was 'cosine'"):
        resume(run, *words)
    assert resume(run, *words, accept=True).rates() == pytest.approx([0.1] * 4 + [0.01] * 4)
    assert run.config()["schedule"]["kind"] == "multistep"


def test_a_run_cannot_be_made_shorter_than_it_is(images, tmp_path, capsys):
    run = begun(images, tmp_path)
    before = run.config_file.read_bytes()
    assert main(["fit", str(run.path), "--trainer.max_epochs=1"]) == 2
    assert "trainer.max_epochs is 1, but" in (said := capsys.readouterr().err) and "already finished 2 epochs" in said
    assert run.config_file.read_bytes() == before


def test_the_command_line_makes_a_run_longer(images, tmp_path, capsys):
    run = begun(images, tmp_path)
    assert main(["fit", str(run.path), "--trainer.max_epochs", "3"]) == 0
    assert "trainer.max_epochs 2 -> 3 from step 8 (epoch 3) on." in capsys.readouterr().out
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2, 3]
    for words in (["--seed=1"], ["--accept_changes=maybe"], ["--run=elsewhere"]):
        assert main(["fit", str(run.path), *words]) == 2
    assert (
        main(["fit", str(run.path), "--accept_changes=True", "--optimizer.momentum=0.5", "--trainer.max_epochs=4"]) == 0
    )


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--optimizer.lr=0.3"], {"initial_lr": [0.3]}),
        (["--optimizer.weight_decay=0.5"], {"weight_decay": [0.5]}),
        (["--optimizer.momentum=0.25"], {"momentum": [0.25]}),
        (["--optimizer.options.nesterov=false"], {"nesterov": [False]}),
    ],
)
def test_other_settings_of_the_optimiser_are_the_ones_that_are_trained(images, tmp_path, words, wanted):
    run = begun(images, tmp_path)
    steps = resume(run, "--trainer.max_epochs=3", *words, accept=True).groups
    assert len(steps) == 4
    assert all({key: [group[key] for group in groups] for key in wanted} == wanted for groups in steps)


def test_another_layer_decay_is_the_one_that_is_trained(images, tmp_path):
    own = ["--model.backbone=vit_tiny_patch16_224", "--model.options.img_size=8", "--model.options.patch_size=4"]
    own += ["--model.options.depth=2", "--model.options.embed_dim=12", "--model.options.num_heads=2"]
    run = begun(images, tmp_path, *own, "--optimizer.layer_decay=0.5")
    before = make_plan(run.resumed_config(), ["--optimizer.layer_decay=0.25"])
    assert before.settings.optimizer.layer_decay == 0.25
    for groups in resume(run, "--trainer.max_epochs=3", "--optimizer.layer_decay=0.25", accept=True).groups:
        rates = sorted({group["initial_lr"] for group in groups}, reverse=True)
        assert len(rates) > 2 and rates == pytest.approx([0.1 * 0.25**k for k in range(len(rates))])


def test_other_averages_perturbations_and_clips_are_the_ones_that_are_trained(images, tmp_path, monkeypatch):
    run = begun(images, tmp_path, "--optimizer.ema_decay=0.01", "--optimizer.sam_radius=0.05")
    seen = {"get_ema_multi_avg_fn": [], "perturb_weights": []}
    for name, values in seen.items():
        honest = getattr(step, name)
        monkeypatch.setattr(
            step, name, lambda *given, honest=honest, values=values: values.append(given[-1]) or honest(*given)
        )
    clipped, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, most: clipped.append(most) or clip(p, most))
    words = ["--optimizer.ema_decay=0.02", "--optimizer.sam_radius=0.1", "--trainer.gradient_clip_val=0.5"]
    resume(run, "--trainer.max_epochs=3", *words, accept=True)
    assert (
        set(seen["get_ema_multi_avg_fn"]) == {0.02} and set(seen["perturb_weights"]) == {0.1} and set(clipped) == {0.5}
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizer.ema_decay=0.9"], "optimizer.ema_decay cannot change from or to 0"),
        (["--optimizer.decay_all=false"], "1 parameter groups, but optimizer.decay_all and layer_decay make 2"),
        (["--optimizer.name=adamw"], "has another optimizer, without"),
        (["--model.num_members=3"], "of another network"),
    ],
)
def test_what_a_checkpoint_cannot_be_resumed_with_is_named(images, tmp_path, words, message):
    run = begun(images, tmp_path)
    kept = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=message):
        resume(run, "--trainer.max_epochs=3", *words, accept=True)
    assert kept == {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}


def test_another_precision_is_the_one_that_is_trained(images, tmp_path):
    run = begun(images, tmp_path, "--trainer.precision=null")
    assert run.about()["resolved"]["trainer"]["precision"]
    text = run.config_file.read_text()
    other = "bf16-mixed" if run.about()["resolved"]["trainer"]["precision"] == "32-true" else "32-true"
    run.config_file.write_text(text.replace("precision: null", f"precision: {other}"))
    plan = make_plan(run.resumed_config())
    assert plan.settings.trainer.precision == other and find_changes(run, plan).keys() == {"trainer.precision"}


def test_a_setting_that_is_deleted_has_changed(images, tmp_path):
    run = begun(images, tmp_path)
    run.config_file.write_text(run.config_file.read_text().replace("  lr: 0.1\n", ""))
    with pytest.raises(InputError, match=r"optimizer\.lr is None, and was 0\.1"):
        resume(run, "--trainer.max_epochs=3")


STREAMED = ("--data.in_memory=false", "--data.image_size=8", "--data.workers=0")


def test_partners_come_from_the_whole_set_in_memory_and_from_the_batch_where_streamed(images, tmp_path, monkeypatch):
    seen, mix = [], mixmo.batch_mixing.shared_targets
    monkeypatch.setattr(
        mixmo.batch_mixing,
        "shared_targets",
        lambda own, theirs, *rest: seen.append((own, theirs)) or mix(own, theirs, *rest),
    )
    words = ["--pixels.kind=mixup", "--trainer.max_epochs=1", "--data.batch_size=2", "--data.image_size=8"]
    outside = {}
    for way in ("true", "false"):
        seen.clear()
        fit(plan_of(images, *words, f"--data.in_memory={way}", "--data.workers=0"), RunFolder(tmp_path / way))
        outside[way] = sum(bool(set(theirs.flatten().tolist()) - set(own.flatten().tolist())) for own, theirs in seen)
    assert outside["true"] > 0 and outside["false"] == 0


@pytest.mark.parametrize("pixels", ["none", "cutmix"])
def test_where_images_are_is_free_but_where_pixels_are_mixed(images, tmp_path, pixels):
    run = begun(images, tmp_path, f"--pixels.kind={pixels}", "--data.image_size=8")
    words = ("--trainer.max_epochs=3", *STREAMED)
    if pixels == "none":
        assert len(resume(run, *words).groups) == 4
        return
    with pytest.raises(InputError, match=r"training images in memory \(data\.in_memory\) is False, and was True\. "):
        resume(run, *words)
    assert len(resume(run, *words, accept=True).groups) == 4
    assert resume(run, "--trainer.max_epochs=3").groups == []  # streamed from here on


@pytest.mark.parametrize(("backbone", "alike"), [("test_convnext", True), ("wide_resnet10_1", False)])
def test_parts_of_a_batch_are_free_but_for_batch_norms(images, tmp_path, backbone, alike):
    own = ["--data.image_size=32", "--trainer.precision=32-true", f"--model.backbone={backbone}"]
    run = begun(images, tmp_path, *own)
    shutil.copytree(run.path, tmp_path / "other")
    other = RunFolder(tmp_path / "other")
    words = ["--trainer.max_epochs=3", "--trainer.accumulate=2"]
    if not alike:
        with pytest.raises(InputError, match=r"parts of a batch for batch norms .* is 2, and was 1\. "):
            resume(other, *words)
    resume(run, "--trainer.max_epochs=3")
    resume(other, *words, accept=not alike)
    one, two = (torch.cat([each.flatten() for each in mixmo.load(each.path).parameters()]) for each in (run, other))
    assert ((one - two).abs().max() < 1e-4) == alike


def test_a_setting_that_an_earlier_version_lacked_had_its_default(images, tmp_path):
    run = begun(images, tmp_path)
    about = run.about()
    del about["settings"]["data"]["sampler"]
    run.write_json("environment.json", about)
    assert find_changes(run, make_plan(run.resumed_config())) == {}
    with pytest.raises(InputError, match=r"data\.sampler is 'balanced', and was 'shuffle'"):
        resume(run, "--data.sampler=balanced")
