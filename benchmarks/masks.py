"""How long it takes to draw the masks and ratios of a batch, for each kind, on one core.

python benchmarks/masks.py [--save FILE]
"""

from __future__ import annotations

import argparse

import torch

from mixmo import Mixer
from mixmo.benchmarking import interleaved, report, summary
from mixmo.masks import KINDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--save", metavar="FILE", help="keep the figures in a JSON file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    shape = (16, given.size, given.size)

    def draw(kind: str) -> None:
        Mixer(kind, given.members, probability=1.0).sample(given.batch, shape, generator)

    seconds = {}
    for kind in KINDS:  # one after the other, as in training: a kind that needs much memory chills the others
        seconds |= interleaved({kind: lambda kind=kind: draw(kind)}, given.rounds)
    about = {"samples": given.batch, "size": given.size, "members": given.members, "threads": 1, "rounds": given.rounds}
    report({"drawing masks and ratios": {kind: summary(taken) for kind, taken in seconds.items()}}, about, given.save)


if __name__ == "__main__":
    main()
