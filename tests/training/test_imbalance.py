"""Imbalanced classes: loss weights, the balanced sampler, and messages."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import recall_score
from sklearn.utils.class_weight import compute_class_weight

import mixmo
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.config.settings import ObjectiveSettings, Settings
from mixmo.data.given import open_given
from mixmo.data.module import DataModule, DataSettings
from mixmo.errors import InputError
from mixmo.training.imbalance import find_class_weights, warn_of_imbalance

COUNTS = [40, 4, 16]


def case(weights="none", **data):
    """Settings, and images of three classes of unequal size."""
    labels = np.repeat(["bat", "cat", "dog"], COUNTS)
    source = open_given((np.zeros((60, 8, 8), np.uint8), labels), "train")
    own = DataSettings(name="given", channels=1, validation=0.0, batch_size=8, **data)
    settings = Settings(data=own, objective=ObjectiveSettings(class_weights=weights))
    return settings, DataModule(own, 0, given={"train": source})


def test_balanced_weights_are_those_of_scikit_learn():
    settings, data = case("balanced")
    weights, labels = find_class_weights(settings, data), data.train.labels.numpy()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert weights.numpy() == pytest.approx(expected, rel=1e-6)
    assert weights[labels].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("weights", [[1, 4, 2], (1.0, 4.0, 2.0), {"dog": 2, "bat": 1, "cat": 4}])
def test_numbers_average_one_over_the_images_that_are_shown(weights):
    found = find_class_weights(*case(weights))
    assert (found / found[0]).tolist() == pytest.approx([1, 4, 2])
    assert float((found * torch.tensor(COUNTS)).sum()) == pytest.approx(60)
    assert find_class_weights(*case(weights, sampler="balanced")).sum().item() == pytest.approx(3)
    assert find_class_weights(*case()) is None


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "objective.class_weights has 2 numbers, but there are 3 classes"),
        ({"bat": 1, "cat": 2, "dogs": 3}, "unknown class in objective.class_weights 'dogs'; did you mean 'dog'"),
        ({"bat": 1}, "objective.class_weights has no weight for cat, dog"),
        ({"bat": 1, "cat": 0, "dog": 1}, "objective.class_weights.cat is 0; it must be greater than 0"),
        ({"bat": 1, "cat": math.nan, "dog": 1}, r"objective.class_weights.cat is nan; it must be a finite number"),
        ([1, -1, 1], r"objective.class_weights\[1\] is -1; it must be greater than 0"),
        ("balancd", "unknown objective.class_weights 'balancd'; did you mean 'balanced'"),
    ],
)
def test_wrong_weights_are_one_sentence(weights, message):
    with pytest.raises(InputError, match=message):
        find_class_weights(*case(weights))


def test_two_remedies_are_one_too_many():
    with pytest.raises(InputError, match="compensates for rare classes twice"):
        case("balanced", sampler="balanced")


def test_weights_are_words_of_the_command_line():
    for words, value in {"balanced": "balanced", "[1, 2]": [1.0, 2.0], "{3: 1, a: 2}": {"3": 1.0, "a": 2.0}}.items():
        plan = make_plan(load_recipe("digits-cut"), ["--objective.class_weights", words])
        assert plan.settings.objective.class_weights == value


def test_a_large_class_is_told_once_with_the_remedies(caplog):
    warn_of_imbalance(*case())
    (text,) = caplog.messages
    assert text.startswith("class bat has 40 training images and class cat only 4,")
    assert "objective.class_weights balanced or data.sampler balanced" in text
    for settings in (case("balanced"), case([1, 2, 3]), case(sampler="balanced")):
        warn_of_imbalance(*settings)
    assert len(caplog.messages) == 1


@pytest.mark.slow
def test_rare_classes_are_recalled_where_something_makes_up_for_them():
    """Digits 0 to 4 with 5 images each, the others with 100; the same holds for seeds 0, 1 and 2."""
    digits, rng = load_digits(), np.random.default_rng(0)
    pixels, train, test = (digits.images * (255 / 16)).round().astype(np.uint8), [], []
    for number in range(10):
        own = rng.permutation(np.flatnonzero(digits.target == number))
        test += own[:60].tolist()
        train += own[60 : 65 if number < 5 else 160].tolist()
    images = torch.from_numpy(pixels[test])[:, None].float() / 127.5 - 1

    def recall(**remedy):
        run = mixmo.fit(
            "wide_resnet10_1", (pixels[train], digits.target[train]), epochs=10, batch_size=32, lr=0.05,
            validation=0.0, padding=1, flip=False, input_repetition=0.5, progress=False, **remedy,
        )  # fmt: skip
        with torch.no_grad():
            answers = run.network.cpu()(images).argmax(1).numpy()
        return recall_score(digits.target[test], answers, average=None)[:5].mean()

    assert recall() < 0.1
    assert recall(class_weights="balanced") > 0.3 and recall(sampler="balanced") > 0.3
