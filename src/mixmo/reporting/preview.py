"""Pictures of augmented inputs, masks and mixtures."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mixmo.batch_mixing import MixedBatch
from mixmo.config.data_settings import DataSettings
from mixmo.config.plan import Plan
from mixmo.data.module import DataModule
from mixmo.data.sets import build_train_loader
from mixmo.files import check_place, is_marked, make_folder, write_bytes, write_text
from mixmo.masks import CONSTANT, KINDS, FeatureShape
from mixmo.mixing import Mixer
from mixmo.names import label
from mixmo.reporting import html as pages
from mixmo.reporting.sections import Section
from mixmo.seeding import generator_for, seed_for
from mixmo.training.build import build_maker, build_network

MIXTURES = 4
DRAWS = 2000
SAMPLES = 6
COLORS = np.array(matplotlib.colormaps["tab10"].colors)  # type: ignore[attr-defined]


def preview(plan: Plan, name: str, folder: Path, overwrite: bool = False) -> list[Path]:
    """Draw a recipe's first mixtures and the whole catalogue of masks, as two PNG files and an HTML page.

    Args:
        plan: The recipe.
        name: What to call it.
        folder: Where to write; made if it is missing.
        overwrite: Whether files that are no earlier preview are replaced as well.

    Returns:
        The files.

    Raises:
        MissingError: if the dataset is missing.
        InputError: if a setting does not fit the others, or other files stand there.
    """
    for file in ("mixtures.png", "masks.png", "preview.html"):
        check_place(folder / file, is_marked(folder / file), overwrite)
    settings = plan.settings
    data = DataModule(settings.data, settings.seed)
    net = build_network(settings, data)
    maker = build_maker(settings, net, data)
    loader = build_train_loader(data.train, settings.data, settings.seed, torch.device("cpu"))
    mixtures = []
    for step, batch in zip(range(MIXTURES), loader, strict=False):  # each from a step of its own, as training draws it
        with torch.random.fork_rng():
            torch.manual_seed(seed_for(settings.seed, step, "global"))  # as in training, for augmentation policies
            mixed = maker(batch, generator_for(settings.seed, step))
        place = (2 * step + 1) * len(mixed.shared) // (2 * MIXTURES)  # where rho is not 0, the last share one image
        one = slice(place, place + 1)
        mixtures.append(
            MixedBatch(mixed.inputs[one], mixed.masks[one], mixed.targets[one], mixed.weights[one], mixed.shared[one])
        )
    first = mixtures_figure(mixtures, settings.data, data.classes)
    mixer, shape = maker.mixer.mixer, net.encoder_shape(*mixed.inputs.shape[-2:])
    second = catalogue_figure(mixer, shape)
    pictures = {"mixtures.png": pages.png_of(first), "masks.png": pages.png_of(second)}
    make_folder(folder)
    files = [write_bytes(folder / file, content) for file, content in pictures.items()]
    write_text(folder / "preview.html", _page(name, plan, (mixer, shape), mixtures, data.classes, pictures))
    return [*files, folder / "preview.html"]


def mixtures_figure(mixtures: list[MixedBatch], settings: DataSettings, classes: list[str]) -> Figure:
    """Return a row for each mixture: every member's input and mask, then the mixture.

    Args:
        mixtures: Batches of one mixture each.
        settings: Whose normalisation is undone.
        classes: The class names.
    """
    members = mixtures[0].inputs.shape[1]
    figure = Figure(figsize=(1.7 * (2 * members + 1), 2.3 * len(mixtures)))
    axes = figure.subplots(len(mixtures), 2 * members + 1, squeeze=False)
    for row, mixed in zip(axes, mixtures, strict=True):
        inputs, masks = shown_images(mixed.inputs[0], settings), mixed.masks[0]
        ratios = masks.mean((1, 2, 3)).tolist()
        for member in range(members):
            row[2 * member].imshow(inputs[member], interpolation="nearest")
            row[2 * member].set_title(f"input {member}\n{label(target_of(mixed, member, classes))}", fontsize=8)
            row[2 * member + 1].imshow(montage(masks[member]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            weight = mixed.weights[0, member].item()
            row[2 * member + 1].set_title(f"mask {member}\nratio {ratios[member]:.2f}, weight {weight:.2f}", fontsize=8)
        row[-1].imshow(blend(inputs, masks), interpolation="nearest")
        alike = bool(mixed.shared) and members > 1
        row[-1].set_title("mixture\n(one image)" if alike else "mixture", fontsize=8)
    for axis in axes.flat:
        _frame(axis)
    figure.tight_layout()
    return figure


def catalogue_figure(mixer: Mixer, shape: FeatureShape) -> Figure:
    """Return a row for each kind of mask: samples, and the histogram of the first member's realised ratio.

    A position has the colours of its members, each by its share; masks of F channels are shown channel by channel.

    Args:
        mixer: Whose members and concentration are used.
        shape: (F, h, w) of the feature maps.
    """
    members = max(2, mixer.num_members)
    figure = Figure(figsize=(1.15 * SAMPLES + 3, 1.2 * len(KINDS)))
    axes = figure.subplots(len(KINDS), SAMPLES + 1, squeeze=False, width_ratios=[1] * SAMPLES + [2.4])
    for row, kind in zip(axes, KINDS, strict=True):
        for axis in row[:-1]:
            _frame(axis)
        row[0].text(-0.15, 0.5, kind, transform=row[0].transAxes, ha="right", va="center", fontsize=9)
        row[-1].set_yticks([])
        row[-1].set_xlim(0, 1)
        row[-1].tick_params(labelsize=7)
        shaped = Mixer(kind, members, mixer.alpha, probability=1.0, draw_per="sample")
        try:
            masks, ratios = _draws(shaped, shape)
        except ValueError as error:
            row[-1].text(0.5, 0.5, str(error), ha="center", va="center", fontsize=6, wrap=True)
            continue
        for axis, mask in zip(row, masks, strict=False):
            axis.imshow(color_masks(mask), interpolation="nearest")
        row[-1].hist(ratios[:, 0].numpy(), bins=40, range=(0, 1), color="0.4")
        row[-1].axvline(ratios[:, 0].mean().item(), color="tab:red", linewidth=1)
        row[-1].set_title(f"realised ratio, mean {ratios[:, 0].mean().item():.3f}", fontsize=7, pad=2)
    figure.tight_layout(h_pad=0.4)
    return figure


def _frame(axis: Axes) -> None:
    """Leave nothing around a picture but a thin line, which shows where a white one ends."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("0.7")
        spine.set_linewidth(0.5)


def _draws(mixer: Mixer, shape: FeatureShape) -> tuple[Tensor, Tensor]:
    """Return a few masks, and the realised ratios of many draws."""
    mixes = [mixer.sample(DRAWS // 20, shape, generator_for(0, step)) for step in range(20)]
    return mixes[0].masks[:SAMPLES], torch.cat([mix.ratios for mix in mixes])


def shown_images(inputs: Tensor, settings: DataSettings) -> np.ndarray:
    """Return inputs (M, C, H, W) as (M, H, W, 3) in [0, 1], their normalisation undone.

    Example:
        >>> shown_images(torch.zeros(2, 1, 4, 4), DataSettings(channels=1)).shape
        (2, 4, 4, 3)
    """
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.mean, settings.std))
    pixels = (inputs * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
    return pixels[..., :3].expand(*pixels.shape[:3], 3).numpy()


def montage(mask: Tensor) -> np.ndarray:
    """Return a mask (F, h, w) as one picture, its channels side by side in a square.

    Example:
        >>> montage(torch.zeros(5, 4, 4)).shape   # three by two channels
        (8, 12)
    """
    channels, height, width = mask.shape
    columns = math.ceil(math.sqrt(channels))
    rows = math.ceil(channels / columns)
    tiles = np.ones((rows * columns, height, width), dtype=np.float32)
    tiles[:channels] = mask.numpy()
    picture: np.ndarray = tiles.reshape(rows, columns, height, width).swapaxes(1, 2)
    return picture.reshape(rows * height, columns * width)


def color_masks(masks: Tensor) -> np.ndarray:
    """Return the masks (M, F, h, w) of one mixture as a picture in which each member has a colour."""
    shares = np.stack([montage(mask) for mask in masks], -1)
    colors: np.ndarray = COLORS[np.arange(len(masks)) % len(COLORS)]
    picture: np.ndarray = np.clip(shares @ colors, 0, 1)
    return picture


def blend(inputs: np.ndarray, masks: Tensor) -> np.ndarray:
    """Return Σ_i mask_i ⊙ input_i in pixels, an image of what the mixing block does to features.

    Args:
        inputs: (M, H, W, 3).
        masks: (M, F, h, w), averaged over channels and scaled to the images' size.
    """
    size = inputs.shape[1:3]
    scaled = torch.nn.functional.interpolate(masks.mean(1, keepdim=True), size=size, mode="nearest")
    picture: np.ndarray = np.clip((inputs * scaled.permute(0, 2, 3, 1).numpy()).sum(0), 0, 1)
    return picture


def target_of(mixed: MixedBatch, member: int, classes: list[str]) -> str:
    """Return a member's target in words: its class, or the two classes with their shares."""
    target = mixed.targets[0, member]
    if not target.is_floating_point():
        return classes[int(target)]
    shares = target.topk(min(2, len(classes)))
    parts = [(float(share), classes[int(k)]) for share, k in zip(shares.values, shares.indices, strict=True)]
    if parts[0][0] > 0.995:
        return parts[0][1]
    return " + ".join(f"{share:.2f} {name}" for share, name in parts)


def _repetition(own: DataSettings) -> str:
    """Return in words in how many mixtures the members share one image.

    Example:
        >>> _repetition(DataSettings(input_repetition=0.5, input_repetition_end=0.0))
        ' In 50 % of the mixtures at first and 0 % at the end, all members are shown one image (input repetition; chance
        adds a few).'
    """
    start, end = f"{100 * own.input_repetition:g} %", own.input_repetition_end
    change = "" if end is None else f" at first and {100 * end:g} % at the end,"
    return f" In {start} of the mixtures{change} all members are shown one image (input repetition; chance adds a few)."


def _page(
    name: str,
    plan: Plan,
    drawn: tuple[Mixer, FeatureShape],
    mixtures: list[MixedBatch],
    classes: list[str],
    pictures: dict[str, bytes],
) -> str:
    mixer, (channels, height, width) = drawn
    members = range(mixer.num_members)
    header = ["", *(f"{what} {member}" for member in members for what in ("target", "ratio", "weight"))]
    rows = []
    for step, mixed in enumerate(mixtures):
        cells = [f"step {step}{', one image' if mixed.shared and len(members) > 1 else ''}"]
        for member in members:
            ratio, weight = mixed.masks[0, member].mean().item(), mixed.weights[0, member].item()
            cells += [target_of(mixed, member, classes), f"{ratio:.3f}", f"{weight:.3f}"]
        rows.append(cells)
    others = len(KINDS) - len(CONSTANT)
    mixtures_text = (
        "One mixture of each of the first steps of training, from places spread over the batch: every member's input "
        "after augmentation and mixing in pixels, its mask in feature space (white is 1), and the masks applied to "
        f"pixels.{_repetition(plan.settings.data) if len(members) > 1 else ''}"
    )
    masks_text = (
        f"All kinds on feature maps of {channels}×{height}×{width}, {max(2, len(members))} members, alpha "
        f"{mixer.alpha:g}; the {others} kinds that are not constant at probability 1. Red: the mean."
    )
    table = pages.table(header, rows, "Targets, realised ratios and loss weights of each member")
    images = {
        file: pages.part("wide_image", pages.data_uri(pictures[file]), caption)
        for file, caption in (
            ("mixtures.png", "Inputs, masks and mixtures of the first steps"),
            ("masks.png", "Samples of each kind of mask and histograms of realised ratios"),
        )
    }
    sections = [
        Section("Mixtures", mixtures_text, parts=[images["mixtures.png"], table]),
        Section("Masks", masks_text, parts=[images["masks.png"]]),
    ]
    configuration = [pages.part("listing", "", plan.yaml)]
    title = f"What the network sees: {name}"
    return pages.render("preview.html", title=title, lead="", sections=sections, configuration=configuration)
