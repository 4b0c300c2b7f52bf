"""The cost of a training step of MixMo against the plain network's, same batch and precision, in one run.

``step``: forward, loss, backward, optimiser; MixMo's includes drawing the masks. ``with input path``: from
uint8 images, so crops, flips and pairing count too (MixMo augments M images for each mixture).
``peak MiB``: the most memory a few steps take in a fresh process, above what it holds after importing (Linux).

python benchmarks/step.py [--backbone wide_resnet16_4] [--batch 64] [--precision float32] [--save]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timing import interleaved, report, summary

import mixmo
from mixmo.batches import BatchMaker
from mixmo.data import DistinctBatch
from mixmo.optimizers import build_optimizer
from mixmo.settings import DataSettings

Step = Callable[[], object]


def build(given: argparse.Namespace, members: int, input_path: bool) -> Step:
    """Return a training step: of the plain timm network for 0 members, of MixMo for M >= 1."""
    torch.manual_seed(0)
    if members:
        net = mixmo.MixMo(given.backbone, members, num_classes=100)
    else:
        net = timm.create_model(given.backbone, num_classes=100)
    net = net.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(net, lr=0.01)
    make = batches(given, members or 1)
    fixed = make()

    def step() -> None:
        inputs, masks, targets, weights = make() if input_path else (fixed if not members else remixed())
        with torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "bfloat16"):
            if members:
                loss = mixmo.mixed_cross_entropy(net(inputs, masks), targets, weights)
            else:
                loss = F.cross_entropy(net(inputs[:, 0]), targets[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def remixed() -> tuple[torch.Tensor, ...]:
        mix = mixmo.Mixer("cut", members).sample(given.batch, tuple(fixed.masks.shape[2:]))
        return fixed.inputs, mix.masks, fixed.targets, mixmo.loss_weights(mix.ratios)

    return step


def batches(given: argparse.Namespace, members: int) -> Callable[[], object]:
    """Return what makes a batch from random uint8 images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5000, given.size, given.size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(100, (5000,), generator=generator)
    data = DataSettings(batch_size=given.batch)
    shape = mixmo.MixMo(given.backbone, 1, num_classes=2).encoder_shape(given.size, given.size)
    maker = BatchMaker(data, mixmo.Mixer("cut", members), None, 3.0, shape, 100)
    return lambda: maker(DistinctBatch(images, labels, torch.arange(given.batch)), generator)


def peak_memory(given: argparse.Namespace, members: int) -> float:
    """Return the MiB a fresh process takes for a few steps, above what it has after importing."""
    words = [sys.executable, __file__, "--backbone", given.backbone, "--batch", given.batch, "--size", given.size]
    words += ["--precision", given.precision, "--measure-memory", members]
    return float(subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout)


def resident_mib(field: str) -> float:
    """Return VmRSS, what this process holds now, or VmHWM, the most it held since the mark was reset (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="wide_resnet16_4")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    parser.add_argument("--measure-memory", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure_memory is not None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = resident_mib("VmRSS")
        step = build(given, given.measure_memory, input_path=False)
        for _ in range(4):
            step()
        print(resident_mib("VmHWM") - before)
        return
    labels = {0: "plain network", 1: "MixMo, M = 1", 2: "MixMo, M = 2"}
    rows: dict[str, dict[str, float]] = {}
    for input_path in (False, True):
        seconds = interleaved({name: build(given, m, input_path) for m, name in labels.items()}, given.rounds)
        for name, taken in seconds.items():
            label = f"{name}, with input path" if input_path else name
            rows[label] = summary(taken, against=seconds[labels[0]])
            rows[label]["images/s"] = 1e3 * given.batch / rows[label]["ms"]
    memory = {name: peak_memory(given, m) for m, name in labels.items()}
    for name, peak in memory.items():
        rows[name] |= {"peak MiB": peak, "memory ratio": peak / memory[labels[0]]}
    about = {key: getattr(given, key) for key in ("backbone", "batch", "size", "precision", "rounds")}
    report(f"step-{given.backbone}-{given.precision}", rows, about | {"threads": torch.get_num_threads()}, given.save)


if __name__ == "__main__":
    main()
