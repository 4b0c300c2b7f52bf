"""A task for timm's training loop."""

from __future__ import annotations

from typing import Any

import torch
from timm.task import ClassificationTask
from torch import Tensor

from mixmo.batch_mixing import BatchMixer
from mixmo.errors import InputError
from mixmo.network import MixMo
from mixmo.seeding import seed_for


class MixMoTask(ClassificationTask):
    """Trains a network on mixtures of a loader's batches; validation takes the network, an ordinary classifier.

    Args:
        net: The network.
        mixer: Makes the mixtures and their loss; timm's losses take no mixtures.
        steps: Batches of the whole training, which the schedules of p and rho follow.
        seed: Every draw of a step is a function of (seed, step).
        device: As timm's tasks have it.
        dtype: As timm's ``TrainingTask`` takes it.
        verbose: As timm's ``TrainingTask`` takes it.

    Raises:
        InputError: if there is no step.

    Example:
        >>> net = MixMo("wide_resnet10_1", num_members=2, num_classes=10)
        >>> task = MixMoTask(net, BatchMixer(net, "cut"), steps=100)
        >>> sorted(task(torch.zeros(4, 3, 32, 32), torch.arange(4)))
        ['loss', 'output']
    """

    def __init__(
        self,
        net: MixMo,
        mixer: BatchMixer,
        steps: int,
        seed: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        if steps < 1:
            raise InputError(f"steps is {steps}; a training has 1 or more.")
        super().__init__(net, mixed_loss, device=device, dtype=dtype, verbose=verbose)
        self.mixer, self.steps, self.seed, self.step = mixer, steps, seed, 0

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss of the mixtures of a batch, and their logits.

        Args:
            input: Images (U, C, H, W).
            target: Class numbers (U,), or probabilities (U, K).
        """
        generator = torch.Generator(input.device).manual_seed(seed_for(self.seed, self.step))
        mixed = self.mixer(input, target, min(1.0, self.step / self.steps), generator)
        self.step += 1
        output = self.trainable_module(mixed.inputs, mixed.masks)
        return {"loss": mixed.loss(output), "output": output}

    def get_task_state(self, *arguments: Any, ema: bool = False, **options: Any) -> dict[str, Any]:
        """Return what a checkpoint keeps in addition to the network: how many batches were seen.

        Args:
            *arguments: As timm's tasks have them.
            ema: Whether the state is that of averaged weights, which see no batches.
            **options: As timm's tasks have them.
        """
        return {} if ema else {"step": self.step}

    def load_task_state(self, state: dict[str, Any] | None, *arguments: Any, ema: bool = False, **options: Any) -> None:
        """Go on from what :meth:`get_task_state` returned.

        Args:
            state: That; ``None`` starts from the first batch.
            *arguments: As timm's tasks have them.
            ema: Whether the state is that of averaged weights, which changes nothing here.
            **options: As timm's tasks have them.
        """
        if not ema:
            self.step = int((state or {}).get("step", 0))


def mixed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Refuse to score mixtures without their masks; the task asks the batch itself."""
    raise InputError("mixtures are scored by their own batch: batch.loss(logits).")
