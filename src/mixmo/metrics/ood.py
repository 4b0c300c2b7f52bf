"""Can the network tell images that are of none of its classes?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mixmo.errors import InputError
from mixmo.metrics.checks import check_logits
from mixmo.metrics.chunks import in_chunks

SCORES = ("max_probability", "entropy", "mutual_information", "energy")


def ood_scores(logits: Tensor) -> dict[str, Tensor]:
    """Return scores (N,) in float64 that are larger the stranger an image looks.

    * ``max_probability``: minus the largest probability of the members' mean distribution.
    * ``entropy``: of that distribution, in nats.
    * ``mutual_information`` between prediction and member: that entropy less the members' mean entropy, their
      disagreement; 0 for one member.
    * ``energy``: minus the log of the summed exponentials of the mean logits (Liu et al. 2020).

    Args:
        logits: (N, M, K).

    Example:
        >>> scores = ood_scores(torch.tensor([[[9.0, 0.0], [0.0, 9.0]]]))
        >>> round(scores["entropy"].item(), 3), round(scores["mutual_information"].item(), 3)
        (0.693, 0.692)
    """
    parts = [_scores(part) for (part,) in in_chunks(logits)]
    return {name: torch.cat([part[name] for part in parts]) for name in SCORES}


def _scores(logits: Tensor) -> dict[str, Tensor]:
    logs = logits.double().log_softmax(2)
    members = logs.exp()
    mean = members.mean(1)
    entropy = -torch.special.xlogy(mean, mean).sum(1)
    own = -(members * logs).sum(2).mean(1)
    return {
        "max_probability": -mean.amax(1),
        "entropy": entropy,
        "mutual_information": entropy - own if logits.shape[1] > 1 else torch.zeros_like(entropy),  # no rounding
        "energy": -logits.double().mean(1).logsumexp(1),
    }


class OutOfDistribution(Metric):
    """How well scores tell out-of-distribution images, the positive class, from those of the test set.

    For each score of :func:`ood_scores`: ``…/auroc``; ``…/aupr``, the average precision; ``…/fpr95``, the share of test
    images taken for strangers at the threshold that finds 95 % of these.

    Example:
        >>> ood = OutOfDistribution()
        >>> ood.update(torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]]), out=False)
        >>> ood.update(torch.tensor([[[0.1, 0.0]]]), out=True)
        >>> {name: value.item() for name, value in ood.compute().items() if name.startswith("entropy")}
        {'entropy/auroc': 1.0, 'entropy/aupr': 1.0, 'entropy/fpr95': 0.0}
    """

    full_state_update = False
    scores: list[Tensor]
    out: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("out", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, out: bool) -> None:
        """Add a batch of logits (B, M, K), all of the test set or all of another dataset (``out``)."""
        check_logits(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        self.scores.append(torch.stack([*ood_scores(logits).values()], 1))
        self.out.append(torch.full((len(logits),), out, device=logits.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the figures of all batches.

        Raises:
            InputError: if one of the two kinds of images is missing.
        """
        scores, out = dim_zero_cat(self.scores), dim_zero_cat(self.out).cpu().numpy()
        if out.all() or not out.any():
            raise InputError("out-of-distribution figures need images of both kinds, but all are of one.")
        figures = {}
        for name, column in zip(SCORES, scores.T.cpu().numpy(), strict=True):
            false, true, _ = roc_curve(out, column)
            figures[f"{name}/auroc"] = roc_auc_score(out, column)
            figures[f"{name}/aupr"] = average_precision_score(out, column)
            figures[f"{name}/fpr95"] = false[np.argmax(true >= 0.95)]
        return {name: scores.new_tensor(float(value)) for name, value in figures.items()}
