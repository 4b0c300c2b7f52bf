"""The settings of a run as keywords of :func:`mixmo.fit`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypedDict

from mixmo.config.hardware import Accelerator, Precision
from mixmo.config.settings import known_settings
from mixmo.errors import InputError, explain_unknown
from mixmo.validation import join_messages

ARGUMENTS = ("model", "train", "val", "test", "groups", "num_members", "epochs", "recipe", "out", "resume", "progress",
             "callbacks")  # fmt: skip
"""Arguments of :func:`mixmo.fit` that are not settings."""

DERIVED = {"model.backbone", "model.num_members", "trainer.max_epochs", "data.name",
       "trainer.enable_progress_bar"}  # fmt: skip
"""Settings derived from these arguments."""


@cache
def keywords() -> Mapping[str, str]:
    """Return the dotted name of every keyword's setting.

    A keyword is the last part of the name, prefixed with the section if it is not unique or an argument of
    :func:`mixmo.fit`.
    """
    names = [name for name in known_settings() if name not in DERIVED]
    counts = Counter(name.rpartition(".")[2] for name in names)
    result = {}
    for name in names:
        section, _, last = name.rpartition(".")
        result[last if counts[last] == 1 and last not in ARGUMENTS else f"{section}_{last}"] = name
    return result


def name_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace keywords by the dotted names of their settings; report all unknown ones, with similar names.

    Example:
        >>> name_settings({"lr": 0.1, "mixer_alpha": 2})
        {'optimizer.lr': 0.1, 'mixer.alpha': 2}
    """
    known = keywords()
    names, listed = [*known, *ARGUMENTS], "mixmo.config.keywords.FitSettings"
    if unknown := [explain_unknown(name, names, "keyword", listed) for name in settings if name not in known]:
        raise InputError(join_messages(unknown))
    return {known[keyword]: value for keyword, value in settings.items()}


class FitSettings(TypedDict, total=False):
    """Every setting that :func:`mixmo.fit` takes as a keyword; :mod:`mixmo.config.settings` documents them."""

    seed: int
    model_options: dict[str, Any]
    mix_at: str | None
    compile: bool | None
    pretrained: bool | str
    member_noise: float
    model_download: bool
    mixer_kind: dict[str, float] | str
    mixer_alpha: float
    mixer_probability: float
    mixer_root: float
    draw_per: Literal["batch", "sample"]
    mixer_progress: Literal["steps", "epochs"]
    pixels_kind: Literal["none", "mixup", "cutmix"]
    pixels_alpha: float
    pixels_probability: float
    data_root: str
    data_download: bool
    multi_label: bool
    columns: dict[str, Any]
    batch_size: int
    batch_repetition: int
    input_repetition: float
    input_repetition_end: float | None
    data_test: float
    folds: int | None
    fold: int
    validation: float
    images_per_class: int | None
    split_seed: int | None
    sampler: Literal["shuffle", "balanced"]
    channels: int
    window: list[float] | None
    image_size: int | list[int] | None
    interpolation: Literal["bicubic", "bilinear"]
    crop_size: int | list[int] | None
    augmentation: Literal["crop", "photo"]
    padding: int
    padding_mode: Literal["zeros", "reflect"]
    scale: list[float]
    color_jitter: float
    flip: bool
    policy: Literal["none", "trivialaugment", "randaugment"]
    erasing: float
    mean: list[float]
    std: list[float]
    in_memory: bool | None
    workers: int
    own_transforms: bool
    on_error: Literal["raise", "skip"]
    eval_batch_size: int | None
    objective_name: str
    label_smoothing: float
    class_weights: str | list[float] | dict[str, float]
    optimizer_name: str
    base_lr: float
    lr: float | None
    weight_decay: float
    momentum: float
    decay_all: bool
    layer_decay: float | None
    freeze_epochs: float | Literal["all"]
    ema_decay: float
    sam_radius: float
    optimizer_options: dict[str, Any]
    schedule_kind: Literal["multistep", "cosine"]
    warmup_epochs: float
    warmup_steps: int | None
    milestones: list[float]
    gamma: float
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]]
    allow_imports: list[str]
    accelerator: Accelerator
    precision: Precision | None
    devices: int | None
    num_nodes: int | None
    sync_batchnorm: bool
    limit_train_batches: int | float | None
    accumulate: int
    patience: int | None
    checkpoint_every_steps: int | None
    checkpoint_every_minutes: float | None
    gradient_clip_val: float | None
    deterministic: bool
