"""Advice on a run's members: whether they fit and are separate, and what to change."""

from __future__ import annotations

import math

from mixmo.evaluation.diagnosis import Diagnosis
from mixmo.metrics.catalogue import METRICS

FITTED = 0.7
"""Training accuracy below which members do not beat a single network. With tuned settings they won at 0.81 to 0.97 on
the digits and at 0.78 to 0.87 on CIFAR-10 (Linear-MixMo, MIMO), and lost at 0.33 to 0.46 there (Cut-MixMo without input
repetition); they also lost at 0.34 on all of CIFAR-100, and at 0.32 to 0.65 in fine-tuning on photos in 30 passes
(docs/evidence.md)."""


def advice(diagnosis: Diagnosis | None, members: int) -> str:
    """Describe whether M members are separate and fit their training mixtures, and what to do if not.

    They are hardly separate if their selectivity is closer to that of copies, 1 / M, than to 1.

    Example:
        >>> advice(Diagnosis(0.96, False, 0.95, 0.4), members=2)
        'The members are separate and fit their training mixtures (selectivity 95.0 %, training accuracy 96.0 %).'
    """
    if diagnosis is None or math.isnan(diagnosis.selectivity):
        return ""
    selectivity, accuracy = diagnosis.selectivity, diagnosis.train_accuracy
    parts = [f"selectivity {METRICS['selectivity'].text(selectivity)}"]
    if not math.isnan(accuracy):
        parts.append(f"training accuracy {METRICS['train_accuracy'].text(accuracy)}")
    values = f"({', '.join(parts)})"
    fits, separate = diagnosis.harder or not accuracy < FITTED, selectivity >= (1 / members + 1) / 2
    if not fits and not separate:
        return (
            f"The members neither fit their training mixtures nor are separate {values}: train longer, or raise the "
            "width, or model.member_noise if they started from one pretrained network; without the budget for that, "
            "a single network with CutMix is more accurate."
        )
    if not fits:
        return (
            f"The members do not fit their training mixtures {values}: raise data.input_repetition, the width or the "
            "epochs, or start from pretrained weights (model.pretrained); without the budget for that, a single "
            "network with CutMix is more accurate."
        )
    if not separate:
        return (
            f"The members are hardly separate {values}: train longer, lower data.input_repetition if it is above "
            "0, or raise model.member_noise if they started from one pretrained network."
        )
    fit = "" if diagnosis.harder or math.isnan(accuracy) else " and fit their training mixtures"
    return f"The members are separate{fit} {values}."
