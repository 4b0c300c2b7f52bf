"""Separation of members: networks whose conditional variances are known in closed form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mixmo
from mixmo.evaluation.diagnosis import Diagnosis, diagnose, separation
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.results import evaluate_runs


class Linear(nn.Module):
    """One unit for each output channel of the stem: its mean over positions."""

    def __init__(self, units, classes, pooled=True):
        super().__init__()
        self.stem = nn.Conv2d(1, units, 1, bias=False)
        self.head = nn.Linear(units, classes) if pooled else nn.Conv2d(units, classes, 1)
        self.pooled = pooled

    def forward(self, x):
        features = self.stem(x)
        return self.head(features.mean((2, 3))) if self.pooled else self.head(features).mean((2, 3))


def network(stems, heads, pooled=True):
    """A network whose unit u is Σ_i stems[i][u] · mean(x_i), and whose member i has the logits heads[i] @ units."""
    stems, heads = torch.as_tensor(stems, dtype=torch.float32), torch.as_tensor(heads, dtype=torch.float32)
    net = mixmo.MixMo(Linear(stems.shape[1], heads.shape[1], pooled), len(stems), stem="stem", head="head").eval()
    with torch.no_grad():
        for encoder, head, weights, outputs in zip(net.encoders, net.heads, stems, heads, strict=True):
            encoder.weight.copy_(weights.view_as(encoder.weight))
            head.weight.copy_(outputs.view_as(head.weight))
    return net


def images(count=5, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)) / 255


numbers = st.floats(-3, 3).filter(lambda value: abs(value) > 1e-2)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=2, max_size=3), st.randoms(use_true_random=False))
def test_shares_of_variance_are_those_of_a_linear_network(stems, random):
    """V_i of a unit is stems[i]² Var(x): the share of each member follows, for units and for logits."""
    heads = np.array([[[random.uniform(-2, 2) for _ in range(3)] for _ in range(2)] for _ in stems])
    found = separation(network(stems, heads), images())
    weights = np.array(stems) ** 2
    shares = weights.max(0) / weights.sum(0)
    logits = (np.einsum("mcu,nu->mcn", heads, np.array(stems)) ** 2).mean(1)  # (member's head, image's member)
    with np.errstate(invalid="ignore"):  # heads of zeros share nothing
        selectivity = (logits.diagonal() / logits.sum(1)).mean()
    assert found["selectivity"] == pytest.approx(selectivity, rel=1e-3, nan_ok=True)
    if (abs(shares - 0.75) > 1e-3).all():
        assert found["separate_units"] == pytest.approx((shares >= 0.75).mean())


@pytest.mark.parametrize("members", [2, 5])
def test_copies_are_not_separate_and_members_with_nothing_in_common_are(members):
    heads = np.ones((members, 2, 2 * members))
    copies = separation(network(np.ones((members, 2 * members)), heads), images())
    assert (copies["selectivity"], copies["separate_units"]) == (pytest.approx(1 / members), 0)
    own = np.kron(np.eye(members), np.ones(2))
    separate = separation(network(own, heads * own[:, None]), images())
    assert (separate["selectivity"], separate["separate_units"]) == (pytest.approx(1), 1)


def test_units_that_never_change_and_maps_before_the_heads():
    stems, heads = [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], np.ones((2, 2, 3))
    for pooled in (True, False):
        assert separation(network(stems, heads, pooled), images())["separate_units"] == 0.5
    nothing = separation(network(np.zeros((2, 3)), heads), images())
    assert math.isnan(nothing["selectivity"]) and math.isnan(nothing["separate_units"])
    assert math.isnan(separation(network(stems, heads), images(count=1))["selectivity"])  # nothing to compare with


def test_asking_leaves_the_network_as_it_was():
    own = network([[1.0, 0.2], [0.5, 1.0]], np.ones((2, 2, 2)))
    before = {name: value.clone() for name, value in own.state_dict().items()}
    first, second = separation(own, images()), separation(own, images())
    assert first == second
    assert all(torch.equal(before[name], value) for name, value in own.state_dict().items())
    assert not own.classifiers[0]._forward_pre_hooks


def test_a_run_is_diagnosed_once(trained, monkeypatch):
    """Cached in the run's folder, unless a refresh is requested."""
    _, two, one = trained
    runs = {2: TrainedRun(two), 1: TrainedRun(one)}
    rows = {members: run.folder.read_metrics() for members, run in runs.items()}
    for members, run in runs.items():
        found = diagnose(run, int(rows[members][-1]["epoch"]))
        expected = [float(rows[members][-1][f"train_member_{index}_accuracy"]) for index in range(members)]
        assert found.train_accuracy == pytest.approx(np.mean(expected))
        assert math.isnan(found.selectivity) == (members == 1)
        evaluated = evaluate_runs([run.folder]).diagnosis
        assert evaluated.flat() == found.flat() and len(found.flat()) == (3 if members == 2 else 1)
        assert found.flat().items() <= evaluate_runs([run.folder]).flat().items()
    monkeypatch.setattr("mixmo.evaluation.diagnosis.separation", lambda *arguments: pytest.fail("asked again"))
    again = TrainedRun(two)
    assert diagnose(again, int(rows[2][-1]["epoch"])).selectivity > 0
    with pytest.raises(pytest.fail.Exception):
        diagnose(again, 1, refresh=True)
    assert math.isnan(diagnose(again, 99).train_accuracy)


def test_what_is_not_known_has_no_key():
    assert Diagnosis().flat() == {}
