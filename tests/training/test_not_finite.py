"""Steps that are not finite: skipped without a trace, or an end in one sentence; never a run that answers NaN."""

import csv

import pytest
import torch
from conftest import plan_of, write_splits
from lightning.pytorch.callbacks import Callback

import mixmo
from mixmo import checkpoints
from mixmo.runs import RunFolder
from mixmo.training.fit import fit
from mixmo.training.sums import EpochSums, TrainingError


class Spoilt(Callback):
    """Makes the images or the gradient of some steps infinite; notes the other steps' losses and accuracies."""

    def __init__(self, what, steps):
        self.what, self.steps, self.now = what, steps, -1
        self.seen = []

    def on_train_batch_start(self, trainer, *_):
        self.now = trainer.global_step

    def on_train_batch_end(self, *_):
        self.now = -1

    def setup(self, trainer, training, stage):
        mixer = training.maker.mixer
        mix = mixer.mix

        def made(*arguments, **options):
            mixed = mix(*arguments, **options)
            spoil = self.what == "images" and self.now in self.steps
            return mixed._replace(inputs=mixed.inputs * float("inf")) if spoil else mixed

        def noted(logits, mixed):
            loss = mixmo.mixed_cross_entropy(logits, mixed.targets, mixed.weights)
            if self.now not in self.steps:
                self.seen.append((loss.item(), (logits.argmax(2) == mixed.targets).float().mean(0).tolist()))
            return loss

        mixer.mix, mixer.objective = made, noted

    def on_before_zero_grad(self, trainer, training, optimizer):
        if self.what == "gradient" and trainer.global_step in self.steps:
            handle = next(training.net.parameters()).register_hook(
                lambda gradient: handle.remove() or gradient * float("inf")
            )


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("images"), train=16)


def one_epoch(images, *words):
    return plan_of(images, "--data.batch_size=14", "--trainer.max_epochs=1", *words)  # five steps


@pytest.mark.parametrize("what", ["images", "gradient"])
@pytest.mark.parametrize("own", [[], ["--optimizer.ema_decay=0.9"], ["--optimizer.sam_radius=0.05"]])
def test_a_skipped_step_leaves_nothing_but_its_count(images, tmp_path, what, own):
    run, spoilt = RunFolder(tmp_path / "run"), Spoilt(what, {1, 4})
    if own and "sam" in own[0] and what == "gradient":
        pytest.skip("the hook is gone after the first of the two gradients")
    fit(one_epoch(images, "--trainer.on_nonfinite=skip", *own), run, callbacks=[spoilt])
    state = checkpoints.load(run.checkpoint_file())["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())
    counts = [value for key, value in state.items() if key.startswith("net.") and key.endswith("num_batches_tracked")]
    assert counts and set(map(int, counts)) == {3}
    assert mixmo.load(run.path)(torch.zeros(1, 3, 8, 8)).isfinite().all()
    (row,) = csv.DictReader(run.metrics_file.open())
    assert row["skipped_steps"] == "2"
    losses, accuracies = zip(*spoilt.seen[:: 2 if "--optimizer.sam_radius=0.05" in own else 1], strict=True)
    assert float(row["train_loss"]) == pytest.approx(sum(losses) / 3, rel=1e-5)
    for member in range(2):
        wanted = sum(each[member] for each in accuracies) / 3
        assert float(row[f"train_member_{member}_accuracy"]) == pytest.approx(wanted, rel=1e-5)


def test_two_steps_of_a_half_one_of_them_skipped_have_the_mean_a_half():
    sums, logits = EpochSums(1, skipping=True), torch.tensor([[[2.0, 1.0]]])
    sums.begin(torch.device("cpu"))
    for bad in (False, True):
        sums.add(torch.tensor(0.5), logits, torch.zeros(1, 1, dtype=torch.int64))
        sums.skipped(bad)
    report = sums.report(1)
    assert report["train_loss"] == 0.5 and report["train_member_0_accuracy"] == 1 and report["skipped_steps"] == 1
    sums.begin(torch.device("cpu"))
    sums.add(torch.tensor(float("nan")), logits, torch.zeros(1, 1, dtype=torch.int64))
    sums.skipped(True)
    assert sums.report(1)["train_loss"].isnan()  # of no step there is no mean


@pytest.mark.parametrize("which", ["weight", "statistic", "average"])
@pytest.mark.parametrize("way", ["stop", "skip"])
def test_a_network_that_is_not_finite_is_not_kept(images, tmp_path, which, way):
    """As if the last update, whose gradient was finite, had overflowed."""

    class Overflow(Callback):
        def on_train_batch_end(self, trainer, training, *_):
            if trainer.global_step == 10:
                net = training.average if which == "average" else training.net
                tensors = net.buffers() if which == "statistic" else net.parameters()
                next(tensors).data.fill_(float("inf"))

    run = RunFolder(tmp_path / "run")
    words = ["--trainer.max_epochs=2", "--optimizer.ema_decay=0.9", f"--trainer.on_nonfinite={way}"]
    with pytest.raises(TrainingError, match="not finite after step 10; the last checkpoint was written before"):
        fit(one_epoch(images, *words), run, callbacks=[Overflow()])
    assert checkpoints.load(run.checkpoint_file())["global_step"] == 5


def test_counts_are_written_in_full(tmp_path):
    run = RunFolder(tmp_path)
    run.append_metrics(
        {"epoch": 1, "step": 1234567, "skipped_steps": 4800001.0, "lr": 0.123456789, "loss": float("nan")}
    )
    assert run.metrics_file.read_text().splitlines()[1] == "1,1234567,4800001,0.123457,nan"
