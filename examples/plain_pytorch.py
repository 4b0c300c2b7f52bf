"""Cut-MixMo without Lightning, in plain PyTorch: few digits, many passes, a minute on two cores.

    python examples/plain_pytorch.py [--epochs 160]

It is the quickstart's task, with the loop in one's own hands: pairs, masks, weights, loss, and nothing else of mixmo.
"""

from __future__ import annotations

import argparse
import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import mixmo

MEMBERS, BATCH, REPETITION, INPUT_REPETITION, PER_CLASS = 2, 50, 2, 0.5, 20


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return 20 training images of each class (N, 1, 16, 16) with labels, and all others to test on."""
    found = load_digits()
    images = F.interpolate(torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, size=16, mode="bilinear")
    labels = torch.tensor(found.target)
    train = torch.cat([(labels == k).nonzero()[:PER_CLASS, 0] for k in range(10)])
    test = torch.ones(len(labels), dtype=torch.bool).scatter(0, train, False)
    images = (images - 0.3) / 0.37
    return images[train], labels[train], images[test], labels[test]


def main(epochs: int) -> dict[str, float]:
    """Train, and return the metrics of the test images."""
    torch.manual_seed(0)
    train, labels, test, test_labels = digits()
    net = mixmo.MixMo("wide_resnet10_2", MEMBERS, num_classes=10, in_chans=1)
    mixer = mixmo.Mixer("cut", MEMBERS, alpha=2.0, probability=0.5)
    shape, distinct = net.encoder_shape(16, 16), BATCH // REPETITION
    steps = epochs * (len(train) // distinct)
    optimizer = torch.optim.SGD(net.parameters(), 0.1 / REPETITION, 0.9, weight_decay=6e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    step = 0
    for _ in range(epochs):
        for chosen in torch.randperm(len(train)).split(distinct):
            pairs = mixmo.pair(len(chosen), MEMBERS, REPETITION, INPUT_REPETITION)  # (B, M) places in ``chosen``
            inputs, targets = train[chosen][pairs], labels[chosen][pairs]
            mix = mixer.sample(len(pairs), shape, progress=step / steps)
            logits = net(inputs, mix.masks)
            loss = mixmo.mixed_cross_entropy(logits, targets, mixmo.loss_weights(mix.ratios, root=3.0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
    plain = mixmo.fuse(net.eval())  # an ordinary WideResNet, of the cost of one
    with torch.no_grad():
        metrics = mixmo.evaluate(net(test), test_labels)
        assert (plain(test).argmax(1) == net(test).argmax(1)).float().mean() > 0.999
    return metrics


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=160, help="each image is seen twice an epoch")
    found = main(parser.parse_args().epochs)
    print(", ".join(f"{key} {found[key]:.4f}" for key in ("accuracy", "nll", "brier", "ece")))
