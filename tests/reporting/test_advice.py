"""The advice that follows from a diagnosis, on each side of its thresholds."""

import math

import pytest

from mixmo.evaluation.diagnosis import Diagnosis
from mixmo.reporting.advice import FITTED, advice


@pytest.mark.parametrize(
    ("train", "selectivity", "members", "words"),
    [
        (0.97, 0.95, 2, "are separate and fit"),
        (0.97, 0.74, 2, "are hardly separate"),
        (0.97, 0.74, 3, "are separate and fit"),  # copies would have a third
        (0.97, 0.61, 5, "are separate and fit"),
        (0.97, 0.59, 5, "are hardly separate"),
        (FITTED - 0.01, 0.95, 2, "raise data.input_repetition, the width or the epochs"),
        (FITTED - 0.01, 0.5, 2, "neither fit their training mixtures nor are separate"),
        (math.nan, 0.95, 2, "are separate ("),  # of images with several labels, or where metrics.csv is gone
    ],
)
def test_advice_follows_from_the_diagnosis(train, selectivity, members, words):
    text = advice(Diagnosis(train, False, selectivity, 0.1), members)
    assert words in text and f"selectivity {100 * selectivity:.1f} %" in text
    assert ("training accuracy" in text) == (not math.isnan(train))


def test_mixed_pixels_keep_training_accuracy_low():
    assert "are separate (" in advice(Diagnosis(0.5, True, 0.95, 0.1), 2)


def test_there_is_none_for_what_has_no_members():
    assert advice(None, 2) == advice(Diagnosis(0.9), 1) == ""
