"""Diversity of members against scikit-learn, SciPy and brute force."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import draws, fast, in_batches, metrics_of, sample, softmax
from scipy.stats import entropy
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef

from mixmo.metrics import Diversity


@fast
@given(**draws, members=st.integers(2, 4))
def test_diversity_matches_the_oracles(n, classes, scale, coarse, seed, members):
    logits, targets = sample(n, classes, scale, coarse, seed, members)
    p, t = softmax(logits.numpy()), targets.numpy()
    found = metrics_of(Diversity(classes, members), *in_batches(torch.from_numpy(p), targets))
    predictions = p.argmax(2)
    right = predictions == t[:, None]
    expected = {name: [] for name in found}
    for i in range(members):
        for j in range(i + 1, members):
            n11, n00 = (right[:, i] & right[:, j]).sum(), (~right[:, i] & ~right[:, j]).sum()
            n10, n01 = (right[:, i] & ~right[:, j]).sum(), (~right[:, i] & right[:, j]).sum()
            expected["d_re"].append((n10 + n01) / n00 if n00 else 2 * (n10 + n01) / n)
            expected["disagreement"].append((predictions[:, i] != predictions[:, j]).mean())
            above, below = n11 * n00 - n10 * n01, n11 * n00 + n10 * n01
            expected["q_statistic"].append(above / below if below else 0)
            expected["correlation"].append(matthews_corrcoef(right[:, i], right[:, j]))
            expected["double_fault"].append(n00 / n)
            one_class = len(set(predictions[:, i]) | set(predictions[:, j])) == 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kappa = 1 if one_class else cohen_kappa_score(predictions[:, i], predictions[:, j])
            expected["kappa"].append(kappa)
            expected["kl"].append((entropy(p[:, i], p[:, j], axis=1) + entropy(p[:, j], p[:, i], axis=1)).mean() / 2)
            norms = np.linalg.norm(p[:, i], axis=1) * np.linalg.norm(p[:, j], axis=1)
            expected["cosine"].append(((p[:, i] * p[:, j]).sum(1) / norms).mean())
    for name, values in expected.items():
        assert found[name] == pytest.approx(np.mean(values), rel=1e-6, abs=1e-6), name
