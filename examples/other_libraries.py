"""Evaluate torch-uncertainty's Packed-Ensembles and BatchEnsemble with mixmo's metrics.

    pip install torch-uncertainty
    python examples/other_libraries.py [--epochs 20] [--out theirs]
    mixmo compare runs/digits-cut theirs/packed.npz theirs/batch-ensemble.npz

Trains small LeNets on the digits and saves their predictions on the test images. Only the data comes from mixmo.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch_uncertainty.models.classification import batchensemble_lenet, packed_lenet

from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.data.batches import Augmentation
from mixmo.data.module import DataModule

MEMBERS = 4


def pixels(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the digits, normalised, (N, 1, 16, 16), and their labels (N,)."""
    settings = make_plan(load_recipe("digits-cut")).settings
    images = getattr(DataModule(settings.data, settings.seed), name)
    return Augmentation(settings.data).center(images.images, torch.arange(len(images))), images.labels


def train(net: nn.Module, epochs: int) -> nn.Module:
    """Train with plain SGD; the networks return the members' logits one after another, (M * B, K)."""
    images, labels = pixels("train")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(32):
            logits = net(images[chosen])
            loss = cross_entropy(logits, labels[chosen].repeat(len(logits) // len(chosen)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return net.eval()


@torch.inference_mode()
def save(net: nn.Module, file: Path) -> None:
    """Save logits (N, M, K) and targets (N,), as ``mixmo test --predictions`` and ``mixmo compare`` read them."""
    images, labels = pixels("test")
    logits = net(images).view(MEMBERS, len(images), -1).transpose(0, 1)
    np.savez(file, logits=logits.numpy(), targets=labels.numpy())
    print(f"written: {file}")


def main() -> None:
    """Train both ensembles and save their predictions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("theirs"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    packed = packed_lenet(in_channels=1, num_classes=10, num_estimators=MEMBERS, alpha=2)
    batch_ensemble = batchensemble_lenet(1, 10, num_estimators=MEMBERS, repeat_training_inputs=True)
    for name, net in {"packed": packed, "batch-ensemble": batch_ensemble}.items():
        save(train(net, given.epochs), given.out / f"{name}.npz")


if __name__ == "__main__":
    main()
