"""The settings of a run by section: the keys of recipes and of the command line.

Every section is a class of settings (:mod:`mixmo.validation`) with plain values: nothing in a recipe is imported except
functions of modules that the user allows (:mod:`mixmo.training.user_code`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mixmo.config.data_settings import DataSettings
from mixmo.config.hardware import Accelerator, Precision
from mixmo.errors import InputError, one_of
from mixmo.header import Members
from mixmo.mixing import Mixer
from mixmo.pairing import check_input_repetition
from mixmo.pixel_mixing import PixelMixer
from mixmo.validation import (
    Boolean,
    ChangesNoResult,
    Count,
    FilePath,
    Integer,
    Neutral,
    Number,
    Options,
    Positive,
    fields_of,
    hints_of,
    settings_class,
    to_list,
)

RESERVED = {"backbone", "num_members", "num_classes", "in_chans", "mix_at", "stem", "head", "trained", "fresh_heads",
            "noise", "self", "name", "options"}  # fmt: skip
"""Arguments of a network that are derived from the data, or have their own settings."""


@settings_class("model")
class ModelSettings:
    """The network."""

    backbone: str = "wide_resnet28_10"
    """A timm model name."""
    num_members: Members = 2
    """M; 1 is an ordinary network."""
    options: Options = field(default_factory=dict)
    """Further arguments of the timm model, such as ``drop_rate``."""
    mix_at: str | None = None
    """Module after which features are mixed, such as stages.0; null is the stem, as published."""
    compile: Neutral[Boolean | None] = None
    """Compile the network and the loss; null compiles on a GPU."""
    pretrained: Boolean | FilePath = False
    """Weights to initialise from: true (timm's pretrained weights), a weights file (.safetensors, .pth; also another
    program's checkpoint) or a run's folder. Encoders start as the stem / M, heads as the head unless the classes
    differ. Unless they are set, data.mean, std, interpolation and sizes are those of the pretrained weights.
    """
    member_noise: Annotated[Number, Field(ge=0, le=100)] = 0.0
    """Noise on encoders and heads that start equal, as a share of their weights' standard deviation. It sums to zero
    over members, so that the network still starts as the pretrained one.
    """
    download: Neutral[Boolean] = False
    """Whether weights, or a backbone from a hub (hf-hub:…), may be downloaded."""

    def __post_init__(self) -> None:
        if taken := sorted(RESERVED & self.options.keys()):
            raise InputError(f"model.options.{taken[0]} is not an option of timm's models; see model.{taken[0]}.")
        for key in ("pretrained", "checkpoint_path"):
            if self.options.get(key):
                raise InputError(f"model.options.{key} is {self.options[key]}; set model.pretrained instead.")
        if self.member_noise and not self.pretrained:
            raise InputError(
                f"model.member_noise is {self.member_noise}, but weights are not pretrained; set model.pretrained."
            )


@settings_class("optimizer")
class OptimizerSettings:
    """The optimiser."""

    name: str = "sgd"
    """The name of an optimiser of timm: sgd (Nesterov), adamw, …."""
    base_lr: Positive = 0.05
    """Peak learning rate at batch repetition 1; divided by b, as published."""
    lr: Positive | None = None
    """Peak learning rate, instead of base_lr / b."""
    weight_decay: Annotated[Number, Field(ge=0)] = 6e-4
    """Weight decay, as the optimiser defines it."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    decay_all: Boolean = True
    """Also decay batch norms and biases, as published."""
    layer_decay: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Layer-wise decay of the learning rate for pretrained weights, such as 0.75: the factor from each layer to the
    one before it; null is one rate for all.
    """
    freeze_epochs: Annotated[Number, Field(ge=0)] | Literal["all"] = 0.0
    """Epochs at the start that train only encoders and heads; all other weights (model.pretrained) and batch-norm
    statistics are frozen. "all" is every epoch, 0 is none.
    """
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the exponential moving average of the weights (EMA), such as 0.999, which is then validated,
    saved and tested; 0 is off.
    """
    sam_radius: Annotated[Number, Field(ge=0, le=100)] = 0.0
    """Radius of sharpness-aware minimisation (SAM), such as 0.05, which doubles the cost of a step; 0 is off."""
    options: Options = field(default_factory=dict)
    """Further arguments of the optimiser."""

    def peak_lr(self, batch_repetition: int) -> float:
        """Return the peak learning rate: ``lr`` if set, else base_lr / b."""
        return self.base_lr / batch_repetition if self.lr is None else self.lr

    def __post_init__(self) -> None:
        reserved = {"lr", "weight_decay", "momentum", "name", "net", "decay_all", "layer_decay"}
        if taken := sorted(reserved & self.options.keys()):
            raise InputError(f"optimizer.options.{taken[0]} has its own setting; set optimizer.{taken[0]} instead.")


def _to_weights(value: Any) -> Any:
    """Convert keys of class weights to strings, since YAML may read names as numbers."""
    return {str(name): weight for name, weight in value.items()} if isinstance(value, Mapping) else to_list(value)


@settings_class("objective")
class ObjectiveSettings:
    """The training objective."""

    name: str = "mixed_cross_entropy"
    """mixed_cross_entropy (binary for multi-label images), or your own function, package.module:function, of a module
    in allow_imports.
    """
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of each target spread evenly over all classes, or with multi-label over presence and absence."""
    class_weights: Annotated[str | list[Positive] | dict[str, Positive], BeforeValidator(_to_weights)] = "none"
    """Weight of each class in the loss: none; balanced, N / (K n_k) if n_k of N training images have class k; or
    numbers, as a list in the order of classes or by class name. Numbers are scaled to average 1 over the training
    images, as balanced weights do, so that the learning rate needs no change.
    """

    def __post_init__(self) -> None:
        if isinstance(self.class_weights, str):
            one_of(self.class_weights, ("none", "balanced"), "objective.class_weights")
        terms = {"label_smoothing": self.label_smoothing, "class_weights": self.class_weights != "none"}
        for key, value in terms.items():
            if value and self.name != "mixed_cross_entropy":
                raise InputError(f"objective.{key} is only for mixed_cross_entropy, not for {self.name}; leave it out.")


@settings_class("schedule")
class ScheduleSettings:
    """The learning rate over training."""

    kind: Literal["multistep", "cosine"] = "multistep"
    """multistep (times gamma at milestones) or cosine (to 0)."""
    warmup_epochs: Annotated[Number, Field(ge=0)] = 1.0
    """Linear warm-up in epochs of a single network, times b, as published."""
    warmup_steps: Annotated[Integer, Field(ge=0)] | None = None
    """Steps of warm-up, instead of warmup_epochs."""
    milestones: list[Annotated[Number, Field(gt=0, lt=1)]] = field(default_factory=lambda: [0.3333, 0.6667, 0.75])
    """Shares of training after which the learning rate is multiplied by gamma."""
    gamma: Positive = 0.1
    """Factor of the learning rate at milestones."""


@settings_class("trainer")
class TrainerSettings:
    """Settings of Lightning's trainer; mixmo fixes the others, or they would break reproducible draws."""

    accelerator: Neutral[Accelerator] = "auto"
    """auto, cpu, gpu, cuda or mps."""
    precision: Precision | None = None
    """32-true, bf16-mixed, or 16-mixed with loss scaling; null selects the device's fastest."""
    devices: Neutral[Count | None] = None
    """Devices per node; null is torchrun's number, else one."""
    num_nodes: Neutral[Count | None] = None
    """Nodes; null is the launcher's number, else one."""
    sync_batchnorm: Boolean = False
    """Whether batch norms use the global batch; otherwise each device's part of it."""
    max_epochs: Count | None = None
    """Number of epochs."""
    limit_train_batches: Count | Annotated[Number, Field(gt=0, le=1)] | None = None
    """Batches per epoch, or a share of them; null is all."""
    accumulate: Neutral[Count] = 1
    """Parts of a batch computed one after another to save memory (gradient accumulation). The step is the same, except
    that batch norms use one part at a time, and that dropout and the augmentations of a policy draw other numbers.
    """
    patience: Count | None = None
    """Epochs without a better validation accuracy, or mAP if multi-label, after which training stops; null never stops
    early. The schedule still follows max_epochs.
    """
    checkpoint_every_steps: Neutral[Count | None] = None
    """Steps between checkpoints within an epoch; null saves none by steps."""
    checkpoint_every_minutes: Neutral[Positive | None] = 10.0
    """Minutes between checkpoints, in addition to the one after each epoch."""
    gradient_clip_val: Positive | None = None
    """Maximum norm of the gradient; null does not clip."""
    deterministic: Boolean = False
    """Refuse nondeterministic operations."""
    enable_progress_bar: Neutral[Boolean] = True
    """Whether to show a progress bar on a terminal."""


@settings_class()
class Settings:
    """All settings of a run."""

    seed: Annotated[Integer, Field(ge=0)] = 0
    """Seed; every random draw is a function of seed and step."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """The network."""
    mixer: Mixer = field(default_factory=Mixer)
    """Mixing in feature space, and the loss."""
    pixels: PixelMixer = field(default_factory=PixelMixer)
    """Mixing in pixels."""
    data: DataSettings = field(default_factory=DataSettings)
    """Images and batches."""
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    """The loss."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """The optimiser."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    """The learning rate over training."""
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    """Lightning's trainer."""
    loggers: Neutral[list[Literal["tensorboard", "wandb", "mlflow"]]] = field(default_factory=list)
    """Loggers besides metrics.csv: tensorboard, wandb, mlflow."""
    allow_imports: list[str] = field(default_factory=list)
    """Your own modules that masks and objectives may be imported from."""

    def __post_init__(self) -> None:
        for key in ("input_repetition", "input_repetition_end"):
            if (share := getattr(self.data, key)) is not None:
                check_input_repetition(share, self.model.num_members, f"data.{key}")
        if self.objective.class_weights == self.data.sampler == "balanced":
            raise InputError(
                "objective.class_weights and data.sampler are both balanced, which compensates for rare classes twice; "
                "set one of them."
            )
        if self.data.multi_label and (self.objective.class_weights != "none" or self.data.sampler == "balanced"):
            raise InputError(
                "objective.class_weights and data.sampler balanced are only for single-label images; leave them out "
                "with data.multi_label."
            )
        self.mixer = replace(self.mixer, num_members=self.model.num_members)


def values_of(settings: Settings) -> dict[str, Any]:
    """Return settings in the form of a recipe: sections of plain values."""
    values = asdict(settings)
    del values["mixer"]["num_members"]  # which is model.num_members
    return values


def known_settings() -> Mapping[str, Any]:
    """Return the annotation of every setting by its dotted name."""
    return hints_of(Settings)


@functools.cache
def neutral_settings() -> frozenset[str]:
    """Return the settings that do not change results.

    Their exceptions are compared by effect (:func:`mixmo.training.resuming.find_conditions`): whether images are in
    memory, if pixels are mixed, and the parts of a batch, with batch norms.

    Example:
        >>> "data.workers" in neutral_settings(), "data.batch_size" in neutral_settings()
        (True, False)
    """
    known = fields_of(Settings).items()
    return frozenset(name for name, field in known if any(isinstance(mark, ChangesNoResult) for mark in field.metadata))
