"""The settings of a run, section by section: the keys of a recipe and of the command line.

Every section is a plain dataclass that checks the ranges of its values; :mod:`mixmo.config.checking` checks their
types. All are plain values: nothing a recipe holds is imported, but for the functions of modules that the user allows
(:mod:`mixmo.config.imports`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mixmo.config.data_settings import DataSettings
from mixmo.errors import InputError

MOST_MEMBERS = 100
RESERVED = {"backbone", "num_members", "num_classes", "in_chans", "mix_at", "stem", "head", "trained", "fresh_heads",
            "noise", "self", "name", "options"}  # fmt: skip
"""Arguments of a network that follow from the data, or have settings of their own."""

NETWORK = ("backbone", "num_members", "options", "mix_at")
"""Settings of the model that say what is computed, whatever the weights are; checkpoints have them."""

FREE = {"loggers", "model.compile", "model.download", "data.root", "data.download", "data.workers", "data.in_memory",
        "data.eval_batch_size", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
        "trainer.accumulate", "trainer.on_nonfinite", "trainer.checkpoint_every_steps",
        "trainer.checkpoint_every_minutes", "trainer.enable_progress_bar", "trainer.profiler"}  # fmt: skip
"""Settings that change no result. Two exceptions depend on data and network, and are compared by what they led to
(:func:`mixmo.training.build.find_conditions`): where images are, if pixels are mixed; the parts of a batch, if there
are batch norms."""


@dataclass
class ModelSettings:
    """The network.

    Args:
        backbone: A timm model name.
        num_members: M; 1 is the ordinary single network.
        options: More keywords of the timm model, such as ``drop_rate``.
        mix_at: Module behind which features are mixed, such as stages.0; null is behind the stem, as published.
        compile: Compile the network and the loss; null does so on a GPU.
        start: What members start from, its stem / M as encoders and its head as heads: pretrained (timm's weights of
            the backbone), a file of weights (.safetensors, .pth), or a run's folder. Images are then prepared as they
            were there, unless data.mean, std, interpolation and the sizes are set.
        fresh_heads: Draw the heads anew, each on its own; null does so where the start has other classes.
        start_noise: Noise on encoders and heads that start equal, as a share of their weights' standard deviation; it
            sums to zero over the members, so that the network starts out as the one it starts from.
        download: Whether a backbone that is only described elsewhere (hf-hub:…), or its weights, may be fetched.
    """

    backbone: str = "wide_resnet28_10"
    num_members: int = 2
    options: dict[str, Any] = field(default_factory=dict)
    mix_at: str | None = None
    compile: bool | None = None
    start: str | None = None
    fresh_heads: bool | None = None
    start_noise: float = 0.0
    download: bool = False

    def __post_init__(self) -> None:
        if taken := sorted(RESERVED & self.options.keys()):
            raise InputError(f"model.options.{taken[0]} is no option of timm's models; see model.{taken[0]}.")
        for key in ("pretrained", "checkpoint_path"):
            if self.options.get(key):
                raise InputError(f"model.options.{key} is {self.options[key]}; weights to start from are model.start.")
        if not 1 <= self.num_members <= MOST_MEMBERS:
            raise InputError(f"model.num_members is {self.num_members}; it lies between 1 and {MOST_MEMBERS}.")
        if not 0 <= self.start_noise <= 100:
            raise InputError(f"model.start_noise is {self.start_noise}; it is a share, 0 or positive, up to 100.")
        for key in ("fresh_heads", "start_noise"):
            if getattr(self, key) and self.start is None:
                raise InputError(f"model.{key} is {getattr(self, key)}, but there is no start: set model.start.")


@dataclass
class MixerSettings:
    """How members are mixed in feature space (``mixmo.Mixer``) and weighed in the loss.

    Args:
        kind: A mask of the catalogue (mimo, linear, cut, cow, voronoi, …), or several with probabilities; or a function
            of your own, package.module:function, of a module in allow_imports.
        alpha: Concentration of the Dirichlet ratios.
        probability: p, share of batches with a mask that is not constant.
        root: r of the loss weights.
        draw_per: Draw whether, and who gets which part, for each batch (published) or for each sample.
        progress: What p follows at the end of training: the share of steps done, or of epochs counted from 1
            (published; the whole last epoch then has p = 0).
    """

    kind: dict[str, float] | str = "cut"
    alpha: float = 2.0
    probability: float = 0.5
    root: float = 3.0
    draw_per: Literal["batch", "sample"] = "batch"
    progress: Literal["steps", "epochs"] = "steps"

    def __post_init__(self) -> None:
        if not 0.01 <= self.root <= 1e6:
            raise InputError(f"mixer.root is {self.root}; the weight root r is positive, 0.01 or more, 3 in the paper.")
        if not 0 <= self.alpha <= 1e6:
            raise InputError(f"mixer.alpha is {self.alpha}; the concentration is 0 or positive, up to 1e6.")


@dataclass
class PixelSettings:
    """Mixing of each input in pixels (``mixmo.pixel_mixing.PixelMixer``).

    Args:
        kind: none, mixup or cutmix.
        alpha: Concentration of the Beta ratio.
        probability: Share of the inputs that are mixed.
    """

    kind: Literal["none", "mixup", "cutmix"] = "none"
    alpha: float = 1.0
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1e6:
            raise InputError(f"pixels.alpha is {self.alpha}; the concentration of the Beta is positive, up to 1e6.")
        if not 0 <= self.probability <= 1:
            raise InputError(f"pixels.probability is {self.probability}; it lies between 0 and 1.")


@dataclass
class OptimizerSettings:
    """The optimiser.

    Args:
        name: A name timm knows: sgd (Nesterov), adamw, ….
        base_lr: Peak learning rate at batch repetition 1; it is divided by b, as published.
        lr: Peak learning rate set by hand, whatever b is.
        weight_decay: Decay, as the optimiser defines it.
        momentum: Momentum (SGD).
        decay_all: Decay batch norms and biases too, as published.
        layer_decay: Factor of the learning rate from each layer to the one before it, such as 0.75, for trained
            weights; null is one rate for all.
        ema_decay: Decay of the exponential moving average of the weights (EMA) at each step, such as 0.999; the average
            is then what is validated, kept and tested. 0 keeps the weights themselves.
        sam_radius: Radius of sharpness-aware minimisation (SAM), such as 0.05; each step then costs two. 0 is without.
        options: More keywords of the optimiser.
    """

    name: str = "sgd"
    base_lr: float = 0.05
    lr: float | None = None
    weight_decay: float = 6e-4
    momentum: float = 0.9
    decay_all: bool = True
    layer_decay: float | None = None
    ema_decay: float = 0.0
    sam_radius: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    def peak_lr(self, batch_repetition: int) -> float:
        """Return the peak learning rate: ``lr`` if it is set, else base_lr / b."""
        return self.base_lr / batch_repetition if self.lr is None else self.lr

    def __post_init__(self) -> None:
        for key in ("base_lr", "lr"):
            if (value := getattr(self, key)) is not None and not value > 0:
                raise InputError(f"optimizer.{key} is {value}; a learning rate is positive.")
        if self.weight_decay < 0:
            raise InputError(f"optimizer.weight_decay is {self.weight_decay}; it is 0 or more.")
        taken = sorted(
            {"lr", "weight_decay", "momentum", "name", "net", "decay_all", "layer_decay"} & self.options.keys()
        )
        if taken:
            raise InputError(f"optimizer.options.{taken[0]} has a setting of its own: optimizer.{taken[0]}.")
        if not 0 <= self.momentum < 1:
            raise InputError(f"optimizer.momentum is {self.momentum}; it lies in [0, 1).")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise InputError(f"optimizer.layer_decay is {self.layer_decay}; it lies above 0, up to 1, or is null.")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"optimizer.ema_decay is {self.ema_decay}; it lies in [0, 1).")
        if not 0 <= self.sam_radius <= 100:
            raise InputError(f"optimizer.sam_radius is {self.sam_radius}; it is 0 or positive, up to 100.")


@dataclass
class ObjectiveSettings:
    """The training objective.

    Args:
        name: mixed_cross_entropy, or a function of your own, package.module:function, of a module in allow_imports.
        label_smoothing: Share of each target that is spread evenly over all classes.
    """

    name: str = "mixed_cross_entropy"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"objective.label_smoothing is {self.label_smoothing}; it is a share from 0 to below 1.")
        if self.label_smoothing and self.name != "mixed_cross_entropy":
            raise InputError(
                f"objective.label_smoothing belongs to mixed_cross_entropy; {self.name} has its own terms."
            )


@dataclass
class ScheduleSettings:
    """The learning rate over training.

    Args:
        kind: multistep (× gamma at milestones) or cosine (to 0).
        warmup_epochs: Linear warm-up in epochs of a single network, times b, as published.
        warmup_steps: Warm-up in steps, set by hand, whatever b is.
        milestones: Shares of training after which the rate is multiplied by gamma.
        gamma: See milestones.
    """

    kind: Literal["multistep", "cosine"] = "multistep"
    warmup_epochs: float = 1.0
    warmup_steps: int | None = None
    milestones: list[float] = field(default_factory=lambda: [0.3333, 0.6667, 0.75])
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if any(not 0 < share < 1 for share in self.milestones):
            raise InputError(f"schedule.milestones are {self.milestones}; they are shares of training between 0 and 1.")
        if self.warmup_epochs < 0 or (self.warmup_steps or 0) < 0:
            raise InputError("schedule.warmup_epochs and schedule.warmup_steps are 0 or more.")
        if not self.gamma > 0:
            raise InputError(f"schedule.gamma is {self.gamma}; it is positive.")


@dataclass
class TrainerSettings:
    """What may be set of Lightning's trainer; the rest is ours, or would break that draws follow the step.

    Args:
        accelerator: auto, cpu, gpu, cuda or mps.
        precision: 32-true or bf16-mixed; null takes what the device does best.
        devices: Devices of each node; null takes what torchrun was told, else one.
        num_nodes: Nodes; null likewise.
        strategy: How devices share the work: ddp (each holds the network), fsdp (each holds a part of it), or auto: ddp
            where there are several.
        sync_batchnorm: Whether batch norms see the global batch; otherwise each device's own part of it.
        max_epochs: Epochs of the training.
        limit_train_batches: Batches of an epoch, or their share; null takes all.
        accumulate: Parts of a batch that are computed one after another, for less memory: the same batch, and the same
            step but for batch norms, which see a part each.
        on_nonfinite: What a loss or gradient that is not finite does: stop the run, or skip the step, which is counted
            and costs a wait for the device at each step.
        patience: Epochs without a better accuracy on the validation set after which training ends; null trains on. The
            schedule is that of max_epochs all the same.
        checkpoint_every_steps: Steps from a checkpoint to the next within an epoch; null keeps none by steps.
        checkpoint_every_minutes: Likewise by minutes. Each epoch ends with one in any case.
        gradient_clip_val: Largest norm of the gradient; null does not clip.
        deterministic: Refuse operations that are not deterministic.
        enable_progress_bar: Whether a bar is shown on a terminal.
        profiler: simple or advanced prints where the time goes.
    """

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] | None = None
    devices: int | None = None
    num_nodes: int | None = None
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    sync_batchnorm: bool = False
    max_epochs: int | None = None
    limit_train_batches: int | float | None = None
    accumulate: int = 1
    on_nonfinite: Literal["stop", "skip"] = "stop"
    patience: int | None = None
    checkpoint_every_steps: int | None = None
    checkpoint_every_minutes: float | None = 10.0
    gradient_clip_val: float | None = None
    deterministic: bool = False
    enable_progress_bar: bool = True
    profiler: Literal["simple", "advanced"] | None = None

    def __post_init__(self) -> None:
        if (self.max_epochs or 0) < 1:
            raise InputError(f"trainer.max_epochs is {self.max_epochs}; it is 1 or more.")
        for key in (
            "devices",
            "num_nodes",
            "accumulate",
            "patience",
            "checkpoint_every_steps",
            "checkpoint_every_minutes",
        ):
            if (value := getattr(self, key)) is not None and not value > 0:
                raise InputError(f"trainer.{key} is {value}; it is positive.")
        limit = self.limit_train_batches
        if limit is not None and (limit <= 0 or (isinstance(limit, float) and limit > 1)):
            raise InputError(
                f"trainer.limit_train_batches is {limit}; it is a number of batches, 1 or more, or a share up to 1.0."
            )
        if self.gradient_clip_val is not None and not self.gradient_clip_val > 0:
            raise InputError(f"trainer.gradient_clip_val is {self.gradient_clip_val}; it is positive, or null.")


@dataclass
class Settings:
    """Everything a run is made of, but for Lightning's trainer.

    Args:
        seed: Every random draw is a function of the seed and the step.
        model: The network.
        mixer: Mixing in feature space, and the loss.
        pixels: Mixing in pixels.
        data: Images and batches.
        objective: The loss.
        optimizer: The optimiser.
        schedule: The learning rate over training.
        loggers: Loggers beside metrics.csv: tensorboard, wandb, mlflow.
        allow_imports: Modules of your own that kinds and objectives may be imported from.
    """

    seed: int = 0
    model: ModelSettings = field(default_factory=ModelSettings)
    mixer: MixerSettings = field(default_factory=MixerSettings)
    pixels: PixelSettings = field(default_factory=PixelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = field(default_factory=list)
    allow_imports: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it is 0 or more.")
        self.data.check_members(self.model.num_members)
