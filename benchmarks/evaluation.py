"""Measure the cost of evaluation: time and peak memory of all metrics, and images per second of each corruption.

python benchmarks/evaluation.py [--save FILE]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from mixmo import evaluate
from mixmo.corruptions import KINDS, SEVERITIES, corrupt
from mixmo.evaluation.benchmark import summarise, take_turns, time_call
from mixmo.metrics import OutOfDistribution
from mixmo.reporting.measurements import report

MEMBERS = 2


def peak_memory(build: Callable[[], Callable[[], object]]) -> float:
    """Return the peak MiB of tensors alive on the CPU while a callable is built and called three times."""
    gc.collect()  # memory freed during the measurement would count as negative
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call = build()
        for _ in range(3):
            call()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        trace = json.loads(Path(f"{folder}/trace.json").read_bytes())["traceEvents"]
    changes = sorted((event for event in trace if event["name"] == "[memory]"), key=lambda event: float(event["ts"]))
    return max(itertools.accumulate(event["args"]["Bytes"] for event in changes)) / 2**20


def all_metrics(samples: int, classes: int, rounds: int) -> dict[str, float]:
    """Return the time of all metrics of random logits, and the peak memory of tensors, logits included."""

    def build() -> Callable[[], None]:
        generator = torch.Generator().manual_seed(0)
        targets = torch.randint(classes, (samples,), generator=generator)
        logits = torch.randn(samples, MEMBERS, classes, generator=generator)
        logits.scatter_add_(2, targets[:, None, None].expand(-1, MEMBERS, 1), torch.full((samples, MEMBERS, 1), 4.0))

        def everything() -> None:
            evaluate(logits, targets)
            ood = OutOfDistribution()
            for out in (False, True):
                ood.update(logits, out=out)
            ood.compute()

        return everything

    taken = take_turns({"": partial(time_call, build())}, rounds, warmup=1)[""]
    return {**summarise(taken), "MiB": peak_memory(build)}


def corrupting(count: int, side: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return the images per second of each corruption, over all severities."""
    images = torch.randint(256, (count, side, side, 3), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)

    def every(kind: str) -> None:
        for severity in SEVERITIES:
            corrupt(images, kind, severity, generator)

    rows = {}
    for kind in KINDS:
        taken = take_turns({kind: partial(time_call, partial(every, kind))}, rounds, warmup=1)[kind]
        rows[kind] = {"images/s": len(SEVERITIES) * count / (summarise(taken)["ms"] / 1000)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs=2, default=[10_000, 50_000], help="N of the two cases")
    parser.add_argument("--classes", type=int, nargs=2, default=[100, 1000], help="K of the two cases")
    parser.add_argument("--images", type=int, default=250, help="images in a batch that is corrupted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", metavar="FILE", help="keep the results in a JSON file")
    given = parser.parse_args()
    cases = {
        f"{samples} × {classes} × {MEMBERS}": all_metrics(samples, classes, given.rounds)
        for samples, classes in zip(given.samples, given.classes, strict=True)
    }
    tables = {"all metrics, N × K × M": cases, "corruptions, 32×32": corrupting(given.images, 32, given.rounds)}
    report(tables, {"rounds": given.rounds, "threads": torch.get_num_threads(), "images": given.images}, given.save)


if __name__ == "__main__":
    main()
