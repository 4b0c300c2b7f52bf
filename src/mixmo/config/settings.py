"""The settings of a run, section by section: the keys of a recipe and of the command line.

Every section is a class of settings (:mod:`mixmo.validation`). All are plain values: nothing a recipe holds is
imported, but for the functions of modules that the user allows (:mod:`mixmo.training.user_code`).
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
    Integer,
    Neutral,
    Number,
    Options,
    Place,
    Positive,
    fields_of,
    hints_of,
    settings_class,
    take_list,
)

RESERVED = {"backbone", "num_members", "num_classes", "in_chans", "mix_at", "stem", "head", "trained", "fresh_heads",
            "noise", "self", "name", "options"}  # fmt: skip
"""Arguments of a network that follow from the data, or have settings of their own."""


@settings_class("model")
class ModelSettings:
    """The network."""

    backbone: str = "wide_resnet28_10"
    """A timm model name."""
    num_members: Members = 2
    """M; 1 is the ordinary single network."""
    options: Options = field(default_factory=dict)
    """More keywords of the timm model, such as ``drop_rate``."""
    mix_at: str | None = None
    """Module behind which features are mixed, such as stages.0; null is behind the stem, as published."""
    compile: Neutral[Boolean | None] = None
    """Compile the network and the loss; null does so on a GPU."""
    pretrained: Boolean | Place = False
    """Trained weights to start from: true (timm's weights of the backbone), a file (.safetensors, .pth; also a
    checkpoint of another program) or a run's folder. Encoders start as the trained stem / M, heads as the trained head
    unless the classes differ. Images are prepared as for those weights unless data.mean, std, interpolation and the
    sizes are set.
    """
    member_noise: Annotated[Number, Field(ge=0, le=100)] = 0.0
    """Noise on encoders and heads that start equal, as a share of their weights' standard deviation; it sums to zero
    over the members, so that the network starts out as the one it starts from.
    """
    download: Neutral[Boolean] = False
    """Whether a backbone that is only described elsewhere (hf-hub:…), or its weights, may be downloaded."""

    def __post_init__(self) -> None:
        if taken := sorted(RESERVED & self.options.keys()):
            raise InputError(f"model.options.{taken[0]} is not an option of timm's models; see model.{taken[0]}.")
        for key in ("pretrained", "checkpoint_path"):
            if self.options.get(key):
                raise InputError(f"model.options.{key} is {self.options[key]}; set model.pretrained instead.")
        if self.member_noise and not self.pretrained:
            raise InputError(
                f"model.member_noise is {self.member_noise}, but no weights are trained; set model.pretrained."
            )


@settings_class("optimizer")
class OptimizerSettings:
    """The optimiser."""

    name: str = "sgd"
    """A name timm knows: sgd (Nesterov), adamw, …."""
    base_lr: Positive = 0.05
    """Peak learning rate at batch repetition 1; it is divided by b, as published."""
    lr: Positive | None = None
    """Peak learning rate, which overrides base_lr / b."""
    weight_decay: Annotated[Number, Field(ge=0)] = 6e-4
    """Decay, as the optimiser defines it."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """Momentum (SGD)."""
    decay_all: Boolean = True
    """Decay batch norms and biases too, as published."""
    layer_decay: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate from each layer to the one before it, such as 0.75, for trained weights; null is
    one rate for all.
    """
    freeze_epochs: Annotated[Number, Field(ge=0)] | Literal["all"] = 0.0
    """First epochs of the run, which train encoders and heads only; everything else stays as it started
    (model.pretrained), batch norm statistics included. "all" is every epoch, 0 is none.
    """
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Decay of the exponential moving average of the weights (EMA) at each step, such as 0.999; the average is then
    validated, saved and tested. 0 uses the weights themselves.
    """
    sam_radius: Annotated[Number, Field(ge=0, le=100)] = 0.0
    """Radius of sharpness-aware minimisation (SAM), such as 0.05; each step then costs two. 0 is off."""
    options: Options = field(default_factory=dict)
    """More keywords of the optimiser."""

    def peak_lr(self, batch_repetition: int) -> float:
        """Return the peak learning rate: ``lr`` if it is set, else base_lr / b."""
        return self.base_lr / batch_repetition if self.lr is None else self.lr

    def __post_init__(self) -> None:
        reserved = {"lr", "weight_decay", "momentum", "name", "net", "decay_all", "layer_decay"}
        if taken := sorted(reserved & self.options.keys()):
            raise InputError(f"optimizer.options.{taken[0]} has a setting of its own: optimizer.{taken[0]}.")


def _take_weights(value: Any) -> Any:
    """Return class weights with names for keys, which YAML may read as numbers."""
    return {str(name): weight for name, weight in value.items()} if isinstance(value, Mapping) else take_list(value)


@settings_class("objective")
class ObjectiveSettings:
    """The training objective."""

    name: str = "mixed_cross_entropy"
    """mixed_cross_entropy (binary, where images have several labels), or a function of your own,
    package.module:function, of a module in allow_imports.
    """
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of each target that is spread evenly over all classes; of several labels over presence and absence."""
    class_weights: Annotated[str | list[Positive] | dict[str, Number], BeforeValidator(_take_weights)] = "none"
    """Factor of the loss of each class: none; balanced, N / (K n_k) where n_k of N training images are of class
    k; or numbers, one for each class in their order, or by the names of the classes. Numbers are scaled to average 1
    over the training images, as balanced ones do, so that the learning rate can stay.
    """

    def __post_init__(self) -> None:
        if isinstance(self.class_weights, str):
            one_of(self.class_weights, ("none", "balanced"), "objective.class_weights")
        elif isinstance(self.class_weights, dict):
            for name, weight in self.class_weights.items():
                if weight <= 0:
                    raise InputError(f"objective.class_weights.{name} is {weight}; it must be greater than 0.")
        terms = {"label_smoothing": self.label_smoothing, "class_weights": self.class_weights != "none"}
        for key, value in terms.items():
            if value and self.name != "mixed_cross_entropy":
                raise InputError(f"objective.{key} belongs to mixed_cross_entropy; {self.name} has its own terms.")


@settings_class("schedule")
class ScheduleSettings:
    """The learning rate over training."""

    kind: Literal["multistep", "cosine"] = "multistep"
    """multistep (× gamma at milestones) or cosine (to 0)."""
    warmup_epochs: Annotated[Number, Field(ge=0)] = 1.0
    """Linear warm-up in epochs of a single network, times b, as published."""
    warmup_steps: Annotated[Integer, Field(ge=0)] | None = None
    """Warm-up in steps, which overrides warmup_epochs."""
    milestones: list[Annotated[Number, Field(gt=0, lt=1)]] = field(default_factory=lambda: [0.3333, 0.6667, 0.75])
    """Shares of training after which the rate is multiplied by gamma."""
    gamma: Positive = 0.1
    """See milestones."""


@settings_class("trainer")
class TrainerSettings:
    """Settings of Lightning's trainer; others are fixed by mixmo, or would break reproducible draws."""

    accelerator: Neutral[Accelerator] = "auto"
    """auto, cpu, gpu, cuda or mps."""
    precision: Precision | None = None
    """32-true, bf16-mixed, or 16-mixed with losses scaled so that small gradients are not lost; null takes what the
    device does best.
    """
    devices: Neutral[Count | None] = None
    """Devices of each node; null takes torchrun's number, else one."""
    num_nodes: Neutral[Count | None] = None
    """Nodes; null takes the launcher's number, else one."""
    sync_batchnorm: Boolean = False
    """Whether batch norms see the global batch; otherwise each device's own part of it."""
    max_epochs: Count | None = None
    """Epochs of the training."""
    limit_train_batches: Count | Annotated[Number, Field(gt=0, le=1)] | None = None
    """Batches of an epoch, or their share; null takes all."""
    accumulate: Neutral[Count] = 1
    """Parts of a batch that are computed one after another, for less memory: the same batch, and the same step but
    for batch norms, which see a part each.
    """
    patience: Count | None = None
    """Epochs without a better accuracy, or mAP of several labels, on the validation set after which training ends;
    null trains on. The schedule still follows max_epochs.
    """
    checkpoint_every_steps: Neutral[Count | None] = None
    """Steps between checkpoints within an epoch; null saves none by steps."""
    checkpoint_every_minutes: Neutral[Positive | None] = 10.0
    """Minutes between checkpoints. Each epoch ends with one in any case."""
    gradient_clip_val: Positive | None = None
    """Largest norm of the gradient; null does not clip."""
    deterministic: Boolean = False
    """Refuse operations that are not deterministic."""
    enable_progress_bar: Neutral[Boolean] = True
    """Whether a bar is shown on a terminal."""


@settings_class()
class Settings:
    """Everything a run is made of."""

    seed: Annotated[Integer, Field(ge=0)] = 0
    """Every random draw is a function of the seed and the step."""
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
    """Loggers in addition to metrics.csv: tensorboard, wandb, mlflow."""
    allow_imports: list[str] = field(default_factory=list)
    """Modules of your own that kinds and objectives may be imported from."""

    def __post_init__(self) -> None:
        for key in ("input_repetition", "input_repetition_end"):
            if (share := getattr(self.data, key)) is not None:
                check_input_repetition(share, self.model.num_members, f"data.{key}")
        if self.objective.class_weights == self.data.sampler == "balanced":
            raise InputError(
                "objective.class_weights and data.sampler are both balanced, which makes up for rare classes twice; "
                "set one of them."
            )
        if self.data.multi_label and (self.objective.class_weights != "none" or self.data.sampler == "balanced"):
            raise InputError(
                "objective.class_weights and data.sampler balanced are for images of one class each; with "
                "data.multi_label leave them out."
            )
        self.mixer = replace(self.mixer, num_members=self.model.num_members)


def values_of(settings: Settings) -> dict[str, Any]:
    """Return settings as a recipe has them: sections of plain values."""
    values = asdict(settings)
    del values["mixer"]["num_members"]  # which is model.num_members
    return values


def known_settings() -> Mapping[str, Any]:
    """Return the annotation of every setting by its dotted name."""
    return hints_of(Settings)


@functools.cache
def neutral_settings() -> frozenset[str]:
    """Return the settings that change no result.

    Two exceptions depend on data and network, and are compared by what they led to
    (:func:`mixmo.training.resuming.find_conditions`): where images are, if pixels are mixed; the parts of a batch, if
    there are batch norms.

    Example:
        >>> "data.workers" in neutral_settings(), "data.batch_size" in neutral_settings()
        (True, False)
    """
    known = fields_of(Settings).items()
    return frozenset(name for name, field in known if any(isinstance(each, ChangesNoResult) for each in field.metadata))
