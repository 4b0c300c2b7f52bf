"""A run's folder: intact checkpoints, nothing lost, no executable content, one process at a time."""

import json
import multiprocessing
import os
import random
import shutil
import time
import warnings

import numpy as np
import pytest
import torch
from conftest import describe_otherwise, plan_of

import mixmo
from mixmo import checkpoints
from mixmo.cli.main import main
from mixmo.config.plan import make_plan
from mixmo.errors import InputError
from mixmo.runs import RunFolder
from mixmo.training.fit import fit
from mixmo.training.resuming import find_changes


def three_epochs(folder, *words):
    return plan_of(folder, "--trainer.max_epochs=3", *words)


def extend_run(run, epochs):
    """Train a finished run further."""
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("max_epochs: 3", f"max_epochs: {epochs}"))
    fit(make_plan(run.resumed_config()), run, resume=True)


@pytest.fixture(scope="module")
def trained_once(pictures, tmp_path_factory):
    run = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    fit(three_epochs(pictures), run)
    return run


@pytest.fixture
def run(trained_once, tmp_path):
    """A copy of a run of three epochs in another folder."""
    shutil.copytree(trained_once.path, tmp_path / "moved")
    return RunFolder(tmp_path / "moved")


def epoch_of(file):
    return checkpoints.load(file)["epoch"]


def test_a_moved_run_knows_its_best_score(run, monkeypatch):
    best = run.checkpoint_folder / "best.ckpt"
    before, score = best.read_bytes(), checkpoints.load(best)["callbacks"]["Checkpoints"]["best_score"]

    def worse(self):
        self.log("val_accuracy", torch.tensor(score / 2), batch_size=1, logger=False)

    monkeypatch.setattr(mixmo.training.step.Training, "on_validation_epoch_end", worse)
    extend_run(run, 4)
    assert float(run.read_metrics()[3]["val_accuracy"]) == pytest.approx(score / 2, rel=1e-4)
    assert best.read_bytes() == before
    assert checkpoints.load(run.checkpoint_folder / "last.ckpt")["callbacks"]["Checkpoints"]["best_score"] == score


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9, 0.9999])
def test_a_flipped_bit_is_noticed_and_the_checkpoint_before_it_taken(run, caplog, place):
    last, previous = run.checkpoint_folder / "last.ckpt", run.checkpoint_folder / "previous.ckpt"
    damaged = bytearray(last.read_bytes())
    damaged[int(place * len(damaged))] ^= 4
    last.write_bytes(damaged)
    with pytest.raises(InputError, match=r"last\.ckpt is damaged"):
        mixmo.load(run.path)
    assert epoch_of(previous) == 1
    found, content = run.resumed_checkpoint()
    assert (found, content["epoch"]) == (previous, 1)
    assert "last.ckpt is damaged" in caplog.text and "resuming from previous.ckpt, after epoch 2" in caplog.text


def test_a_run_goes_on_alike_from_the_checkpoint_before(run, trained_once):
    last = run.checkpoint_folder / "last.ckpt"
    expected = checkpoints.load(last)["state_dict"]
    last.write_bytes(last.read_bytes()[:-100])
    fit(make_plan(run.resumed_config()), run, resume=True)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in checkpoints.load(last)["state_dict"].items())
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2, 3]


def test_checkpoints_that_are_gone_are_named(run, caplog):
    (run.checkpoint_folder / "last.ckpt").unlink()
    assert run.resumed_checkpoint()[0].name == "previous.ckpt" and "last.ckpt is missing" in caplog.text
    for file in run.checkpoint_folder.iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"last\.ckpt is missing.*3 epochs in metrics\.csv: restore a checkpoint"):
        fit(make_plan(run.resumed_config()), run, resume=True)


def test_a_run_without_a_finished_epoch_starts_again_and_says_so(pictures, tmp_path, caplog):
    run, plan = RunFolder(tmp_path / "run"), three_epochs(pictures, "--trainer.max_epochs=1")
    run.create(plan.yaml, {})
    fit(plan, run, resume=True)
    assert "has no checkpoint yet; training starts from the beginning" in caplog.text
    assert [row["epoch"] for row in run.read_metrics()] == [1]


def test_a_checkpoint_holds_nothing_that_acts(run, tmp_path):
    """Other callbacks' state, such as the paths that Lightning's checkpointing deletes, never reaches the trainer."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept.txt").write_text("mine")
    last = run.checkpoint_folder / "last.ckpt"
    content = torch.load(last, weights_only=True)
    key = "ModelCheckpoint{'monitor': None, 'mode': 'max', 'every_n_train_steps': 0, 'every_n_epochs': 1}"
    state = {"best_model_path": f"local://{victim}", "kth_best_model_path": str(victim), "best_k_models": {}}
    content["callbacks"] |= {key: state | {"last_model_path": str(victim), "dirpath": str(run.checkpoint_folder)}}
    content["hyper_parameters"] = {"_instantiator": "os.system", "command": f"rm -r {victim}"}
    checkpoints.save(last, content)
    loaded = checkpoints.load(last)
    assert loaded["callbacks"].keys() == {"Checkpoints"} and "hyper_parameters" not in loaded
    extend_run(run, 4)
    assert (victim / "kept.txt").read_text() == "mine"


def change_checkpoint(content, path, value):
    """Change a nested value in a checkpoint."""
    *way, last = path
    for key in way:
        content = content[key]
    content[last] = value


FOREIGN = {
    "no optimizer": (("optimizer_states",), []),
    "other parameters": (("optimizer_states", 0, "param_groups", 0, "params"), [0]),
    "no loops": (("loops",), {}),
    "weights of another shape": (("state_dict", "net.backbone.fc.heads.0.weight"), torch.zeros(10)),
    "a text for a weight": (("state_dict", "net.backbone.fc.heads.0.weight"), "x"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_checkpoint_that_does_not_fit_is_refused_before_it_is_used(run, name):
    last = run.checkpoint_folder / "last.ckpt"
    content = torch.load(last, weights_only=True)
    change_checkpoint(content, *FOREIGN[name])
    checkpoints.save(last, content)
    with pytest.raises(InputError, match=r"last\.ckpt is not a checkpoint of this run: .*\.$"):
        extend_run(run, 4)


def test_settings_that_changed_between_stop_and_resume_are_named(run):
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("base_lr: 0.1", "base_lr: 0.2"))
    with pytest.raises(InputError, match=r"settings of .* have changed .*: optimizer\.base_lr is 0\.2, and was 0\.1\."):
        extend_run(run, 4)
    run.config_file.write_text(text.replace("workers: 2", "workers: 0"))
    extend_run(run, 4)
    assert epoch_of(run.checkpoint_folder / "last.ckpt") == 3


def test_settings_that_changed_are_all_shown_and_may_be_accepted(run, capsys):
    text = run.config_file.read_text()
    changed = text.replace("base_lr: 0.1", "base_lr: 0.2").replace("max_epochs: 3", "max_epochs: 4")
    run.config_file.write_text(changed.replace("flip: false", "flip: true"))
    assert main(["fit", str(run.path)]) == 2
    said = capsys.readouterr().err
    assert "data.flip is True, and was False; optimizer.base_lr is 0.2, and was 0.1. Change them back" in said
    assert main(["fit", str(run.path), "--accept_changes", "true"]) == 0
    assert epoch_of(run.checkpoint_folder / "last.ckpt") == 3
    changes = {"data.flip": [False, True], "optimizer.base_lr": [0.1, 0.2], "trainer.max_epochs": [3, 4]}
    assert run.about()["changes"] == [{"after_epoch": 3, "after_step": 12, "settings": changes}]
    assert find_changes(run, make_plan(run.resumed_config())) == {}


def test_only_the_best_checkpoint_is_left(run):
    best, last = run.checkpoint_folder / "best.ckpt", run.checkpoint_folder / "last.ckpt"
    shutil.copy(last, best)
    for name in ("last", "previous"):
        (run.checkpoint_folder / f"{name}.ckpt").unlink()
    fit(make_plan(run.resumed_config()), run, resume=True)
    assert epoch_of(last) == 2 and mixmo.load(run.path)


def test_a_run_that_lost_its_checkpoints_does_not_start_again(run):
    for file in [*run.checkpoint_folder.iterdir(), run.metrics_file]:
        file.unlink()
    with pytest.raises(InputError, match="restore a checkpoint"):
        fit(make_plan(run.resumed_config()), run, resume=True)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a,b\n1,2\n", b"epoch,step\nx,1\n", b"epoch,step\n1\n"])
def test_damaged_metrics_are_said_before_an_epoch_is_spent(run, content):
    run.metrics_file.write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.csv is damaged"):
        extend_run(run, 4)
    assert epoch_of(run.checkpoint_folder / "last.ckpt") == 2


@pytest.mark.parametrize("name", ["checkpoints", "predictions"])
def test_a_runs_folders_are_no_links(run, tmp_path, name):
    shutil.rmtree(run.path / name, ignore_errors=True)
    (tmp_path / "elsewhere").mkdir()
    (run.path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a symbolic link"):
        run.require()


def test_foreign_and_packed_files_are_no_checkpoints(tmp_path):
    for name, content in {"a": {"epoch": 0, "state_dict": {}}, "b": [1], "c": {"epoch": "x", "state_dict": {}}}.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match="does not match its digest"):
            checkpoints.load(tmp_path / name)
    checkpoints.save(tmp_path / "c", {"epoch": "x", "state_dict": {}})
    with pytest.raises(InputError, match="has no epoch or no weights"):
        checkpoints.load(tmp_path / "c")


@pytest.mark.parametrize("when", ["write", "sync", "link", "rename"])
def test_a_checkpoint_that_cannot_be_written_leaves_those_before(run, monkeypatch, when):
    """A full disk at every point of writing: one message, no leftovers, and a run that can be resumed."""
    before = {file.name: file.read_bytes() for file in run.checkpoint_folder.iterdir()}
    calls = {"write": (torch, "save"), "sync": (os, "fsync"), "link": (os, "link"), "rename": (os, "replace")}
    module, name = calls[when]
    original = getattr(module, name)

    def full(*arguments, **options):
        if "ckpt" in str(arguments) or when in ("write", "sync"):
            raise OSError(28, "No space left on device")
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, full)
        if when == "link":  # a disk that knows no links: copied instead
            extend_run(run, 4)
        else:
            with pytest.raises(InputError, match="cannot be written: No space left on device"):
                extend_run(run, 4)
    left = {file.name: file.read_bytes() for file in run.checkpoint_folder.iterdir()}
    assert left.keys() == before.keys()
    if when != "link":
        assert left["last.ckpt"] == before["last.ckpt"] and left["best.ckpt"] == before["best.ckpt"]
        fit(make_plan(run.resumed_config()), run, resume=True)
    assert epoch_of(run.checkpoint_folder / "last.ckpt") == 3


@pytest.mark.parametrize("point", range(1, 13))
def test_death_at_any_point_of_writing_loses_nothing(trained_once, pictures, tmp_path, point):
    """A run killed at the n-th change of its folder and resumed ends like an uninterrupted one."""
    run, plan, count = RunFolder(tmp_path / "run"), three_epochs(pictures), [0]
    originals = {name: getattr(os, name) for name in ("replace", "link")}

    class Death(BaseException):
        pass

    def dying(name):
        def change(*arguments):
            count[0] += 1
            if count[0] == point:
                raise Death
            return originals[name](*arguments)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in originals:
            patch.setattr(os, name, dying(name))
        with pytest.raises(Death):
            fit(plan, run)
    if run.config_file.is_file():
        fit(make_plan(run.resumed_config()), run, resume=True)
    else:
        fit(plan, run)
    for name in ("last.ckpt", "best.ckpt", "previous.ckpt"):
        expected, found = (checkpoints.load(each.checkpoint_folder / name) for each in (trained_once, run))
        assert expected["epoch"] == found["epoch"] and expected["callbacks"] == found["callbacks"]
        assert all(torch.equal(expected["state_dict"][k], found["state_dict"][k]) for k in expected["state_dict"])
    assert [row["val_nll"] for row in run.read_metrics()] == [row["val_nll"] for row in trained_once.read_metrics()]
    assert not [file for file in run.path.rglob("*.partial")]


def test_a_start_that_was_cut_short_can_be_started_again(pictures, tmp_path):
    run, plan = RunFolder(tmp_path / "run"), three_epochs(pictures, "--trainer.max_epochs=1")
    run.checkpoint_folder.mkdir(parents=True)
    (run.path / "environment.json").write_text("{")
    for name in ("config.yaml", "split.csv", "environment.json"):
        (run.path / f".{name}.1234.partial").write_text("seed")
    with pytest.raises(FileNotFoundError, match=r"Its start was interrupted; start it again \(--run"):
        run.require()
    fit(plan, run)
    assert run.finished_epochs() == 1
    assert not list(run.path.glob(".*.partial"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"contains other files \(a\.jpg\)"):
        fit(plan, RunFolder(tmp_path / "photos"))


def test_two_processes_never_train_in_one_folder(run):
    context = multiprocessing.get_context("fork")
    locked = context.Event()

    def hold():
        with RunFolder(run.path).lock():
            locked.set()
            time.sleep(120)

    other = context.Process(target=hold)
    other.start()
    try:
        assert locked.wait(60)
        with pytest.raises(InputError, match="another process is training in"):
            fit(make_plan(run.resumed_config()), run, resume=True)
    finally:
        other.kill()
        other.join()
    extend_run(run, 4)  # the lock ends with the process that was killed


def test_data_that_changed_between_stop_and_resume_is_noticed(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "data")
    run = RunFolder(tmp_path / "run")
    fit(three_epochs(tmp_path / "data"), run)
    for file in (tmp_path / "data" / "train").rglob("*.png"):
        os.utime(file, (1, 1))  # a copy is the same data
    extend_run(run, 4)
    shutil.copy(tmp_path / "data/train/cat/000.png", tmp_path / "data/train/cat/new.png")
    with pytest.raises(InputError, match=r"the training data has changed since .* began \(18 images then, "):
        extend_run(run, 5)


def test_what_followed_from_the_machine_is_kept_for_this_run_alone(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("mixmo.config.plan.default_precision", lambda device: "bf16-mixed")
    run = RunFolder(tmp_path / "run")
    fit(three_epochs(pictures, "--trainer.precision=null", "--trainer.max_epochs=1"), run)
    monkeypatch.setattr("mixmo.config.plan.default_precision", lambda device: "32-true")
    assert run.about()["resolved"]["trainer"]["precision"] == "bf16-mixed"
    assert make_plan(run.resumed_config()).settings.trainer.precision == "bf16-mixed"  # as the run began
    assert make_plan(run.config()).settings.trainer.precision == "32-true"  # a new run suits its own machine


def test_training_and_loading_leave_the_process_as_it_was(pictures, tmp_path):
    import logging

    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    logger = logging.getLogger("lightning.pytorch")

    def state():
        numbers = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
        filters, level = list(warnings.filters), logger.level
        return *numbers, filters, level, torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()

    before = state()
    run = RunFolder(tmp_path / "run")
    fit(three_epochs(pictures, "--trainer.max_epochs=1", "--trainer.deterministic=true"), run)
    mixmo.load(run.path)
    assert [a == b for a, b in zip(before, state(), strict=True)] == [True] * len(before)


def test_a_described_backbone_is_not_fetched_unasked(run, monkeypatch):
    text = run.config_file.read_text().replace("backbone: wide_resnet10_1", "backbone: hf-hub:somebody/network")
    run.config_file.write_text(text)
    describe_otherwise(run, backbone="hf-hub:somebody/network")

    def reached(*arguments, **options):
        raise RuntimeError("the network was reached")

    monkeypatch.setattr("mixmo.network.timm.create_model", reached)
    with pytest.raises(InputError, match=r"'hf-hub:somebody/network' of the run .* has to be downloaded; allow it"):
        mixmo.load(run.path)
    with pytest.raises(InputError, match=r"allow it with model\.download: true"):
        fit(make_plan(run.config()), RunFolder(run.path.parent / "new"))
    with pytest.raises(InputError, match="the network was reached"):
        mixmo.load(run.path, download=True)


def test_metrics_and_environment_survive_being_damaged(run):
    (run.path / "environment.json").write_text("[1")
    assert run.about() == {} and run.resumed_config() == run.config()
    (run.path / "environment.json").write_text(json.dumps([1]))
    assert run.about() == {}
