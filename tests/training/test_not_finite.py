"""Non-finite losses and weights: training ends with one message, and no run predicts NaN."""

import pytest
from conftest import plan_of, write_splits
from lightning.pytorch.callbacks import Callback

from mixmo import checkpoints
from mixmo.errors import TrainingError
from mixmo.runs import RunFolder
from mixmo.training.fit import fit


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("images"), train=16)


def one_epoch(images, *words):
    return plan_of(images, "--data.batch_size=14", "--trainer.max_epochs=1", *words)  # five steps


@pytest.mark.parametrize("which", ["weight", "statistic", "average"])
def test_a_network_that_is_not_finite_is_not_kept(images, tmp_path, which):
    """As if the last update, whose gradient was finite, had overflowed."""

    class Overflow(Callback):
        def on_train_batch_end(self, trainer, training, *_):
            if trainer.global_step == 10:
                net = training.average if which == "average" else training.net
                tensors = net.buffers() if which == "statistic" else net.parameters()
                next(tensors).data.fill_(float("inf"))

    run = RunFolder(tmp_path / "run")
    words = ["--trainer.max_epochs=2", "--optimizer.ema_decay=0.9"]
    with pytest.raises(TrainingError, match="not finite after step 10; the last checkpoint was written before"):
        fit(one_epoch(images, *words), run, callbacks=[Overflow()])
    assert checkpoints.load(run.checkpoint_file())["global_step"] == 5


def test_counts_are_written_in_full(tmp_path):
    run = RunFolder(tmp_path)
    run.append_metrics({"epoch": 1, "step": 1234567, "images": 4800001.0, "lr": 0.123456789, "loss": float("nan")})
    assert run.metrics_file.read_text().splitlines()[1] == "1,1234567,4800001,0.123457,nan"
