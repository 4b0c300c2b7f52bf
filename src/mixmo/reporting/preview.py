"""``mixmo preview``: pictures of augmented inputs, masks and mixtures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from torch import Tensor

from mixmo.batch_mixing import MixedBatch
from mixmo.config.data_settings import DataSettings
from mixmo.config.plan import Plan
from mixmo.data.batches import Augmentation
from mixmo.data.image_sets import build_train_loader
from mixmo.data.module import DataModule
from mixmo.escaping import label
from mixmo.files import check_output_path, is_marked, make_folder, write_bytes, write_text
from mixmo.masks import CONSTANT, KINDS, FeatureShape
from mixmo.mixing import Mixer
from mixmo.reporting.page import Picture, Section, data_uri, encode_png, render
from mixmo.seeding import generator_for, seed_for
from mixmo.training.build import build_mixer, build_network

MIXTURES = 4
DRAWS = 2000
SAMPLES = 6
COLORS = np.array(matplotlib.colormaps["tab10"].colors)  # type: ignore[attr-defined]


def preview(plan: Plan, name: str, folder: Path, overwrite: bool = False) -> list[Path]:
    """Draw a recipe's first mixtures and every kind of mask into ``preview.png``, and a page that explains it.

    Raises:
        MissingError: if the dataset is missing.
        InputError: if settings contradict each other, or other files would be overwritten.
    """
    files = [folder / "preview.png", folder / "preview.html"]
    for file in files:
        check_output_path(file, is_marked(file), overwrite)
    settings = plan.settings
    data = DataModule(settings.data, settings.seed)
    net = build_network(settings, data)
    batch_mixer, augment = build_mixer(settings, net, data), Augmentation(settings.data)
    loader = build_train_loader(data.train, settings.data, settings.seed, torch.device("cpu"))
    mixtures = []
    for step, batch in zip(range(MIXTURES), loader, strict=False):  # one of each step, drawn as in training
        with torch.random.fork_rng():
            torch.manual_seed(seed_for(settings.seed, step, "global"))  # as in training, for augmentation policies
            generator = generator_for(settings.seed, step)
            mixed = batch_mixer.mix(augment.source(batch, generator), generator)
        index = (2 * step + 1) * len(mixed.shared) // (2 * MIXTURES)  # with rho > 0, the last ones share an image
        parts: Any = [part[index : index + 1] for part in mixed[:5]]
        mixtures.append(MixedBatch(*parts))
    mixer, shape = batch_mixer.mixer, net.encoder_shape(*mixed.inputs.shape[-2:])
    figure = Figure(figsize=(max(10, 1.7 * (2 * mixer.num_members + 1)), 2.3 * MIXTURES + 1.2 * len(KINDS)))
    figure.set_layout_engine("constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(2.3 * MIXTURES, 1.2 * len(KINDS))).flat
    draw_mixtures(above, mixtures, settings.data, data.classes)
    draw_catalogue(below, mixer, shape)
    content = encode_png(figure)
    alt = "Mixtures of the first steps, and samples and ratios of each kind of mask"
    picture = Picture(data_uri("png", content), [], alt)
    configuration = Section("Configuration", listings={"": plan.yaml}, folded=True)
    sections = [Section(text=_explain(settings.data, mixer, shape), wide=[picture]), configuration]
    make_folder(folder)
    write_bytes(files[0], content)
    write_text(files[1], render(f"What the network sees: {name}", "", sections))
    return files


def _explain(settings: DataSettings, mixer: Mixer, shape: FeatureShape) -> str:
    """Describe the two parts of the picture."""
    start, end = f"{100 * settings.input_repetition:g} %", settings.input_repetition_end
    change = "" if end is None else f" at first and {100 * end:g} % at the end,"
    repetition = f" In {start} of the mixtures{change} all members see the same image (input repetition)."
    return (
        "Each of the upper rows is one mixture of a training step: the members' inputs after augmentation and mixing "
        "in pixels, their masks in feature space (white is 1), and the masks applied to the pixels."
        f"{repetition if mixer.num_members > 1 else ''} The lower rows show samples of every kind of mask on feature "
        f"maps of {'×'.join(map(str, shape))}, for {max(2, mixer.num_members)} members and alpha {mixer.alpha:g}, with "
        f"one colour per member; the {len(KINDS) - len(CONSTANT)} kinds that are not constant are drawn at probability "
        "1. The red line is the mean ratio."
    )


def draw_mixtures(figure: FigureBase, mixtures: list[MixedBatch], settings: DataSettings, classes: list[str]) -> None:
    """Draw a row for each mixture: every member's denormalised input and mask, then the mixture."""
    members = mixtures[0].inputs.shape[1]
    axes = figure.subplots(MIXTURES, 2 * members + 1, squeeze=False)
    for axis in axes.flat:
        _frame(axis)
    for row, mixed in zip(axes, mixtures, strict=False):
        inputs, masks = to_rgb(mixed.inputs[0], settings), mixed.masks[0]
        for member in range(members):
            target, weight = label(describe_target(mixed, member, classes)), mixed.weights[0, member].item()
            row[2 * member].imshow(inputs[member], interpolation="nearest")
            row[2 * member].set_title(f"input {member}\n{target}", fontsize=8)
            row[2 * member + 1].imshow(montage(masks[member]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ratio = f"ratio {masks[member].mean():.3f}, weight {weight:.3f}"
            row[2 * member + 1].set_title(f"mask {member}\n{ratio}", fontsize=8)
        row[-1].imshow(blend(inputs, masks), interpolation="nearest")
        repeated = bool(mixed.shared) and members > 1
        row[-1].set_title("mixture\n(one image)" if repeated else "mixture", fontsize=8)


def draw_catalogue(figure: FigureBase, mixer: Mixer, shape: FeatureShape) -> None:
    """Draw a row for each kind of mask: samples, and a histogram of the first member's realised ratio.

    The members' colours are blended by their masks; masks of F channels are shown channel by channel.
    """
    members = max(2, mixer.num_members)
    axes = figure.subplots(len(KINDS), SAMPLES + 1, squeeze=False, width_ratios=[1] * SAMPLES + [2.4])
    for row, kind in zip(axes, KINDS, strict=True):
        for axis in row[:-1]:
            _frame(axis)
        row[0].set_ylabel(kind, rotation=0, ha="right", va="center", fontsize=9)
        row[-1].set(yticks=[], xlim=(0, 1))
        row[-1].tick_params(labelsize=7)
        mask_mixer = Mixer(kind, members, mixer.alpha, probability=1.0, draw_per="sample")
        try:
            mixes = [mask_mixer.sample(DRAWS // 20, shape, generator_for(0, step)) for step in range(20)]
        except ValueError as error:
            row[-1].text(0.5, 0.5, str(error), ha="center", va="center", fontsize=6, wrap=True)
            continue
        for axis, mask in zip(row, mixes[0].masks[:SAMPLES], strict=False):
            axis.imshow(color_masks(mask), interpolation="nearest")
        ratios = torch.cat([mix.ratios[:, 0] for mix in mixes])
        row[-1].hist(ratios.numpy(), bins=40, range=(0, 1), color="0.4")
        row[-1].axvline(ratios.mean().item(), color="tab:red", linewidth=1)
        row[-1].set_title(f"realised ratio, mean {ratios.mean().item():.3f}", fontsize=7, pad=2)


def _frame(axis: Axes) -> None:
    """Replace the axes by a thin frame, which bounds white pictures."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color="0.7", linewidth=0.5)


def to_rgb(inputs: Tensor, settings: DataSettings) -> np.ndarray:
    """Denormalise inputs (M, C, H, W) to (M, H, W, 3) in [0, 1]; of more than three bands, take the first three."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.mean, settings.std))
    pixels = (inputs * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
    shown = pixels[..., : 3 if pixels.shape[3] >= 3 else 1]
    return shown.expand(*pixels.shape[:3], 3).numpy()


def montage(mask: Tensor) -> np.ndarray:
    """Tile the channels of a mask (F, h, w) in a square."""
    channels, height, width = mask.shape
    columns = math.ceil(math.sqrt(channels))
    rows = math.ceil(channels / columns)
    tiles = np.ones((rows * columns, height, width), dtype=np.float32)
    tiles[:channels] = mask.numpy()
    picture: np.ndarray = tiles.reshape(rows, columns, height, width).swapaxes(1, 2)
    return picture.reshape(rows * height, columns * width)


def color_masks(masks: Tensor) -> np.ndarray:
    """Return a picture of one mixture's masks (M, F, h, w), with a colour for each member."""
    shares = np.stack([montage(mask) for mask in masks], -1)
    colors: np.ndarray = COLORS[np.arange(len(masks)) % len(COLORS)]
    picture: np.ndarray = np.clip(shares @ colors, 0, 1)
    return picture


def blend(inputs: np.ndarray, masks: Tensor) -> np.ndarray:
    """Return Σ_i mask_i ⊙ input_i in pixels (H, W, 3), which illustrates the mixing of features."""
    size = inputs.shape[1:3]
    scaled = torch.nn.functional.interpolate(masks.mean(1, keepdim=True), size=size, mode="nearest")
    picture: np.ndarray = np.clip((inputs * scaled.permute(0, 2, 3, 1).numpy()).sum(0), 0, 1)
    return picture


def describe_target(mixed: MixedBatch, member: int, classes: list[str]) -> str:
    """Name a member's target class or classes, with shares if pixels were mixed."""
    target = mixed.targets[0, member]
    if not target.is_floating_point():
        return classes[int(target)]
    shares = target.sort(descending=True, stable=True)
    parts = [(float(share), classes[int(k)]) for share, k in zip(*shares, strict=True) if share >= 0.005]
    if all(share > 0.995 for share, _ in parts):
        return " + ".join(name for _, name in parts) or "none"
    return " + ".join(f"{share:.2f} {name}" for share, name in parts)
