"""Sharpness-aware minimisation: the gradient at the worst nearby loss; weights are restored afterwards."""

import copy
from contextlib import contextmanager

import pytest
import torch
from conftest import plan_of, write_splits
from torch import nn

import mixmo
from mixmo.errors import TrainingError
from mixmo.evaluation.costs import training_images
from mixmo.runs import RunFolder
from mixmo.training import step
from mixmo.training.fit import fit
from mixmo.training.optimizers import perturb_weights


def test_the_gradient_is_that_of_a_quadratic_at_the_worst_point():
    """L = ½ wᵀ A w has the gradient A (w + r A w / ‖A w‖) there, in closed form."""
    matrix, start, radius = torch.diag(torch.tensor([1.0, 4.0])), torch.tensor([2.0, -1.0]), 0.1
    net = nn.Module()
    net.weight = nn.Parameter(start.clone())

    def backward():
        net.weight.grad = None
        (0.5 * net.weight @ matrix @ net.weight).backward()

    backward()
    with perturb_weights(net, radius):
        backward()
    gradient = matrix @ start
    expected = matrix @ (start + radius * gradient / gradient.norm())
    assert net.weight.grad.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert torch.equal(net.weight, start)


def test_weights_and_statistics_come_back_also_after_an_error():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    net(torch.randn(5, 3)).square().sum().backward()
    before = copy.deepcopy(net.state_dict())

    def fail():
        with perturb_weights(net, 1.0):
            assert not torch.equal(net[0].weight, before["0.weight"])
            net(torch.randn(5, 3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("pictures"), train=12, test=2)


def trained(pictures, folder, radius, *overrides, callbacks=()):
    own, run = ["--data.validation=0", "--trainer.max_epochs=3", f"--optimizer.sam_radius={radius}"], RunFolder(folder)
    fit(plan_of(pictures, *own, *overrides), run, callbacks=callbacks)
    return mixmo.load(folder).state_dict(), run.read_metrics()


def test_a_radius_near_zero_is_training_without(pictures, tmp_path):
    """The second gradient uses the same mixtures; metrics, statistics and draws are those of one step."""
    (plain, rows), (near, others) = (trained(pictures, tmp_path / str(r), r) for r in (0, 1e-7))
    far, _ = trained(pictures, tmp_path / "far", 0.5)
    for name, value in plain.items():
        assert torch.allclose(value.float(), near[name].float(), atol=1e-4), name
    assert any((plain[name].float() - value.float()).abs().max() > 1e-2 for name, value in far.items())
    for row, other in zip(rows, others, strict=True):
        assert float(other["train_loss"]) == pytest.approx(float(row["train_loss"]), rel=1e-3)
        assert (row["step"], row["train_member_0_accuracy"]) == (other["step"], other["train_member_0_accuracy"])


def test_a_perturbed_loss_that_is_not_finite_stops_the_run(pictures, tmp_path, monkeypatch):
    """Also at the last step of an epoch: no checkpoint holds weights after it."""

    def broken(net, radius):
        with perturb_weights(net, radius):
            with torch.no_grad():
                next(net.parameters()).mul_(float("nan"))
            yield

    monkeypatch.setattr(step, "perturb_weights", contextmanager(broken))
    with pytest.raises(TrainingError, match="not finite at step 0"):
        trained(pictures, tmp_path / "run", 0.05)
    assert not RunFolder(tmp_path / "run").has_checkpoint()


def test_a_step_counts_twice_as_cost(pictures, tmp_path):
    rows = {radius: trained(pictures, tmp_path / str(radius), radius)[1] for radius in (0.0, 0.05)}
    images = {
        radius: training_images(RunFolder(tmp_path / str(radius)).settings(), [{"step": float(own[-1]["step"])}])
        for radius, own in rows.items()
    }
    assert images[0.05] == 2 * images[0.0] > 0
