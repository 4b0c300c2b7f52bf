"""Measure the cost of each kind of mask: drawing masks and ratios on one core, and a whole training step.

python benchmarks/masks.py [--backbone wide_resnet16_4] [--save FILE]
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from mixmo import Mixer
from mixmo.evaluation.benchmark import Benchmark, Timer, TrainingStep, summarise, take_turns, time_call
from mixmo.masks import KINDS
from mixmo.reporting.measurements import report


def drawing(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Time drawing, kind by kind: if interleaved, kinds that use much memory would evict the others' caches."""
    generator, shape = torch.Generator().manual_seed(0), (16, given.size, given.size)
    rows = {}
    for kind in KINDS:
        mixer = Mixer(kind, given.members, probability=1.0)
        draw = partial(mixer.sample, given.batch, shape, generator)
        taken = take_turns({kind: partial(time_call, draw)}, given.rounds)
        rows[kind] = summarise(taken[kind])
    return rows


def stepping(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Time training steps in interleaved rounds; ratios are to a step with constant masks."""
    step = TrainingStep(
        Benchmark(given.backbone, given.step_batch, given.members, image_size=given.size), given.members
    )

    def with_kind(kind: str) -> Timer:
        mixer = Mixer(kind, given.members, probability=1.0)

        def run() -> float:
            step.training.mixer.mixer = mixer
            return step()

        return run

    seconds = take_turns({kind: with_kind(kind) for kind in KINDS}, given.rounds // 2)
    return {kind: summarise(taken, against=seconds["mimo"]) for kind, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1024, help="samples that are drawn")
    parser.add_argument("--backbone", default="wide_resnet16_4", help="network of the training steps")
    parser.add_argument("--step_batch", type=int, default=64, help="batch of the training steps")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--save", metavar="FILE", help="keep the results in a JSON file")
    given = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tables = {"drawing masks and ratios, one thread": drawing(given)}
    torch.set_num_threads(threads)
    tables["training step, ratio to one with mimo"] = stepping(given)
    about = {name: getattr(given, name) for name in ("batch", "backbone", "step_batch", "size", "members", "rounds")}
    report(tables, about | {"threads": threads}, given.save)


if __name__ == "__main__":
    main()
