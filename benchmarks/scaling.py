"""Calculate what limits training on 8, 64 and 512 GPUs: python benchmarks/scaling.py [--update docs/scaling.md].

Parameters and multiply-adds are those of the networks (nothing is trained); the decode rate is measured on this
machine; speeds of GPUs, links and disks are options, which default to vendors' figures for H100 machines.

Per step, with n GPUs, P parameters, B mixtures, batch repetition b, images of S bytes:

    compute     3 · 2 · MACs · B/n / (peak · utilisation)
    gradients   2 (n - 1)/n · 4 P bytes sent by each GPU (ring all-reduce, float32) / link
    images      (n - 1)/n · B/b · S bytes received by each GPU (all-gather of decoded pixels, 8 bits) / link
    decoding    B/b images / step time, in cores of this machine
    interval    √(2 C F/n): C seconds to write a checkpoint, F a GPU's hours between failures (Young 1974)
"""

from __future__ import annotations

import argparse
import io
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import mixmo
from mixmo.data.decoding import image_pixels, to_size

IMAGES, CLASSES, REPETITION = 14_200_000, 21_841, 2
MARKER, END = "<!-- scaling -->", "<!-- end -->"
NETWORKS = {  # timm's name, input size, mixtures on each GPU, values stored per parameter
    "WRN-28-10": ("wide_resnet28_10", 32, 512, 3),  # weights, momentum, EMA
    "ViT-L/16": ("vit_large_patch16_224", 224, 64, 4),  # weights, two moments, EMA
}


def network(name: str, size: int) -> tuple[int, float]:
    """Return parameters and multiply-adds of two members on the meta device."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = mixmo.MixMo(name, num_classes=CLASSES, num_members=2)
        net.eval()(torch.empty(1, 3, size, size))
    return sum(each.numel() for each in net.parameters()), counter.get_total_flops() / 2


def decoded_a_second(size: int, seconds: float = 3.0) -> float:
    """Return how many JPEG images of 500×375 one core decodes and scales per second."""
    small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    torch.set_num_threads(1)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        to_size(image_pixels(content.getvalue(), 3), (size, size), "bicubic")
        count += 1
    return count / (time.perf_counter() - start)


def rows(given: argparse.Namespace) -> list[list[str]]:
    found = []
    for shown, (name, size, own, kept) in NETWORKS.items():
        parameters, macs = network(name, size)
        rate = decoded_a_second(size)
        for gpus in (8, 64, 512):
            link = (given.nvlink if gpus <= 8 else given.network) * 1e9
            batch, share = own * gpus, (gpus - 1) / gpus
            compute = 6 * macs * own / (given.tflops * 1e12 * given.utilisation)
            gradients = 2 * share * 4 * parameters / link
            images = share * batch / REPETITION * size * size * 3 / link
            step = max(compute, gradients) + images  # the all-reduce overlaps with the backward pass
            cores = batch / REPETITION / step / rate
            write = 4 * kept * parameters / (given.disk * 1e9)
            interval = math.sqrt(2 * write * given.failure_hours * 3600 / gpus)
            epoch = IMAGES * REPETITION / batch * step
            found.append([
                shown, str(gpus), str(batch), f"{parameters / 1e6:.0f}", f"{1e3 * compute:.0f}",
                f"{2 * share * 4 * parameters / 1e9:.2f}", f"{1e3 * gradients:.1f}",
                f"{share * batch / REPETITION * size * size * 3 / 1e9:.3f}", f"{1e3 * images:.1f}",
                f"{cores / gpus:.1f}", f"{epoch / 60:.1f}", f"{write:.1f}", f"{interval / 60:.0f}",
            ])  # fmt: skip
    return found


HEAD = [
    "network", "GPUs", "batch", "parameters, M", "compute, ms", "gradients, GB", "gradients, ms", "images, GB",
    "images, ms", "CPU cores per GPU", "epoch, min", "writing a checkpoint, s", "checkpoint every, min",
]  # fmt: skip


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", type=Path, help="a file whose table is replaced")
    parser.add_argument("--tflops", type=float, default=990, help="peak of a GPU, bfloat16 without sparsity")
    parser.add_argument("--utilisation", type=float, default=0.35)
    parser.add_argument("--nvlink", type=float, default=450, help="GB/s a GPU sends within a machine")
    parser.add_argument("--network", type=float, default=50, help="GB/s a GPU sends between machines")
    parser.add_argument("--disk", type=float, default=1, help="GB/s of the shared disk")
    parser.add_argument("--failure-hours", type=float, default=50_000, help="of one GPU, between failures")
    return parser


def main() -> None:
    given = parser().parse_args()
    lines = [HEAD, ["---"] * len(HEAD), *rows(given)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    print(f"{table}\n\ntorch {torch.__version__}, {platform.machine()}")
    if given.update:
        text = given.update.read_text("utf-8")
        before, _, rest = text.partition(MARKER)
        given.update.write_text(f"{before}{MARKER}\n\n{table}\n\n{END}{rest.partition(END)[2]}", "utf-8")


if __name__ == "__main__":
    main()
