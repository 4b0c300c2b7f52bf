"""Running sums of an epoch's loss and accuracies, on the device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixmo.training.ranks import mean_over_ranks


class EpochSums:
    """Loss and members' accuracies summed over an epoch's steps, and their speed.

    With ``multi_label`` accuracy is the share of labels that are right at threshold 0.5.

    Example:
        >>> sums = EpochSums(num_members=2)
        >>> sums.begin(torch.device("cpu"))
        >>> sums.add(torch.tensor(0.5), torch.tensor([[[2.0, 1.0], [1.0, 2.0]]]), torch.tensor([[0, 0]]))
        >>> report = sums.report(batch_size=1)
        >>> report["train_loss"].item(), report["train_member_1_accuracy"].item()
        (0.5, 0.0)
    """

    def __init__(self, num_members: int, multi_label: bool = False) -> None:
        self.multi_label = multi_label
        self.sums, self.steps = torch.zeros(1 + num_members), 0
        self._timed, self._since = 0, 0.0

    def begin(self, device: torch.device, state: Mapping[str, Any] | None = None) -> None:
        """Start an epoch, or continue one from its :meth:`state`."""
        sums = torch.zeros(len(self.sums)) if state is None else torch.cat([state["loss"][None], state["accuracy"]])
        self.sums, self.steps = sums.to(device), 0 if state is None else state["steps"]
        self._timed, self._since = 0, time.perf_counter()

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a step: loss, logits (B, M, K) and targets, class numbers (B, M) or probabilities (B, M, K)."""
        if self.multi_label:
            accuracy = ((logits > 0) == (targets > 0.5)).float().mean((0, 2))
        else:
            classes = targets.argmax(2) if targets.is_floating_point() else targets
            accuracy = (logits.argmax(2) == classes).float().mean(0)
        self.sums += torch.cat([loss[None], accuracy])
        self.steps += 1
        self._timed += 1

    def report(self, batch_size: int) -> dict[str, Any]:
        """Return means over the epoch's steps so far and over all ranks, and mixtures per second."""
        loss, *accuracies = mean_over_ranks(self.sums) / self.steps
        name = "label_accuracy" if self.multi_label else "accuracy"
        members = {f"train_member_{member}_{name}": accuracy for member, accuracy in enumerate(accuracies)}
        speed = self._timed * batch_size / (time.perf_counter() - self._since)
        return {"train_loss": loss} | members | {"images_per_second": speed}

    def state(self) -> dict[str, Any]:
        """Replace the sums by their mean over the ranks, and return them for a checkpoint within an epoch."""
        self.sums = mean_over_ranks(self.sums).clone()
        sums = self.sums.cpu()
        return {"loss": sums[0].clone(), "accuracy": sums[1:].clone(), "steps": self.steps}
