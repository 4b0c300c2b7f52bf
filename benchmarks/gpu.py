"""Benchmark a GPU in one call: correctness, hardware ceilings, the training step, then as many epochs as time allows.

    python benchmarks/gpu.py --out OUT --budget 1500 [--recipe NAME] [--data folder:PATH]

1. Parity with the authors' code in float32 on the device, the error of bfloat16, and a step in which the host never
   waits for the device (CUDA raises if it does).
2. The two ceilings: copy bandwidth and bfloat16 matrix products.
3. The training step at each batch size: eager float32 NCHW, eager bfloat16 channels-last, compiled, compiled with
   CUDA graphs; TFLOP/s and their share of the ceiling, the phases of a step, and the share of time the device idles.
4. Epochs of the recipe with mixmo's trainer until the budget is spent; the run is then evaluated.

Measurements stop at two thirds of the budget and are saved after each batch size. The script needs mixmo's
dependencies; if mixmo is not installed, set ``PYTHONPATH=src``. Missing packages can be brought as wheels:
``pip download --no-deps lightning timm jsonargparse docstring-parser typeshed-client …``.

It also runs on a CPU, with smaller sizes: ``--backbone wide_resnet10_1 --batches 4 --matmul 256``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.flop_counter import FlopCounterMode

from mixmo.batch_mixing import BatchMixer, MixedBatch
from mixmo.cli.main import main as command
from mixmo.config.hardware import training_device
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.config.settings import OptimizerSettings
from mixmo.data.batches import Augmentation
from mixmo.data.image_sets import DistinctBatch
from mixmo.deploy.reference import network_from_reference
from mixmo.evaluation.benchmark import Benchmark, summarise, synchronize
from mixmo.evaluation.inference import autocast
from mixmo.mixing import mixed_cross_entropy
from mixmo.network import MixMo
from mixmo.reporting.measurements import report
from mixmo.runs import RunFolder
from mixmo.training.fit import fit
from mixmo.training.optimizers import build_optimizer

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "wrn10-1_m2.npz"
Row = dict[str, float]


class BareStep:
    """A training step without the trainer, split into phases, also in layouts and modes that the trainer lacks.

    Args:
        case: The measured configuration.
        fast: Use channels-last, the case's precision and a fused optimiser; otherwise run as the paper's code did.
        compiled: Compile network and loss; a string is the mode of ``torch.compile``.
    """

    def __init__(self, case: Benchmark, fast: bool = True, compiled: bool | str = False) -> None:
        self.case, self.fast = case, fast
        device, size = case.device, (5000, case.image_size, case.image_size, 3)
        layout = torch.channels_last if fast else torch.contiguous_format
        self.net = MixMo(case.backbone, case.num_members, num_classes=case.num_classes, mix_at=case.mix_at)
        self.net.to(device, memory_format=layout)
        self.mixer = BatchMixer(self.net, batch_repetition=case.batch_repetition)
        self.augment = Augmentation(case.data)
        self.optimizer = build_optimizer(self.net, OptimizerSettings(options={"fused": fast}), lr=0.01)
        self.generator = torch.Generator(device).manual_seed(0)
        images = torch.randint(256, size, dtype=torch.uint8, device=device, generator=self.generator)
        labels = torch.randint(case.num_classes, (5000,), device=device, generator=self.generator)
        distinct = torch.arange(case.batch_size // case.batch_repetition, device=device)
        self.batch = DistinctBatch(images, labels, distinct)
        mode = compiled if isinstance(compiled, str) else None
        self._loss_of = torch.compile(self._loss, dynamic=False, mode=mode) if compiled else self._loss

    def _loss(self, mixed: MixedBatch) -> torch.Tensor:
        return mixed.loss(self.net(mixed.inputs, mixed.masks))

    def data(self) -> MixedBatch:
        """Return a mixed batch: pairing, augmentation, masks."""
        mixed = self.mixer.mix(self.augment.source(self.batch, self.generator), self.generator)
        return mixed if self.fast else mixed._replace(inputs=mixed.inputs.contiguous())

    def forward(self, mixed: MixedBatch) -> torch.Tensor:
        """Return the loss."""
        with autocast(self.case.device, self.case.fastest if self.fast else "32-true"):
            return self._loss_of(mixed)

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients."""
        self.optimizer.zero_grad()
        loss.backward()

    def update(self) -> None:
        """Update the weights."""
        self.optimizer.step()

    def __call__(self) -> None:
        """Run a whole step."""
        self.backward(self.forward(self.data()))
        self.update()


def check_correctness(device: torch.device) -> Row:
    """Compare with the authors' logits and loss; raise if float32 is off by more than 1e-4."""
    golden = {name: torch.from_numpy(array) for name, array in np.load(GOLDEN).items() if name != "meta"}
    state = {name.removeprefix("before/"): t for name, t in golden.items() if name.startswith("before/")}
    torch.backends.cudnn.allow_tf32 = False  # torch's default rounds float32 convolutions to 10 bits
    net = network_from_reference(state).to(device, memory_format=torch.channels_last)
    inputs, masks, targets, weights = (golden[key].to(device) for key in ("inputs", "masks", "targets", "weights"))
    expected = golden["eval_mixed_logits"].to(device)
    errors = {}
    for name, low in {"float32": False, "bfloat16": True}.items():
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=low):
            logits = net.eval()(inputs, masks).float()
        errors[f"{name} logits"] = ((logits - expected).norm() / expected.norm()).item()
    loss = mixed_cross_entropy(net.train()(inputs, masks), targets, weights)
    torch.backends.cudnn.allow_tf32 = True
    errors["float32 loss"] = abs(loss.item() / golden["loss_cross_entropy"].item() - 1)
    if max(errors["float32 logits"], errors["float32 loss"]) > 1e-4 or not errors["bfloat16 logits"] < 0.05:
        raise SystemExit(f"wrong on {device}: relative errors {errors}")
    return errors


def check_no_waiting(device: torch.device) -> None:
    """Run steps in a mode in which CUDA raises if the host waits for the device."""
    step = BareStep(Benchmark(backbone="wide_resnet10_1", batch_size=16))
    step()
    if device.type != "cuda":
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def measure(call: Callable[[], Any], device: torch.device, seconds: float = 1.0) -> list[float]:
    """Return seconds per call in each of five rounds, which take about ``seconds`` in total."""
    for _ in range(3):
        call()
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    repeats = max(1, int(seconds / 5 / (time.perf_counter() - start)))
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        synchronize(device)
        taken.append((time.perf_counter() - start) / repeats)
    return taken


def ceilings(device: torch.device, size: int) -> dict[str, Row]:
    """Measure copy bandwidth and bfloat16 matrix products on random data."""
    source = torch.randn(size * size * 8, device=device)
    target = torch.empty_like(source)
    copy = summarise(measure(lambda: target.copy_(source), device))
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = summarise(measure(lambda: a @ b, device))
    return {
        "copy": copy | {"GB/s": 2 * source.numel() * 4 / copy["ms"] / 1e6},
        "bfloat16 matmul": product | {"TFLOP/s": 2 * size**3 / product["ms"] / 1e9},
    }


def flops_per_sample(case: Benchmark) -> float:
    """Count the operations of forward and backward for one mixture."""
    step = BareStep(replace(case, batch_size=case.batch_repetition), fast=False)
    with FlopCounterMode(display=False) as counter:
        step.backward(step.forward(step.data()))
    return counter.get_total_flops() / case.batch_repetition


def phases(step: BareStep, device: torch.device) -> Row:
    """Return the milliseconds of each phase, waiting for the device after each."""
    spent = dict.fromkeys(("data", "forward", "backward", "update"), 0.0)
    rounds = 10

    def timed(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments)
        synchronize(device)
        spent[name] += 1e3 * (time.perf_counter() - start) / rounds
        return result

    for _ in range(rounds):
        loss = timed("forward", step.forward, timed("data", step.data))
        timed("backward", step.backward, loss)
        timed("update", step.update)
    return {f"{name} ms": value for name, value in spent.items()}


def idle_share(step: BareStep, device: torch.device) -> float:
    """Return the share of time in which no kernel runs, from a profile of ten steps."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        start = time.perf_counter()
        for _ in range(10):
            step()
        synchronize(device)
        wall = time.perf_counter() - start
    cuda = torch.autograd.DeviceType.CUDA
    kernels = [event for event in profile.events() if event.device_type == cuda and not event.is_user_annotation]
    return 1 - sum(event.time_range.elapsed_us() for event in kernels) / 1e6 / wall


def measure_steps(case: Benchmark, device: torch.device, matmul_tflops: float, deadline: float) -> dict[str, Row]:
    """Return a row for each way to run a step of one batch size, from uint8 images on, until the deadline."""
    flops = flops_per_sample(case)
    ways: dict[str, dict[str, Any]] = {
        "eager float32 (TF32 on a GPU) NCHW": {"fast": False},
        "eager bfloat16 channels-last": {},
        "compiled": {"compiled": True},
    }
    if device.type == "cuda":
        ways["compiled with graphs"] = {"compiled": "reduce-overhead"}
    rows = {}
    for name, options in ways.items():
        if time.monotonic() > deadline:
            print(f"no time left for {name} at batch {case.batch_size}")
            break
        torch._dynamo.reset()
        try:
            step = BareStep(case, **options)
            row = summarise(measure(step, device, seconds=3.0))
        except torch.OutOfMemoryError:
            print(f"{name} at batch {case.batch_size} does not fit into memory")
            continue
        tflops = flops * case.batch_size / row["ms"] / 1e9
        row |= {"images/s": 1e3 * case.batch_size / row["ms"], "TFLOP/s": tflops, "of matmul": tflops / matmul_tflops}
        row |= phases(step, device)
        if device.type == "cuda":
            row["idle"] = idle_share(step, device)
        rows[f"batch {case.batch_size}, {name}"] = row
    return rows


class Deadline(Callback):
    """Stops training when another epoch would miss the deadline.

    Args:
        deadline: In the time of ``time.monotonic``.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the start time."""
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if the next epoch would end too late."""
        now = time.monotonic()
        trainer.should_stop |= now + 1.1 * (now - self.started) > self.deadline


def train(given: argparse.Namespace, deadline: float) -> None:
    """Train the recipe until another epoch would miss the deadline, then evaluate it."""
    data = [f"--data.name={given.data}"] if given.data else []
    run = RunFolder(given.out / "run")
    fit(make_plan(load_recipe(given.recipe), [*data, *given.overrides]), run, callbacks=[Deadline(deadline)])
    command(["test", str(run.path), "--precision=bf16-mixed"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results and of the run")
    parser.add_argument("--budget", type=float, default=1500, help="seconds for everything")
    parser.add_argument("--recipe", default="cifar100-wrn28x10-cut-cutmix")
    parser.add_argument("--data", help="the dataset's name, in place of the recipe's")
    parser.add_argument("--only-train", action="store_true", help="leave out the measurements")
    parser.add_argument("--only-measure", action="store_true", help="leave out the training")
    parser.add_argument("--backbone", default="wide_resnet28_10", help="network of the measured steps")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--matmul", type=int, default=8192, help="side of the matrices of the ceiling")
    parser.add_argument("overrides", nargs="*", help="settings of the recipe, after --: --seed=1 …")
    given = parser.parse_args()
    deadline, device = time.monotonic() + given.budget, training_device()
    given.out.mkdir(parents=True, exist_ok=True)
    errors = check_correctness(device)
    check_no_waiting(device)
    print("correct:", errors, flush=True)
    if not given.only_train:
        limits = ceilings(device, given.matmul)
        tables: dict[str, dict[str, Row]] = {
            "against the authors' code": {"relative errors": errors},
            "ceilings": limits,
        }
        for batch in given.batches:
            matmul, until = limits["bfloat16 matmul"]["TFLOP/s"], deadline - given.budget / 3
            found = measure_steps(Benchmark(given.backbone, batch), device, matmul, until)
            tables["training steps"] = tables.get("training steps", {}) | found
            report(tables, {"device": str(device), "backbone": given.backbone}, given.out / "gpu.json")
    if not given.only_measure:
        train(given, deadline)


if __name__ == "__main__":
    main()
