"""Measurements of ``mixmo benchmark`` and ``benchmarks/evaluation.py``."""

import sys
from pathlib import Path

import pytest
import torch

from mixmo.evaluation.benchmark import Benchmark, TrainingStep

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


def test_peak_memory_is_that_of_the_tensors_alive_at_a_time():
    from evaluation import peak_memory

    def build():
        kept = torch.zeros(2**18)  # 1 MiB
        return lambda: kept + torch.ones(2**19)[: 2**18]  # 2 MiB and 1 MiB more at a time

    assert peak_memory(build) == pytest.approx(4.0, abs=0.1)


@pytest.mark.parametrize("members", [1, 2])
def test_the_step_that_is_timed_trains(members):
    """Each call is one step of the trainer, which updates the weights."""
    step = TrainingStep(Benchmark("wide_resnet10_1", batch_size=4, image_size=16, num_classes=5), members)
    before = [each.clone() for each in step.training.net.parameters()]
    assert step() > 0 and step() > 0
    assert step.trainer.global_step == 2
    assert not any(map(torch.equal, before, step.training.net.parameters()))
