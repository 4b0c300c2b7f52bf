"""``mixmo.evaluate``: all metrics of logits, in float64 and a chunk at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import metrics_of, sample, softmax

import mixmo
from mixmo.errors import InputError
from mixmo.metrics import Calibration, Scores, SelectivePrediction, chunks


@settings(max_examples=25)
@given(n=st.integers(2, 30), scale=st.floats(0.1, 30), seed=st.integers(0, 99), members=st.integers(1, 3))
def test_averages_and_members_are_evaluated(n, scale, seed, members):
    logits, targets = sample(n, 6, scale, False, seed, members)
    metrics = mixmo.evaluate(logits, targets)
    each = softmax(logits.numpy())
    parts = {"": softmax(logits.numpy().mean(1)), "probability_average/": each.mean(1)}
    parts |= {f"member_{i}/": each[:, i] for i in range(members)}
    for prefix, p in parts.items():
        for metric in (Scores(), Calibration(), SelectivePrediction()):
            for key, value in metrics_of(metric, (torch.from_numpy(p), targets)).items():
                assert metrics[prefix + key] == pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True), prefix + key
    shared = 2 + 4 if members > 1 else 0
    assert len(metrics) == (6 + 4 + 2) * (members + 2) + shared + 2
    assert ("d_re" in metrics) == (members > 1)


def test_an_ensembles_logits_give_the_metrics_of_the_average():
    logits, targets = sample(50, 6, 3.0, False, 0, 3)
    whole = mixmo.evaluate(logits, targets)
    average = mixmo.evaluate(logits.mean(1), targets)
    assert average == pytest.approx({key: whole[key] for key in average}, rel=1e-6)
    assert len(average) == 6 + 4 + 2 + 2 and "member_0/nll" not in average


def test_evaluation_in_pieces_is_evaluation(monkeypatch):
    logits, targets = sample(50, 7, 3.0, False, 0, 2)
    whole = mixmo.evaluate(logits, targets)
    monkeypatch.setattr(chunks, "CHUNK", 100)
    assert mixmo.evaluate(logits, targets) == pytest.approx(whole, rel=1e-12)


def test_huge_logits_give_finite_metrics():
    logits = torch.tensor([[[1e4, -1e4], [1e4, 0.0]], [[-1e4, 1e4], [0.0, 1e4]]])
    metrics = mixmo.evaluate(logits, torch.tensor([0, 0]))
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["nll"] == pytest.approx(7500)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_precision_is_evaluated_in_float64(dtype):
    logits, targets = sample(50, 10, 3.0, False, 0, 2)
    low = logits.to(dtype)
    assert mixmo.evaluate(low, targets) == pytest.approx(mixmo.evaluate(low.double(), targets), rel=1e-6)
    scores = Scores()
    scores.update(low[:, 0].softmax(1), targets)
    assert scores.total.dtype == torch.float64


NAN = torch.tensor([[[0.0, 0.0]], [[float("nan"), 0.0]]])


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(3), torch.zeros(3), r"logits have shape \(3,\); they must be \(N, M, K\)"),
        (torch.zeros(2, 3), torch.zeros(3), r"they must be class numbers \(2,\)"),
        (torch.zeros(2, 1, 1, 3), torch.zeros(2), r"they must be \(N, M, K\)"),
        (torch.zeros(2, 1, 3), torch.zeros(3), r"they must be class numbers \(2,\)"),
        (torch.zeros(0, 1, 3), torch.zeros(0), "are empty"),
        (NAN, torch.zeros(2), r"logits in row 1 are not finite \(1 such row of 2\)\.$"),
        (NAN[:, 0], torch.zeros(2), r"logits in row 1 are not finite \(1 such row of 2\)\.$"),
        (torch.zeros(2, 1, 3), torch.tensor([0, -1]), "target -1 in row 1"),
    ],
)
def test_bad_logits_are_refused(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        mixmo.evaluate(logits, targets.long())


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "uint32", "uint64", "int64"])
def test_class_numbers_of_any_integers_and_arrays_are_evaluated_alike(kind):
    logits, targets = sample(30, 5, 3.0, False, 0, 2)
    expected = mixmo.evaluate(logits, targets)
    shown = targets.numpy().astype(kind)
    swapped = logits.numpy().astype(">f8")
    swapped.flags.writeable = False
    for given_logits, given_targets in ((logits, torch.from_numpy(shown)), (logits.numpy(), shown), (swapped, shown)):
        assert mixmo.evaluate(given_logits, given_targets) == pytest.approx(expected)
    assert mixmo.evaluate(logits.numpy()[::-1], shown[::-1].tolist())["nll"] == pytest.approx(expected["nll"])
    assert Scores()(logits[:, 0].softmax(1), torch.from_numpy(shown))["nll"] == pytest.approx(expected["member_0/nll"])


def test_logits_of_one_network_need_no_axis_of_members():
    logits, targets = sample(30, 5, 3.0, False, 0, 1)
    whole, found = mixmo.evaluate(logits, targets), mixmo.evaluate(logits[:, 0], targets)
    assert found == {key: whole[key] for key in found} and not [key for key in found if "/" in key]
    assert {"accuracy", "nll", "ece"} <= found.keys()


def test_probabilities_passed_as_logits_are_warned_of(caplog):
    logits, targets = sample(30, 5, 3.0, False, 0, 2)
    mixmo.evaluate(logits, targets)
    mixmo.evaluate(torch.as_tensor(logits).softmax(-1).log(), targets)
    assert not caplog.text
    for dtype in (torch.float64, torch.float16):
        caplog.clear()
        mixmo.evaluate(torch.as_tensor(logits).softmax(-1).to(dtype), targets)
        assert "the logits look like probabilities" in caplog.text


def test_anything_that_numpy_takes_as_an_array_is_evaluated():
    class Frame:
        """Like a pandas DataFrame, of which torch asks for the item 0."""

        def __init__(self, values):
            self.values = values

        def __len__(self):
            return len(self.values)

        def __getitem__(self, key):
            raise KeyError(key)

        def __array__(self, dtype=None, copy=None):
            return np.asarray(self.values, dtype)

    logits, targets = sample(30, 5, 3.0, False, 0, 2)
    assert mixmo.evaluate(Frame(logits), Frame(targets)) == mixmo.evaluate(logits, targets)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.zeros(2, bool), "targets have type bool; they must be integers"),
        (torch.zeros(2), "targets have type float32; they must be integers"),
        (np.zeros(2, complex), "targets have type complex128; they must be integers"),
        (np.array([b"cat", b"dog"]), "targets are not an array of numbers: "),
        (["cat", "dog"], "targets are not an array of numbers: "),
        (np.array([0, 2**63], np.uint64), "target .* in row 1 is out of range"),
    ],
)
def test_what_is_no_class_number_is_refused_in_one_sentence(targets, message):
    with pytest.raises(InputError, match=message) as caught:
        mixmo.evaluate(np.zeros((2, 1, 3)), targets)
    assert "\n" not in str(caught.value)
