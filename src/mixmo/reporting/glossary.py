"""Names, meanings, units and directions of the metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

DIRECTIONS = {True: "Higher is better.", False: "Lower is better.", None: ""}
SIZES = ("M", "ms", "min")
"""Units of what spans orders of magnitude, so that a fixed number of digits would round small ones away."""
ARROWS = {True: "↑", False: "↓", None: ""}


@dataclass(frozen=True)
class Metric:
    """How a metric is named, explained and printed.

    Attributes:
        name: In words, short enough for the heading of a column.
        meaning: One sentence.
        better: Whether higher is better; ``None`` where it depends.
        unit: After the number, such as ``%``.
        factor: From the value to the printed number.
        digits: After the point.
    """

    name: str
    meaning: str
    better: bool | None = None
    unit: str = ""
    factor: float = 1.0
    digits: int = 4

    @property
    def heading(self) -> str:
        """The name and an arrow to the better side.

        Example:
            >>> METRICS["nll"].heading
            'NLL ↓'
        """
        return f"{self.name} {ARROWS[self.better]}".strip()

    @property
    def column(self) -> str:
        """The name and the unit, as the heading of a column.

        Example:
            >>> METRICS["accuracy"].column, METRICS["nll"].column
            ('Accuracy, %', 'NLL')
        """
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def help(self) -> str:
        """The meaning and which direction is better.

        Example:
            >>> METRICS["accuracy"].help
            'Share of images whose most probable class is the true one. Higher is better.'
        """
        return f"{self.meaning} {DIRECTIONS[self.better]}".strip()

    @property
    def brief(self) -> Metric:
        """The metric with one digit less, for cards and sentences.

        Example:
            >>> METRICS["accuracy"].brief.text(0.5)
            '50.0 %'
        """
        return replace(self, digits=max(1, self.digits - 1))

    def number(self, value: float, sign: bool = False) -> str:
        """Return a value as text without its unit, costs with two significant digits or more; a dash if not defined.

        Example:
            >>> METRICS["images"].number(6480), METRICS["images"].number(64_000_000)
            ('0.0065', '64.00')
            >>> [METRICS["ece"].number(value) for value in (0.5, -0.011, math.nan)]
            ['50.00', '−1.10', '–']
        """
        if math.isnan(value):
            return "–"
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        shown, digits = value * self.factor, self.digits
        if self.unit in SIZES and abs(shown) > 1e-6:
            digits = max(digits, 1 - math.floor(math.log10(abs(shown))))
        text = f"{shown:{'+' if sign else ''}.{digits}f}"
        return text.replace("-", "−")

    def text(self, value: float) -> str:
        """Return a value as text with its unit.

        Example:
            >>> METRICS["accuracy"].text(0.5)
            '50.00 %'
        """
        number = self.number(value)
        return number if number == "–" or not self.unit else f"{number} {self.unit}"

    def interval(self, low: float, high: float, sign: bool = False) -> str:
        """Return an interval as text; nothing if it is not defined.

        Example:
            >>> METRICS["accuracy"].interval(0.25, 0.75)
            '[25.00, 75.00]'
        """
        return "" if math.isnan(low) else f"[{self.number(low, sign)}, {self.number(high, sign)}]"


def _share(name: str, meaning: str, better: bool | None, digits: int = 2) -> Metric:
    return Metric(name, meaning, better, "%", 100, digits)


METRICS = {
    "accuracy": _share("Accuracy", "Share of images whose most probable class is the true one.", True),
    "nll": Metric("NLL", "Mean negative log-probability of the true class, in nats (log loss).", False),
    "brier": Metric(
        "Brier score", "Mean squared distance between probabilities and truth, summed over classes.", False
    ),
    "ece": _share("ECE", "Expected calibration error: mean gap between confidence and accuracy over 15 bins.", False),
    "misclassification_auroc": Metric(
        "Misclassification AUROC",
        "Probability that a correct prediction is more confident than a wrong one; 0.5 is chance.",
        True,
    ),
    "d_re": Metric(
        "Error-ratio diversity",
        "Images that one of two members gets wrong, divided by images that both get wrong (d_re in the paper).",
        True,
        digits=3,
    ),
    "disagreement": _share("Disagreement", "Share of images for which two members predict different classes.", None),
    "selectivity": _share(
        "Selectivity of members",
        "Share of the variance of a member's logits in mixtures that its own image causes, mean over members: all if "
        "they are separate, 1 / M if they are copies.",
        None,
        digits=1,
    ),
    "separate_units": _share(
        "Separate units",
        "Share of the units before the heads that vary with one member's image, by three quarters of their variance or "
        "more.",
        None,
        digits=1,
    ),
    "train_accuracy": _share(
        "Training accuracy",
        "Mean over members in the checkpoint's epoch, on the augmented mixtures of training.",
        None,
        digits=1,
    ),
    "accuracy_top5": _share(
        "Top-5 accuracy", "Share of images whose true class is among the five most probable.", True
    ),
    "aurc": _share("AURC", "Area under the risk–coverage curve: mean error over all numbers of kept images.", False),
    "eaurc": _share("Excess AURC", "AURC less that of a perfect order at the same accuracy.", False),
    "accuracy_at_95": _share("Accuracy at 95 % coverage", "Accuracy on the 95 % most confident predictions.", True),
    "accuracy_at_99": _share("Accuracy at 99 % coverage", "Accuracy on the 99 % most confident predictions.", True),
    "mce": _share("Maximum calibration error", "Largest gap between confidence and accuracy over 15 bins.", False),
    "ece_adaptive": _share("Adaptive ECE", "ECE over bins that hold equally many images.", False),
    "ece_classwise": _share("Classwise ECE", "Mean over classes of the ECE of their probabilities.", False),
    "tace": _share(
        "Thresholded adaptive ECE", "Adaptive ECE over all probabilities above 0.01, mean over classes.", False
    ),
    "brier_per_class": Metric("Brier score per class", "Brier score divided by the number of classes.", False),
    "nll_two_fold": Metric(
        "NLL after two-fold scaling",
        "NLL with each half of the test set scaled by the temperature fitted on the other half.",
        False,
    ),
    "ece_two_fold": _share(
        "ECE after two-fold scaling",
        "ECE with each half of the test set scaled by the temperature fitted on the other half.",
        False,
    ),
    "temperature": Metric(
        "Temperature", "Fitted on the validation set; above 1 the network is too confident, below 1 too cautious."
    ),
    "nll_scaled": Metric("NLL after temperature scaling", "NLL at the temperature of the validation set.", False),
    "ece_scaled": _share("ECE after temperature scaling", "ECE at the temperature of the validation set.", False),
    **{
        f"set_coverage_{percent}": _share(
            f"Coverage of {percent} % sets", f"Share of conformal sets for {percent} % that hold the true class.", None
        )
        for percent in (90, 95)
    },
    **{
        f"set_size_{percent}": Metric(
            f"Size of {percent} % sets", f"Mean number of classes in conformal sets for {percent} %.", False, "", 1, 2
        )
        for percent in (90, 95)
    },
    "q_statistic": Metric("Q statistic", "Yule's Q of two members being right; 0 if independent, 1 if alike.", False),
    "correlation": Metric("Error correlation", "Correlation of two members being right.", False),
    "double_fault": _share("Double fault", "Share of images that two members both get wrong.", False),
    "kappa": Metric("Cohen's kappa", "Agreement of two members' classes beyond chance.", None),
    "kl": Metric("KL divergence", "Mean divergence between two members' probabilities, in nats.", None),
    "cosine": Metric("Cosine similarity", "Mean cosine between two members' probabilities.", None),
    "member_mean_accuracy": _share("Mean accuracy of members", "Accuracy of a member alone, mean over members.", True),
    "member_mean_nll": Metric("Mean NLL of members", "NLL of a member alone, mean over members.", False),
    "oracle_accuracy": _share("Oracle accuracy", "Share of images that at least one member gets right.", True),
    "nll_gain": Metric("NLL gain of averaging", "Mean NLL of members less the NLL of their mean probabilities.", True),
    "corruption/accuracy": _share("Corrupted accuracy", "Accuracy, mean over all kinds and severities.", True),
    "corruption/nll": Metric("Corrupted NLL", "NLL, mean over all kinds and severities of corruption.", False),
    "corruption/ece": _share("Corrupted ECE", "ECE, mean over all kinds and severities of corruption.", False),
    "auroc": Metric("AUROC", "Probability that an OOD image has the higher score; 0.5 is chance.", True),
    "aupr": Metric("AUPR", "Area under the precision–recall curve, OOD images being positive.", True),
    "fpr95": _share("FPR95", "Share of test images taken for OOD where 95 % of OOD images are found.", False),
    "parameters": Metric("Parameters", "Weights of the network at inference.", False, "M", 1e-6, 2),
    "macs": Metric("MACs", "Multiply–accumulate operations for one image.", False, "M", 1e-6, 1),
    "images": Metric("Training images", "Images passed through the network in training.", False, "M", 1e-6, 2),
    "minutes": Metric("Training time", "Wall time of training, on the machine that trained it.", None, "min", 1, 1),
    "latency_ms": Metric(
        "Latency",
        "Time for an image in a batch of 64, on this machine's CPU; one short measurement, which varies with its load.",
        None,
        "ms",
        1,
        2,
    ),
}
"""Every metric that a page shows, by its key in files."""

MAIN = ("accuracy", "nll", "brier", "ece", "misclassification_auroc")
"""The metrics of the cards at the top of a page."""

MAIN_DIVERSITY = ("d_re", "disagreement")
"""Those of several members."""

PER_NETWORK = (
    "accuracy", "accuracy_top5", "nll", "brier", "brier_per_class", "ece", "ece_adaptive", "ece_classwise", "tace",
    "mce", "aurc", "eaurc", "accuracy_at_95", "accuracy_at_99", "misclassification_auroc",
)  # fmt: skip
"""Those of the average and of each member."""

DIVERSITY = (
    "d_re", "disagreement", "q_statistic", "correlation", "double_fault", "kappa", "kl", "cosine",
    "member_mean_accuracy", "member_mean_nll", "oracle_accuracy", "nll_gain",
)  # fmt: skip
"""Those of several members together."""

DIAGNOSIS = ("selectivity", "separate_units", "train_accuracy")
"""Those that tell why."""

SCALED = (
    "temperature", "nll_scaled", "ece_scaled", "set_coverage_90", "set_size_90", "set_coverage_95", "set_size_95",
    "nll_two_fold", "ece_two_fold",
)  # fmt: skip
"""Those after temperature scaling."""

CORRUPTED = ("corruption/accuracy", "corruption/nll", "corruption/ece")
"""Means over all corruptions."""

COSTS = ("parameters", "macs", "latency_ms", "images", "minutes")

OOD_SCORES = {
    "max_probability": "Maximum probability",
    "entropy": "Predictive entropy",
    "mutual_information": "Mutual information",
    "energy": "Energy",
}
"""The scores that tell OOD images from test images, in words."""
