"""What training minimises, against NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from mixmo.config.settings import ModelSettings, ObjectiveSettings, PixelSettings, Settings
from mixmo.data.batches import MixedBatch
from mixmo.errors import InputError
from mixmo.training.objectives import distillation_loss, find_objective


def batch_of(rng, batch, members, classes):
    logits = rng.normal(0, 3, (batch, members, classes))
    targets, weights = rng.integers(0, classes, (batch, members)), rng.uniform(0, 2, (batch, members))
    shared = rng.random(batch) < 0.5
    empty = torch.empty(0)
    mixed = MixedBatch(empty, empty, *map(torch.from_numpy, (targets, weights, shared)))
    return logits, mixed


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(2, 6), st.floats(0, 0.9), st.floats(0, 3), st.integers(0, 99))
def test_the_terms_are_those_of_their_formulas(batch, members, classes, smoothing, distillation, seed):
    """Σ_i w_i CE(logits_i, (1 - ε) y_i + ε / K) + λ [shared] Σ_i CE(logits_i, mean), averaged over the batch."""
    logits, mixed = batch_of(np.random.default_rng(seed), batch, members, classes)
    objective = find_objective(
        ObjectiveSettings(label_smoothing=smoothing, distillation=distillation), [], members, classes, False
    )
    logs = log_softmax(logits, axis=2)
    targets = (1 - smoothing) * np.eye(classes)[mixed.targets.numpy()] + smoothing / classes
    average = softmax(logits.mean(1, keepdims=True), axis=2)
    expected = (-(targets * logs).sum(2) * mixed.weights.numpy()).sum(1)
    expected = expected - distillation * mixed.shared.numpy() * (average * logs).sum((1, 2))
    assert objective(torch.from_numpy(logits), mixed).item() == pytest.approx(expected.mean(), rel=1e-4, abs=1e-6)


def test_the_average_is_no_target_that_gives_way():
    """The gradient of a member is softmax − average: the average itself has none."""
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    distillation_loss(logits, torch.tensor([True])).backward()
    members, average = softmax(logits.detach().numpy(), axis=2), softmax(logits.detach().numpy().mean(1), axis=1)
    assert logits.grad.numpy() == pytest.approx(members - average[:, None], abs=1e-6)


def test_distillation_takes_members_that_see_one_image():
    for changes in ({"model": ModelSettings(num_members=1)}, {"pixels": PixelSettings(kind="cutmix")}):
        with pytest.raises(InputError, match=r"objective\.distillation is 1\.0, which takes several members"):
            Settings(objective=ObjectiveSettings(distillation=1.0), **changes)
    assert Settings(objective=ObjectiveSettings(distillation=1.0)).objective.distillation == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_smoothing": 1.0}, "objective.label_smoothing is 1.0; it is a share"),
        ({"distillation": -1.0}, "objective.distillation is -1.0"),
        ({"name": "own:focal", "distillation": 1.0}, "objective.distillation belongs to mixed_cross_entropy"),
    ],
)
def test_wrong_terms_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        ObjectiveSettings(**changes)
