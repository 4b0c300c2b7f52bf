"""Figures of merit against scikit-learn, SciPy, brute force and closed forms."""

import math
import multiprocessing
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import cohen_kappa_score, log_loss, matthews_corrcoef, roc_auc_score, top_k_accuracy_score

import mixmo
from mixmo.errors import InputError
from mixmo.metrics import (
    Calibration,
    Diversity,
    EnsembleGain,
    OutOfDistribution,
    Scores,
    SelectivePrediction,
    chunks,
    fit_temperature,
)
from mixmo.metrics.calibration import bin_numbers
from mixmo.metrics.ood import false_positive_rate, ood_scores
from mixmo.metrics.temperature import two_fold

draws = {
    "n": st.integers(1, 40),
    "classes": st.sampled_from([2, 3, 5, 12, 1000]),
    "scale": st.sampled_from([0.0, 0.3, 3.0, 30.0, 1000.0]),
    "coarse": st.booleans(),
    "seed": st.integers(0, 999),
}
"""``scale`` 0 makes all probabilities equal, 1000 certain; ``coarse`` makes ties."""

fast = settings(max_examples=60, deadline=None)


def sample(n, classes, scale, coarse, seed, members=1):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, members, classes)) * scale
    if coarse:
        logits = logits.round()
    return torch.from_numpy(logits), torch.from_numpy(rng.integers(0, classes, n))


def softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def figures_of(metric, *batches):
    for batch in batches:
        metric.update(*batch)
    return {name: value.item() for name, value in metric.compute().items()}


def in_batches(*tensors):
    """The same samples in two batches of unequal size."""
    cut = len(tensors[0]) // 3
    parts = [[t[:cut] for t in tensors], [t[cut:] for t in tensors]]
    return [part for part in parts if len(part[0])]


def ece_by_loop(confidence, correct, bins=15):
    total, gaps = 0.0, [0.0]
    for i in range(bins):
        low, high = i / bins, (i + 1) / bins
        inside = (confidence > low if i else confidence >= 0) & (confidence <= high if i < bins - 1 else True)
        if inside.any():
            gaps.append(abs(correct[inside].mean() - confidence[inside].mean()))
            total += gaps[-1] * inside.mean()
    return total, max(gaps)


def adaptive_gaps(values, hits, bins=15):
    order = sorted(range(len(values)), key=lambda i: (values[i], hits[i]))
    parts = [np.array(part, dtype=int) for part in np.array_split(order, bins)]
    return [(abs(np.mean(hits[part]) - np.mean(values[part])), len(part)) for part in parts if len(part)]


@fast
@given(**draws)
def test_scores_match_the_oracles(n, classes, scale, coarse, seed):
    logits, targets = sample(n, classes, scale, coarse, seed)
    p, t = softmax(logits.numpy()[:, 0]), targets.numpy()
    found = figures_of(Scores(), *in_batches(torch.from_numpy(p), targets))
    assert found["accuracy"] == pytest.approx((p.argmax(1) == t).mean())
    distinct = all(len(set(row)) == classes for row in p)
    if classes > 5 and distinct:  # scikit-learn breaks ties the other way round
        expected = top_k_accuracy_score(t, p, k=5, labels=range(classes))
        assert found["accuracy_top5"] == pytest.approx(expected)
    if classes <= 5:
        assert found["accuracy_top5"] == 1
    if p.min() > 1e-12:  # scikit-learn clips below its own epsilon
        assert found["nll"] == pytest.approx(log_loss(t, p, labels=range(classes)), rel=1e-6, abs=1e-9)
    brier = ((p - np.eye(classes)[t]) ** 2).sum(1).mean()
    assert found["brier"] == pytest.approx(brier, abs=1e-9)
    assert found["brier_per_class"] == pytest.approx(brier / classes, abs=1e-9)


@fast
@given(**draws)
def test_calibration_matches_brute_force(n, classes, scale, coarse, seed):
    logits, targets = sample(n, min(classes, 12), scale, coarse, seed)
    classes = logits.shape[2]
    p, t = softmax(logits.numpy()[:, 0]), targets.numpy()
    found = figures_of(Calibration(), *in_batches(torch.from_numpy(p), targets))
    confidence, correct = p.max(1), (p.argmax(1) == t).astype(float)
    ece, mce = ece_by_loop(confidence, correct)
    assert found["ece"] == pytest.approx(ece, abs=1e-9)
    assert found["mce"] == pytest.approx(mce, abs=1e-9)
    adaptive = sum(gap * length for gap, length in adaptive_gaps(confidence, correct)) / n
    assert found["ece_adaptive"] == pytest.approx(adaptive, abs=1e-9)
    classwise, thresholded = 0.0, 0.0
    for k in range(classes):
        hits = (t == k).astype(float)
        classwise += ece_by_loop(p[:, k], hits)[0] / classes
        likely = p[:, k] > 0.01
        thresholded += sum(gap for gap, _ in adaptive_gaps(p[likely, k], hits[likely])) / (15 * classes)
    assert found["ece_classwise"] == pytest.approx(classwise, abs=1e-9)
    assert found["tace"] == pytest.approx(thresholded, abs=1e-9)


@fast
@given(**draws)
def test_selective_prediction_matches_brute_force(n, classes, scale, coarse, seed):
    logits, targets = sample(n, classes, scale, coarse, seed)
    p, t = softmax(logits.numpy()[:, 0]), targets.numpy()
    found = figures_of(SelectivePrediction(), *in_batches(torch.from_numpy(p), targets))
    confidence, correct = p.max(1), p.argmax(1) == t
    risks, best = [], []
    for i in range(1, n + 1):  # the mean over all orders of equal confidences
        threshold = np.sort(confidence)[::-1][i - 1]
        above, level = confidence > threshold, confidence == threshold
        errors = (~correct[above]).sum() + (i - above.sum()) * (~correct[level]).mean()
        risks.append(errors / i)
        best.append(max(0, i - correct.sum()) / i)
    assert found["aurc"] == pytest.approx(np.mean(risks), abs=1e-9)
    assert found["eaurc"] == pytest.approx(np.mean(risks) - np.mean(best), abs=1e-9)
    for coverage in (95, 99):
        assert found[f"accuracy_at_{coverage}"] == pytest.approx(1 - risks[math.ceil(n * coverage / 100) - 1], abs=1e-9)
    if 0 < correct.sum() < n:
        assert found["auroc_correct"] == pytest.approx(roc_auc_score(correct, confidence))
    else:
        assert math.isnan(found["auroc_correct"])


@fast
@given(**draws, members=st.integers(2, 4))
def test_diversity_matches_the_oracles(n, classes, scale, coarse, seed, members):
    logits, targets = sample(n, classes, scale, coarse, seed, members)
    p, t = softmax(logits.numpy()), targets.numpy()
    found = figures_of(Diversity(classes, members), *in_batches(torch.from_numpy(p), targets))
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


@fast
@given(**draws, members=st.integers(1, 4))
def test_gain_by_brute_force(n, classes, scale, coarse, seed, members):
    logits, targets = sample(n, classes, min(scale, 30.0), coarse, seed, members)
    p, t = softmax(logits.numpy()), targets.numpy()
    found = figures_of(EnsembleGain(), *in_batches(torch.from_numpy(p), targets))
    right = p.argmax(2) == t[:, None]
    nll = -np.log(p[np.arange(n), :, t])
    together = -np.log(p.mean(1)[np.arange(n), t])
    assert found["member_mean_accuracy"] == pytest.approx(right.mean())
    assert found["oracle_accuracy"] == pytest.approx(right.any(1).mean())
    assert found["member_mean_nll"] == pytest.approx(nll.mean())
    assert found["nll_gain"] == pytest.approx(nll.mean() - together.mean(), abs=1e-9)
    assert found["nll_gain"] >= -1e-12


@fast
@given(n=st.integers(2, 30), scale=st.sampled_from([0.0, 1.0, 30.0]), coarse=st.booleans(), seed=st.integers(0, 500))
def test_out_of_distribution_by_brute_force(n, scale, coarse, seed):
    logits, _ = sample(n, 4, scale, coarse, seed, 2)
    out = np.arange(n) % 2 == 1
    metric = OutOfDistribution()
    metric.update(logits[~out], out=False)
    metric.update(logits[out], out=True)
    found = {name: value.item() for name, value in metric.compute().items()}
    p = softmax(logits.numpy())
    mean = p.mean(1)
    total, own = entropy(mean, axis=1), entropy(p, axis=2).mean(1)
    expected = {
        "max_probability": -mean.max(1), "entropy": total, "mutual_information": total - own,
        "energy": -np.log(np.exp(logits.numpy().mean(1)).sum(1)),
    }  # fmt: skip
    for name, scores in ood_scores(logits).items():
        np.testing.assert_allclose(scores, expected[name], atol=1e-9)
        scores = scores.numpy()
        strange, known = scores[out], scores[~out]
        wins = (strange[:, None] > known).mean() + (strange[:, None] == known).mean() / 2
        assert found[f"{name}/auroc"] == pytest.approx(wins)
        thresholds = [s for s in sorted(set(scores), reverse=True) if (strange >= s).mean() >= 0.95]
        assert found[f"{name}/fpr95"] == pytest.approx((known >= thresholds[0]).mean())
        precision, area, before = 0.0, 0.0, 0.0
        for s in sorted(set(scores), reverse=True):
            precision, recall = (strange >= s).sum() / (scores >= s).sum(), (strange >= s).mean()
            area, before = area + precision * (recall - before), recall
        assert found[f"{name}/aupr"] == pytest.approx(area)


LEVELS = st.tuples(*[st.sampled_from([0, 1, 2, 18, 19])] * 4).filter(any)
LEVELS = LEVELS.map(lambda counts: np.repeat([0.1, 0.5, 0.5 + 2**-40, 0.9], counts))
"""Scores of a few levels, so that many are equal, and 95 % of them end between two levels."""


def rate_by_thresholds(positive, negative):
    """The share of negatives at the largest threshold that finds 95 of 100 positives, counted in whole numbers."""
    for threshold in sorted(set(positive), reverse=True):
        if 100 * (positive >= threshold).sum() >= 95 * len(positive):
            return (negative >= threshold).sum() / len(negative)
    raise AssertionError


@given(positive=LEVELS, negative=LEVELS)
def test_false_positives_among_equal_scores(positive, negative):
    assert false_positive_rate(positive, negative) == rate_by_thresholds(positive, negative)


@given(positive=LEVELS, negative=LEVELS)
def test_out_of_distribution_figures_of_equal_scores(positive, negative):
    """Two classes: the confidence grows with the difference of their logits."""
    metric = OutOfDistribution()
    for values, out in ((negative, False), (positive, True)):
        metric.update(torch.from_numpy(np.stack([values, np.zeros_like(values)], 1)[:, None]), out=out)
    found = {name: value.item() for name, value in metric.compute().items()}
    others, known = -positive, -negative  # a larger score for less confidence
    wins = (others[:, None] > known).mean() + (others[:, None] == known).mean() / 2
    assert found["max_probability/auroc"] == pytest.approx(wins)
    assert found["max_probability/fpr95"] == pytest.approx(rate_by_thresholds(others, known))
    assert found["mutual_information/auroc"] == 0.5 and found["mutual_information/fpr95"] == 1


def test_nineteen_of_twenty_are_95_percent():
    """The curve of scikit-learn leaves out points that lie on a line between two others."""
    metric = OutOfDistribution()
    values = torch.tensor([[[0.0, 0.0]]] * 18 + [[[3.0, 0.0]]] + [[[5.0, 0.0]]])
    metric.update(values, out=False)
    metric.update(values, out=True)
    assert metric.compute()["max_probability/fpr95"].item() == pytest.approx(0.95)


@given(
    scores=st.lists(st.tuples(st.sampled_from([0.5, 0.6, 0.75, 11 / 15, 1.0]), st.booleans()), min_size=1, max_size=40)
)
def test_figures_of_equal_confidences(scores):
    """Two classes at few levels, some on the edges of bins: brute force, whatever the order of the samples."""
    confidence, correct = np.array([score for score, _ in scores]), np.array([right for _, right in scores])
    p = torch.from_numpy(np.stack([confidence, 1 - confidence], 1))
    targets = torch.from_numpy((~correct).astype(int))
    found = figures_of(Calibration(), (p, targets)) | figures_of(SelectivePrediction(), (p, targets))
    ece, mce = ece_by_loop(confidence, correct.astype(float))
    assert (found["ece"], found["mce"]) == (pytest.approx(ece, abs=1e-9), pytest.approx(mce, abs=1e-9))
    order = np.random.default_rng(0).permutation(len(scores))
    again = figures_of(Calibration(), (p[order], targets[order]))
    again |= figures_of(SelectivePrediction(), (p[order], targets[order]))
    assert again == pytest.approx(found, nan_ok=True)
    risks = []
    for kept in range(1, len(scores) + 1):  # the mean over all orders of equal confidences
        threshold = np.sort(confidence)[-kept]
        above, level = confidence > threshold, confidence == threshold
        risks.append(((~correct[above]).sum() + (kept - above.sum()) * (~correct[level]).mean()) / kept)
    assert found["aurc"] == pytest.approx(np.mean(risks), abs=1e-9)
    assert found["accuracy_at_95"] == pytest.approx(1 - risks[math.ceil(95 * len(scores) / 100) - 1], abs=1e-9)
    right, wrong = confidence[correct], confidence[~correct]
    if len(right) and len(wrong):
        wins = (right[:, None] > wrong).mean() + (right[:, None] == wrong).mean() / 2
        assert found["auroc_correct"] == pytest.approx(wins)
    else:
        assert math.isnan(found["auroc_correct"])


@pytest.mark.parametrize("number", range(1, 15))
def test_every_edge_of_a_bin_belongs_to_the_bin_below(number):
    edge = number / 15
    above = math.nextafter(edge, 1)
    assert bin_numbers(torch.tensor([edge, above], dtype=torch.double), 15).tolist() == [number - 1, number]


@pytest.mark.parametrize("seed", range(5))
def test_members_that_agree_have_no_mutual_information(seed):
    """Not even by rounding, which would put images in an order."""
    logits = torch.from_numpy(np.random.default_rng(seed).standard_normal((200, 1, 9)) * 3).repeat(1, 3, 1)
    assert not ood_scores(logits)["mutual_information"].any()


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
@pytest.mark.parametrize(
    "metric", [Scores(), Calibration(), SelectivePrediction(), Diversity(3, 2), EnsembleGain(), OutOfDistribution()]
)
def test_nothing_is_not_evaluated(metric):
    with pytest.raises(InputError, match="there are no predictions to evaluate"):
        metric.compute()


@pytest.mark.parametrize("metric", [Scores, Calibration, SelectivePrediction])
def test_an_empty_batch_changes_nothing(metric):
    p, targets = torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([0, 1])
    expected = figures_of(metric(), (p, targets))
    assert figures_of(metric(), (p[:0], targets[:0]), (p, targets)) == expected
    with pytest.raises(InputError, match="there are no predictions to evaluate"):
        figures_of(metric(), (p[:0], targets[:0]))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(1, 12), one_class=st.booleans())
def test_temperature_of_few_levels(data, n, one_class):
    """Ties, single classes, nothing but right or wrong answers: nothing on a grid is better."""
    levels = st.lists(st.sampled_from([-3.0, 0.0, 1.0, 1.0, 20.0]), min_size=3, max_size=3)
    logits = torch.tensor(data.draw(st.lists(levels, min_size=n, max_size=n)), dtype=torch.double)
    targets = torch.tensor(data.draw(st.lists(st.integers(0, 0 if one_class else 2), min_size=n, max_size=n)))
    found = fit_temperature(logits, targets)

    def nll(temperature):
        return torch.nn.functional.cross_entropy(logits / temperature, targets).item()

    best = min(nll(temperature) for temperature in np.geomspace(0.01, 100, 300))
    assert 0.0099 < found < 101 and nll(found) <= best + 1e-6 * (1 + best)


def test_a_temperature_that_changes_nothing_is_one():
    assert fit_temperature(torch.full((4, 3), 2.5), torch.tensor([0, 1, 2, 0])) == 1
    with pytest.raises(InputError, match="are empty"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


def test_one_member_has_no_mutual_information():
    assert not ood_scores(torch.randn(50, 1, 9))["mutual_information"].any()


def test_out_of_distribution_needs_both_kinds():
    metric = OutOfDistribution()
    metric.update(torch.randn(3, 2, 4), out=True)
    with pytest.raises(ValueError, match="images of both kinds"):
        metric.compute()


@fast
@given(truth=st.floats(0.2, 5), seed=st.integers(0, 100))
def test_temperature_is_the_best_of_a_grid(truth, seed):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.standard_normal((400, 5)) * 2)
    targets = torch.from_numpy(np.array([rng.choice(5, p=row) for row in softmax(logits.numpy())]))
    found = fit_temperature(logits * truth, targets)

    def nll(temperature):
        return torch.nn.functional.cross_entropy(logits * truth / temperature, targets).item()

    grid = np.exp(np.linspace(math.log(0.05), math.log(20), 400))
    assert nll(found) <= min(nll(t) for t in grid) + 1e-9
    assert found == pytest.approx(truth, rel=0.35)


def test_two_fold_scaling_never_fits_what_it_judges():
    logits = torch.randn(40, 3)
    targets = torch.randint(3, (40,))
    scaled = two_fold(logits, targets)
    flipped = targets.clone()
    flipped[::2] = (flipped[::2] + 1) % 3  # other labels in one half change the other half only
    other = two_fold(logits, flipped)
    assert torch.equal(scaled[::2], other[::2]) and not torch.equal(scaled[1::2], other[1::2])
    torch.testing.assert_close(scaled[::2], logits[::2] / fit_temperature(logits[1::2], targets[1::2]))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 30), scale=st.floats(0.1, 30), seed=st.integers(0, 99), members=st.integers(1, 3))
def test_evaluate_judges_averages_and_members(n, scale, seed, members):
    logits, targets = sample(n, 6, scale, False, seed, members)
    figures = mixmo.evaluate(logits, targets)
    each = softmax(logits.numpy())
    parts = {"": softmax(logits.numpy().mean(1)), "probability_average/": each.mean(1)}
    parts |= {f"member_{i}/": each[:, i] for i in range(members)}
    for prefix, p in parts.items():
        for metric in (Scores(), Calibration(), SelectivePrediction()):
            for key, value in figures_of(metric, (torch.from_numpy(p), targets)).items():
                assert figures[prefix + key] == pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True), prefix + key
    shared = 8 + 4 if members > 1 else 0
    assert len(figures) == (5 + 5 + 5) * (members + 2) + shared + 2
    assert ("d_re" in figures) == (members > 1)


def test_evaluation_in_pieces_is_evaluation(monkeypatch):
    logits, targets = sample(50, 7, 3.0, False, 0, 2)
    whole = mixmo.evaluate(logits, targets)
    monkeypatch.setattr(chunks, "CHUNK", 100)
    assert mixmo.evaluate(logits, targets) == pytest.approx(whole, rel=1e-12)


def test_huge_logits_give_finite_figures():
    logits = torch.tensor([[[1e4, -1e4], [1e4, 0.0]], [[-1e4, 1e4], [0.0, 1e4]]])
    figures = mixmo.evaluate(logits, torch.tensor([0, 0]))
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["nll"] == pytest.approx(7500)


def test_perfect_and_worst_predictions():
    p, t = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 0])
    best = figures_of(Scores(), (p, t)) | figures_of(Calibration(), (p, t)) | figures_of(SelectivePrediction(), (p, t))
    assert (best["accuracy"], best["nll"], best["brier"], best["ece"], best["aurc"]) == (1, 0, 0, 0, 0)
    worst = figures_of(Scores(), (p, (t + 1) % 3)) | figures_of(Calibration(), (p, (t + 1) % 3))
    assert (worst["accuracy"], worst["nll"], worst["brier"], worst["ece"]) == (0, math.inf, 2, 1)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    """lo < confidence <= hi: 0.6 = 9/15 shares the bin of 0.55, not that of 0.65."""
    p = torch.tensor([[0.6, 0.4], [0.55, 0.45]], dtype=torch.double)
    assert figures_of(Calibration(), (p, torch.tensor([0, 1])))["ece"] == pytest.approx(abs(0.5 - 0.575))


def test_certain_predictions_are_in_the_last_bin():
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.95, 0.05]])
    found = figures_of(Calibration(), (p, torch.tensor([0, 1, 0])))["ece"]
    assert found == pytest.approx(2.95 / 3 - 2 / 3, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_precision_is_evaluated_in_float64(dtype):
    logits, targets = sample(50, 10, 3.0, False, 0, 2)
    low = logits.to(dtype)
    assert mixmo.evaluate(low, targets) == pytest.approx(mixmo.evaluate(low.double(), targets), rel=1e-6)
    scores = Scores()
    scores.update(low[:, 0].softmax(1), targets)
    assert scores.total.dtype == torch.float64


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2), "do not fit"),
        (torch.zeros(2, 1, 3), torch.zeros(3), "do not fit"),
        (torch.zeros(0, 1, 3), torch.zeros(0), "are empty"),
        (torch.tensor([[[0.0, 0.0]], [[float("nan"), 0.0]]]), torch.zeros(2), "row 1 are not finite"),
        (torch.zeros(2, 1, 3), torch.tensor([0, -1]), "target -1 in row 1"),
    ],
)
def test_bad_logits_are_refused(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        mixmo.evaluate(logits, targets.long())


@pytest.mark.parametrize("metric", [Scores, Calibration, SelectivePrediction])
@pytest.mark.parametrize(
    ("rows", "targets", "message"),
    [
        ([[0.5, 0.5], [math.nan, 0.5]], [0, 0], "row 1 are not finite"),
        ([[0.5, 0.5], [0.5, 0.4]], [0, 0], "row 1 sum to 0.9, not to one"),
        ([[1.5, -0.5]], [0], "row 0 are negative"),
        ([[0.5, 0.5]], [2], "target 2 in row 0 is out of range"),
        ([[0.5, 0.5]], [0, 1], "do not fit"),
        ([0.5, 0.5], [0, 1], r"they are \(B, K\)"),
    ],
)
def test_what_is_no_prediction_is_refused(metric, rows, targets, message):
    with pytest.raises(ValueError, match=message):
        metric().update(torch.tensor(rows), torch.tensor(targets))


def test_members_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="between members"):
        Diversity(3, 1)
    with pytest.raises(ValueError, match=r"do not fit \(B, M, K\)"):
        Diversity(3, 2).update(torch.full((4, 3, 3), 1 / 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="row 2 sum to"):
        EnsembleGain().update(torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]], [[0.5, 0.6]]]), torch.tensor([0, 0, 0]))


def one_process(rank, port, file):
    """Half of the samples on each of two processes; the first writes what all come to."""
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    logits, targets = sample(31, 5, 2.0, True, 3, 2)
    own = slice(0, 10) if rank == 0 else slice(10, 31)
    p = logits.softmax(2)[own]
    found = {}
    for metric in (Scores(), Calibration(), SelectivePrediction()):
        found |= figures_of(metric, (p[:, 0], targets[own]))
    for metric in (Diversity(5, 2), EnsembleGain()):
        found |= figures_of(metric, (p, targets[own]))
    if rank == 0:
        torch.save(found, file)
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_figures_of_one(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=one_process, args=(rank, port, tmp_path / "found.pt")) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    logits, targets = sample(31, 5, 2.0, True, 3, 2)
    p, expected = logits.softmax(2), {}
    for metric in (Scores(), Calibration(), SelectivePrediction()):
        expected |= figures_of(metric, (p[:, 0], targets))
    for metric in (Diversity(5, 2), EnsembleGain()):
        expected |= figures_of(metric, (p, targets))
    assert torch.load(tmp_path / "found.pt") == pytest.approx(expected, rel=1e-12, nan_ok=True)
