"""Everything a short-lived GPU can tell, in one call: correctness, ceilings, the step, then as many epochs as fit.

    python benchmarks/gpu.py --out OUT --budget 1500 [--recipe NAME] [--data folder:PATH] [--resume OUT/state]

1. Parity with the authors' code in float32 on the device, the error of bfloat16, and a step in which the host waits
   for the device nowhere (CUDA raises if it does).
2. The two ceilings: copy bandwidth and bfloat16 matrix products.
3. The training step at each batch size: eager float32 NCHW, eager bfloat16 channels-last, compiled, compiled with
   CUDA graphs; TFLOP/s and their share of the ceiling, the phases of a step, and the share of time the device idles.
4. Epochs of the recipe until the budget is spent, with a test curve, and a slim state (``slim.py``) at the end of
   each epoch that ``--resume`` goes on from on the next machine.

It runs on a CPU too, with sizes to match: ``--backbone wide_resnet10_1 --batches 4 --matmul 256``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import slim
import torch
from torch.utils.flop_counter import FlopCounterMode

from mixmo.batches import BatchMaker
from mixmo.benchmarking import Benchmark, TrainingStep, report, summary
from mixmo.data import ImageData, evaluation_loader, load_images, train_loader
from mixmo.evaluation import evaluate, predict_logits
from mixmo.files import write_text
from mixmo.fitting import build_maker, build_network
from mixmo.hardware import training_device
from mixmo.interop import network_from_reference
from mixmo.mixing import mixed_cross_entropy
from mixmo.network import MixMo
from mixmo.optimizers import Schedule, build_optimizer, warmup_steps
from mixmo.plans import make_plan
from mixmo.recipes import load_recipe
from mixmo.runs import environment
from mixmo.seeding import seed_for
from mixmo.settings import Settings

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "wrn10-1_m2.npz"
Row = dict[str, float]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    """Run steps in a mode in which CUDA raises where the host waits for the device."""
    step = TrainingStep(Benchmark(backbone="wide_resnet10_1", batch_size=16), 2, input_path=True)
    step()
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        step()
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def measure(call: Callable[[], Any], device: torch.device, seconds: float = 1.0) -> list[float]:
    """Return seconds per call over five turns that together take about ``seconds``."""
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
    copy = summary(measure(lambda: target.copy_(source), device))
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = summary(measure(lambda: a @ b, device))
    return {
        "copy": copy | {"GB/s": 2 * source.numel() * 4 / copy["ms"] / 1e6},
        "bfloat16 matmul": product | {"TFLOP/s": 2 * size**3 / product["ms"] / 1e9},
    }


def flops_per_sample(case: Benchmark) -> float:
    """Count the operations of forward and backward for one mixture."""
    step = TrainingStep(replace(case, batch_size=case.batch_repetition), case.num_members, fast=False)
    with FlopCounterMode(display=False) as counter:
        step.backward(step.forward(step.data()))
    return counter.get_total_flops() / case.batch_repetition


def phases(step: TrainingStep, device: torch.device) -> Row:
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


def idle_share(step: TrainingStep, device: torch.device) -> float:
    """Return the share of time in which no kernel runs, from a profile of ten steps."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        start = time.perf_counter()
        for _ in range(10):
            step()
        synchronize(device)
        wall = time.perf_counter() - start
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return 1 - sum(event.time_range.elapsed_us() for event in kernels) / 1e6 / wall


def measure_steps(case: Benchmark, device: torch.device, matmul_tflops: float) -> dict[str, Row]:
    """Return a row for each way to run the step of one batch size, all from uint8 images."""
    flops = flops_per_sample(case)
    ways: dict[str, dict[str, Any]] = {
        "eager float32 NCHW": {"fast": False},
        "eager bfloat16 channels-last": {},
        "compiled": {"compiled": True},
    }
    if device.type == "cuda":
        ways["compiled with graphs"] = {"compiled": "reduce-overhead"}
    rows = {}
    for name, options in ways.items():
        torch.manual_seed(0)
        torch._dynamo.reset()
        try:
            step = TrainingStep(case, case.num_members, input_path=options.get("fast", True), **options)
            row = summary(measure(step, device, seconds=3.0))
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


class Trainer:
    """Trains a recipe epoch by epoch, with its draws and rates, and hands its state on.

    Args:
        settings: The recipe's settings.
        epochs: Epochs of the whole training, over however many machines.
        images: The dataset.
        device: Where to train.
        out: Folder of the curve and the state.
    """

    def __init__(self, settings: Settings, epochs: int, images: ImageData, device: torch.device, out: Path) -> None:
        self.settings, self.epochs, self.images, self.device, self.out = settings, epochs, images, device, out
        self.net: MixMo = build_network(settings, images).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.maker: BatchMaker = build_maker(settings, self.net, images)
        own, data = settings.optimizer, settings.data
        self.peak = own.peak_lr(data.batch_repetition)
        self.optimizer = build_optimizer(
            self.net, own.name, self.peak, own.weight_decay, own.momentum, own.decay_all, **own.options
        )
        self.loader = train_loader(images.train, data, settings.seed, device)
        plan, count = settings.schedule, len(images.train)
        warmup = warmup_steps(count, data.batch_size, data.batch_repetition, plan.warmup_epochs)
        self.schedule = Schedule(plan.kind, len(self.loader), epochs, warmup, tuple(plan.drops), plan.factor)
        self.step, self.curve = 0, list[Row]()
        loss_of = self._logits_and_loss
        self.loss_of = torch.compile(loss_of, dynamic=False) if settings.model.compile else loss_of

    def _logits_and_loss(self, inputs: Any, masks: Any, targets: Any, weights: Any) -> Any:
        return mixed_cross_entropy(self.net(inputs, masks), targets, weights)

    def epoch(self) -> None:
        """Train one epoch and add its row to the curve."""
        number, start = len(self.curve), time.perf_counter()
        self.loader.batch_sampler.sampler.set_epoch(number)  # type: ignore[union-attr]
        generator, total = torch.Generator(self.device), torch.zeros((), device=self.device)
        self.net.train()
        for batch in self.loader:
            generator.manual_seed(seed_for(self.settings.seed, self.step))
            torch.manual_seed(seed_for(self.settings.seed, self.step, "global"))
            for group in self.optimizer.param_groups:
                group["lr"] = self.peak * self.schedule(self.step)
            mixed = self.maker(type(batch)(*(t.to(self.device) for t in batch)), generator, (number + 1) / self.epochs)
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = self.loss_of(*mixed)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            total += loss.detach()
            self.step += 1
        row = {"epoch": number + 1, "train_loss": total.item() / len(self.loader)} | self.test()
        if not np.isfinite(row["train_loss"]):
            raise SystemExit(f"the loss was not finite in epoch {number + 1}; the state of the epoch before is kept")
        self.curve.append(row | {"seconds": time.perf_counter() - start})

    def test(self) -> Row:
        """Return the figures on the test set, which chooses nothing here."""
        loader = evaluation_loader(self.images.test, self.settings.data, self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits, targets = predict_logits(self.net.eval(), loader, self.maker.augment, self.device)
        figures = evaluate(logits, targets)
        keys = ["accuracy", "nll", "ece", *(f"member_{i}/accuracy" for i in range(self.net.num_members))]
        return {f"test_{key}": figures[key] for key in keys}

    def save(self, momentum: bool) -> None:
        """Write the curve and the state."""
        tensors = {f"net/{name}": tensor for name, tensor in self.net.state_dict().items()}
        if momentum:
            for index, own in self.optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{index}/{key}": t for key, t in own.items() if isinstance(t, torch.Tensor)}
        about = {"step": self.step, "seed": self.settings.seed, "curve": self.curve, "epochs": self.epochs}
        size = slim.save(self.out / "state", tensors, about)
        write_text(self.out / "curve.json", json.dumps({"curve": self.curve, "environment": environment()}, indent=1))
        print(f"state after epoch {len(self.curve)}: {size / 1e6:.1f} MB", flush=True)

    def resume(self, folder: Path) -> None:
        """Go on from a state; without momentum in it, momentum starts from zero."""
        tensors, about = slim.load(folder)
        if (about["seed"], about["epochs"]) != (self.settings.seed, self.epochs):
            raise SystemExit(f"{folder} is of seed {about['seed']} and {about['epochs']} epochs, not of this recipe's")
        self.net.load_state_dict({k.removeprefix("net/"): t for k, t in tensors.items() if k.startswith("net/")})
        self.step, self.curve = about["step"], about["curve"]
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/")
                state.setdefault(int(index), {})[name] = tensor
        if state:
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})

    def rounding_loss(self) -> Row:
        """Return how the test figures change when the weights are rounded as the state rounds them."""
        before = self.test()
        tensors, _ = slim.load(self.out / "state")
        exact = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        self.net.load_state_dict({k.removeprefix("net/"): t for k, t in tensors.items() if k.startswith("net/")})
        change = {key: value - before[key] for key, value in self.test().items()}
        self.net.load_state_dict(exact)
        return change


def train(given: argparse.Namespace, device: torch.device, deadline: float) -> None:
    """Train until the next epoch would not end before the deadline."""
    data = [f"--data.name={given.data}"] if given.data else []
    plan = make_plan(load_recipe(given.recipe), [*data, *given.overrides])
    images = load_images(plan.settings.data, plan.settings.seed)
    trainer = Trainer(plan.settings, plan.trainer["max_epochs"], images, device, given.out)
    if given.resume:
        trainer.resume(given.resume)
    took, last = 0.0, min(trainer.epochs, len(trainer.curve) + given.epochs)
    while len(trainer.curve) < last and time.monotonic() + 1.1 * took < deadline:
        start = time.monotonic()
        trainer.epoch()
        trainer.save(given.momentum)
        took = time.monotonic() - start
        print({key: round(value, 4) for key, value in trainer.curve[-1].items()}, flush=True)
    if (given.out / "state" / "state.json").is_file():
        print("rounding the weights changes", trainer.rounding_loss())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results, curve and state")
    parser.add_argument("--budget", type=float, default=1500, help="seconds for everything")
    parser.add_argument("--epochs", type=int, default=100_000, help="at most so many epochs now")
    parser.add_argument("--recipe", default="cifar100-wrn28x10-cut-cutmix")
    parser.add_argument("--data", help="the dataset's name, in place of the recipe's")
    parser.add_argument("--resume", type=Path, help="folder of a state to go on from")
    parser.add_argument("--momentum", action="store_true", help="keep momentum in the state, which doubles it")
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
        steps: dict[str, Row] = {}
        for batch in given.batches:
            case = Benchmark(given.backbone, batch)
            steps |= measure_steps(case, device, limits["bfloat16 matmul"]["TFLOP/s"])
        tables = {"ceilings": limits, "training steps": steps, "relative errors": {"against the authors' code": errors}}
        report(tables, {"device": str(device), "backbone": given.backbone}, given.out / "gpu.json")
    if not given.only_measure:
        train(given, device, deadline)


if __name__ == "__main__":
    main()
