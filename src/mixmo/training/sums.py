"""Running sums of an epoch's loss and accuracies, on the device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixmo.errors import InputError
from mixmo.training.ranks import mean_over_ranks

MOST_SKIPPED = 100
"""Steps in a row that may be skipped; more, and training goes nowhere."""


class TrainingError(InputError):
    """Training cannot continue; the message says at which step, and what to do."""


class EpochSums:
    """Loss and each member's accuracy over the steps of an epoch, and how fast they were.

    Args:
        num_members: M.
        skipping: Whether steps that are not finite are skipped and reported.

    Example:
        >>> sums = EpochSums(num_members=2)
        >>> sums.begin(torch.device("cpu"))
        >>> sums.add(torch.tensor(0.5), torch.tensor([[[2.0, 1.0], [1.0, 2.0]]]), torch.tensor([[0, 0]]))
        >>> report = sums.report(batch_size=1)
        >>> report["train_loss"].item(), report["train_member_1_accuracy"].item()
        (0.5, 0.0)
    """

    def __init__(self, num_members: int, skipping: bool = False) -> None:
        self.skipping = skipping
        self.loss, self.accuracy = torch.zeros(()), torch.zeros(num_members)
        self.steps, self._timed, self._since = 0, 0, 0.0
        self.bad_steps, self._in_a_row = 0, 0
        self._before = self.loss, self.accuracy

    def begin(self, device: torch.device, kept: Mapping[str, Any] | None = None) -> None:
        """Start an epoch, or continue one.

        Args:
            device: Where to sum.
            kept: The sums so far (:meth:`state`); ``None`` for none.
        """
        kept = kept or {"loss": torch.zeros(()), "accuracy": torch.zeros(len(self.accuracy)), "steps": 0, "skipped": 0}
        self.loss, self.accuracy = kept["loss"].to(device, copy=True), kept["accuracy"].to(device, copy=True)
        self.steps, self._timed, self._since = kept["steps"], 0, time.perf_counter()
        self.bad_steps = kept["skipped"]

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a step.

        Args:
            loss: A scalar.
            logits: (B, M, K).
            targets: (B, M) class numbers, or (B, M, K) probabilities, whose largest counts.
        """
        self._before = (self.loss.clone(), self.accuracy.clone()) if self.skipping else (self.loss, self.accuracy)
        classes = targets.argmax(2) if targets.is_floating_point() else targets
        self.loss += loss.nan_to_num(0, 0, 0)  # one that is not finite ends the run, or is skipped
        self.accuracy += (logits.argmax(2) == classes).float().mean(0)
        self.steps += 1
        self._timed += 1

    def skipped(self, bad: bool) -> bool:
        """Count the last step as skipped if it is ``bad``, without its loss and accuracy, and return that.

        Raises:
            TrainingError: if too many in a row are.
        """
        self.bad_steps += bad
        if bad:
            self.loss, self.accuracy = self._before
        self._in_a_row = self._in_a_row + 1 if bad else 0
        if self._in_a_row >= MOST_SKIPPED:
            raise TrainingError(
                f"the loss or its gradient was not finite in {MOST_SKIPPED} steps in a row, which were skipped; lower "
                "the learning rate or lengthen the warm-up."
            )
        return bad

    def report(self, batch_size: int) -> dict[str, Any]:
        """Return the means over the epoch's steps so far, of all processes, and mixtures per second.

        Skipped steps do not count; means of no step are NaN.
        """
        means = mean_over_ranks(torch.cat([self.loss[None], self.accuracy]))
        means = means / (self.steps - self.bad_steps)
        report: dict[str, Any] = {"train_loss": means[0]}
        for member, accuracy in enumerate(means[1:]):
            report[f"train_member_{member}_accuracy"] = accuracy
        if self.skipping:
            report["skipped_steps"] = float(self.bad_steps)
        report["images_per_second"] = self._timed * batch_size / (time.perf_counter() - self._since)
        return report

    def state(self) -> dict[str, Any]:
        """Return the sums, for a checkpoint within an epoch; from here on all processes continue from their mean."""
        means = mean_over_ranks(torch.cat([self.loss[None], self.accuracy]))
        self.loss, self.accuracy = means[0].clone(), means[1:].clone()
        kept = {"loss": self.loss.cpu(), "accuracy": self.accuracy.cpu()}
        return kept | {"steps": self.steps, "skipped": self.bad_steps}
