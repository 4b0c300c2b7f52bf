"""Running sums of an epoch's loss and accuracies, on the device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixmo.training.ranks import mean_over_ranks


class EpochSums:
    """Loss and each member's accuracy over the steps of an epoch, and how fast they were.

    With ``multi_label`` accuracy is the share of labels that are right at 0.5.

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

    def begin(self, device: torch.device, kept: Mapping[str, Any] | None = None) -> None:
        """Start an epoch, or continue one from the sums that :meth:`state` returned."""
        sums = torch.zeros(len(self.sums)) if kept is None else torch.cat([kept["loss"][None], kept["accuracy"]])
        self.sums, self.steps = sums.to(device), 0 if kept is None else kept["steps"]
        self._timed, self._since = 0, time.perf_counter()

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a step: loss, logits (B, M, K), and targets, of whose probabilities the largest counts."""
        if self.multi_label:
            accuracy = ((logits > 0) == (targets > 0.5)).float().mean((0, 2))
        else:
            classes = targets.argmax(2) if targets.is_floating_point() else targets
            accuracy = (logits.argmax(2) == classes).float().mean(0)
        self.sums += torch.cat([loss[None], accuracy])
        self.steps += 1
        self._timed += 1

    def report(self, batch_size: int) -> dict[str, Any]:
        """Return the means over the epoch's steps so far, of all processes, and mixtures per second."""
        loss, *accuracies = mean_over_ranks(self.sums) / self.steps
        name = "label_accuracy" if self.multi_label else "accuracy"
        members = {f"train_member_{member}_{name}": accuracy for member, accuracy in enumerate(accuracies)}
        speed = self._timed * batch_size / (time.perf_counter() - self._since)
        return {"train_loss": loss} | members | {"images_per_second": speed}

    def state(self) -> dict[str, Any]:
        """Return the sums, for a checkpoint within an epoch; from here on all processes continue from their mean."""
        self.sums = mean_over_ranks(self.sums).clone()
        kept = self.sums.cpu()
        return {"loss": kept[0].clone(), "accuracy": kept[1:].clone(), "steps": self.steps}
