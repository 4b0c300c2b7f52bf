"""Shared by all metrics: bad input is refused, and processes are summed."""

import math
import multiprocessing

import pytest
import torch
from oracles import metrics_of, sample

from mixmo.errors import InputError
from mixmo.metrics import Calibration, Diversity, OutOfDistribution, Scores, SelectivePrediction


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
@pytest.mark.parametrize("metric", [Scores(), Calibration(), SelectivePrediction(), Diversity(2), OutOfDistribution()])
def test_nothing_cannot_be_evaluated(metric):
    with pytest.raises(InputError, match="there are no predictions to evaluate"):
        metric.compute()


@pytest.mark.parametrize("metric", [Scores, Calibration, SelectivePrediction])
def test_an_empty_batch_changes_nothing(metric):
    p, targets = torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([0, 1])
    expected = metrics_of(metric(), (p, targets))
    assert metrics_of(metric(), (p[:0], targets[:0]), (p, targets)) == expected
    with pytest.raises(InputError, match="there are no predictions to evaluate"):
        metrics_of(metric(), (p[:0], targets[:0]))


@pytest.mark.parametrize("metric", [Scores, Calibration, SelectivePrediction])
@pytest.mark.parametrize(
    ("rows", "targets", "message"),
    [
        ([[0.5, 0.5], [math.nan, 0.5]], [0, 0], "row 1 are not finite"),
        ([[0.5, 0.5], [0.5, 0.4]], [0, 0], "row 1 sum to 0.9, not to one"),
        ([[1.5, -0.5]], [0], "row 0 are negative"),
        ([[0.5, 0.5]], [2], "target 2 in row 0 is out of range"),
        ([[0.5, 0.5]], [0, 1], r"targets have shape \(2,\); they must be class numbers \(1,\)"),
        ([0.5, 0.5], [0, 1], r"probabilities are torch.float32 \(2,\); they must be floats \(B, K\)"),
    ],
)
def test_invalid_predictions_are_refused(metric, rows, targets, message):
    with pytest.raises(ValueError, match=message):
        metric().update(torch.tensor(rows), torch.tensor(targets))


def test_members_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="needs at least two members"):
        Diversity(1)
    with pytest.raises(ValueError, match=r"must be \(B, M, K\) with M = 2"):
        Diversity(2).update(torch.full((4, 3, 3), 1 / 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="row 2 sum to"):
        Diversity(2).update(torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]], [[0.5, 0.6]]]), torch.tensor([0, 0, 0]))


def one_process(rank, port, file):
    """Process one half of the samples on each of two processes; the first writes the result."""
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    logits, targets = sample(31, 5, 2.0, True, 3, 2)
    own = slice(0, 10) if rank == 0 else slice(10, 31)
    p = logits.softmax(2)[own]
    found = {}
    for metric in (Scores(), Calibration(), SelectivePrediction()):
        found |= metrics_of(metric, (p[:, 0], targets[own]))
    found |= metrics_of(Diversity(2), (p, targets[own]))
    if rank == 0:
        torch.save(found, file)
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_metrics_of_one(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=one_process, args=(rank, port, tmp_path / "found.pt")) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    logits, targets = sample(31, 5, 2.0, True, 3, 2)
    p, expected = logits.softmax(2), {}
    for metric in (Scores(), Calibration(), SelectivePrediction()):
        expected |= metrics_of(metric, (p[:, 0], targets))
    expected |= metrics_of(Diversity(2), (p, targets))
    assert torch.load(tmp_path / "found.pt") == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_perfect_and_worst_predictions():
    p, t = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 0])
    best = metrics_of(Scores(), (p, t)) | metrics_of(Calibration(), (p, t)) | metrics_of(SelectivePrediction(), (p, t))
    assert (best["accuracy"], best["nll"], best["brier"], best["ece"], best["aurc"]) == (1, 0, 0, 0, 0)
    worst = metrics_of(Scores(), (p, (t + 1) % 3)) | metrics_of(Calibration(), (p, (t + 1) % 3))
    assert (worst["accuracy"], worst["nll"], worst["brier"], worst["ece"]) == (0, math.inf, 2, 1)
