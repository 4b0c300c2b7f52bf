"""A task for timm's training loop."""

from __future__ import annotations

from typing import Any

import torch
from timm.task import ClassificationTask
from torch import Tensor

from mixmo.batch_mixing import BatchMixer, MixedBatch
from mixmo.errors import InputError
from mixmo.network import MixMo
from mixmo.seeding import seed_for


class MixMoTask(ClassificationTask):
    """Trains a network on mixtures of a loader's batches; timm validates it as an ordinary classifier.

    Args:
        net: The network.
        mixer: Makes the mixtures and their loss; timm's losses take no mixtures.
        steps: Number of batches in the whole training, for the schedules of p and rho.
        seed: Every draw of a step is a function of (seed, step).
        device: Passed to timm's ``TrainingTask``.
        dtype: Passed to timm's ``TrainingTask``.
        verbose: Passed to timm's ``TrainingTask``.

    Raises:
        InputError: if ``steps`` is less than 1.

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
            raise InputError(f"steps is {steps}; it must be 1 or more.")
        super().__init__(net, mixed_loss, device=device, dtype=dtype, verbose=verbose)
        self.mixer, self.steps, self.seed, self.step = mixer, steps, seed, 0

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss of a batch's mixtures, and their logits.

        Args:
            input: Images (U, C, H, W).
            target: Class numbers (U,), or probabilities (U, K).
        """
        mixed = self._mix(input, target)
        output = self.trainable_module(mixed.inputs, mixed.masks)
        return {"loss": mixed.loss(output), "output": output}

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # seeds are computed by NumPy
    def _mix(self, images: Tensor, labels: Tensor) -> MixedBatch:
        generator = torch.Generator(images.device).manual_seed(seed_for(self.seed, self.step))
        mixed = self.mixer(images, labels, min(1.0, self.step / self.steps), generator)
        self.step += 1
        return mixed

    def get_task_state(self, *arguments: Any, ema: bool = False, **options: Any) -> dict[str, Any]:
        """Return the number of batches seen, which a checkpoint stores in addition to the network.

        Args:
            *arguments: Ignored.
            ema: Whether the state is for averaged weights, which has none.
            **options: Ignored.
        """
        return {} if ema else {"step": self.step}

    def load_task_state(self, state: dict[str, Any] | None, *arguments: Any, ema: bool = False, **options: Any) -> None:
        """Restore what :meth:`get_task_state` returned.

        Args:
            state: The state; ``None`` starts from the first batch.
            *arguments: Ignored.
            ema: Whether the state is for averaged weights, which is ignored.
            **options: Ignored.
        """
        if not ema:
            self.step = int((state or {}).get("step", 0))


def mixed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Raise an error: the loss of mixtures needs their masks, so the task uses the batch's ``loss``."""
    raise InputError("the loss of mixtures needs their masks; use batch.loss(logits).")
