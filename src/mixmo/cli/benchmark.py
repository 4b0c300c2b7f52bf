"""``mixmo benchmark``: what MixMo costs on this machine."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from mixmo.config.plan import parse
from mixmo.evaluation import benchmark


def run(words: list[str]) -> None:
    """``mixmo benchmark [--backbone NAME --batch_size 64 --num_members 2 …] [--save FILE]``."""
    parser = ArgumentParser(prog="mixmo benchmark", exit_on_error=False)
    parser.add_class_arguments(benchmark.Benchmark, as_group=False)
    parser.add_argument("--save", type=str | None, default=None, help="keep the measurements in a JSON file")
    chosen = parse(parser, words)
    save = chosen.pop("save")
    benchmark.run(benchmark.Benchmark(**vars(chosen)), save)
