"""A run's training, validation and test images, opened once and decoded on first use."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mixmo.config.data_settings import DataSettings
from mixmo.data.datasets import DOWNLOAD, NamedDataset, takes_columns
from mixmo.data.given import DatasetImages
from mixmo.data.image_sets import ImageSet, PreparedImages, build_image_set
from mixmo.data.labels import name_label, present_classes
from mixmo.data.messages import list_some, warn_once
from mixmo.data.reading import find_readable, first_size
from mixmo.data.sources import Source, decode
from mixmo.data.splits import draw_fold, draw_share, draw_validation
from mixmo.errors import InputError, MissingError
from mixmo.escaping import printable
from mixmo.header import height_and_width
from mixmo.pairing import count_distinct
from mixmo.seeding import Stream, seed_for


class DataModule:
    """The images of a run: ``train``, ``validation`` and ``test``, and those of other datasets.

    Splits are listed on first use, and decoded when their images are needed: training lists the test set, to check
    that it exists and that its classes fit, and never decodes it.

    Args:
        settings: The recipe's ``data`` section.
        seed: The run's seed; it draws the validation images and those of ``images_per_class``, unless ``split_seed`` is
            set.
        check: Decode streamed training images once, to find those that cannot be read before training.
        option: The option that allows downloads in this command, for errors.
        given: Sources (:func:`mixmo.data.given.open_given`) of ``train`` and, if any, ``validation`` and ``test``, to
            use instead of the dataset that the settings name; ``test`` alone only replaces its test set.

    Example:
        >>> data = DataModule(DataSettings(name="digits", channels=1, validation=0.1), seed=0)
        >>> len(data.train), len(data.validation), data.image(0).shape
        (1293, 144, (8, 8, 1))
    """

    def __init__(
        self,
        settings: DataSettings,
        seed: int,
        check: bool = False,
        option: str = DOWNLOAD,
        given: Mapping[str, Source] | None = None,
    ) -> None:
        self.settings, self.seed, self.check, self.option, self.given = settings, seed, check, option, given
        self._others: dict[str, Source] = {}

    @property
    def classes(self) -> list[str]:
        """The K class names."""
        return self._main_source.classes

    @cached_property
    def size(self) -> tuple[int, int]:
        """(H, W) of the decoded images: ``image_size``, or the size of the first image."""
        if self.settings.image_size is not None:
            return height_and_width(self.settings.image_size)
        images = self._main_source.images
        if isinstance(images, DatasetImages) and images.prepared:
            return PreparedImages(self._main_source, self.settings).size
        return first_size(self._main_source, self.settings)

    @cached_property
    def train(self) -> ImageSet:
        """Training images, without those held out for validation."""
        images = build_image_set(self._parts["train"], self.settings, self.size, check=self.check)
        if missing := self._missing_classes(images):
            raise InputError(f"no training image of {missing} exists or can be read; add some, or remove the class.")
        distinct = count_distinct(self.settings.batch_size, self.settings.batch_repetition)
        if len(images) < distinct:
            raise InputError(
                f"{self.settings.name!r} has {len(images)} training images, fewer than the {distinct} distinct images "
                f"of a batch (batch_size {self.settings.batch_size} / batch_repetition "
                f"{self.settings.batch_repetition}); lower batch_size."
            )
        return images

    @cached_property
    def validation(self) -> ImageSet | None:
        """Images held out for selection, or the dataset's validation set; ``None`` if ``data.validation`` is 0."""
        held_out = self._parts.get("validation")
        if held_out is None:
            return None
        if held_out.multi_label and not held_out.labels.any():
            raise InputError(
                f"no validation image of {self.settings.name!r} has a label, so mAP cannot be measured; give or draw "
                "others, or set data.validation to 0."
            )
        return self._build(held_out, "validation", self.check)

    @cached_property
    def test(self) -> ImageSet:
        """Test images, never used for selection."""
        return self._build(self._test_source, "test")

    def other(self, name: str) -> tuple[ImageSet, list[str]]:
        """Return the test images of another dataset, scaled to the same size, and its class names."""
        source = self._other(name)
        return build_image_set(source, self.settings, self.size, scaled=True), source.classes

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return test images for :meth:`mixmo.data.batches.Augmentation.center`."""
        if isinstance(self.test, PreparedImages):
            return self.test.__getitems__(list(indices)).images
        return torch.from_numpy(np.stack([self.image(index) for index in indices]))

    def image(self, index: int) -> np.ndarray:
        """Return a test image (H, W, C) as decoded for the network, uint8.

        Images prepared by a Dataset are scaled from their range to 0…255.
        """
        if isinstance(self.test, PreparedImages):
            (pixels,) = self.batch([index]).permute(0, 2, 3, 1)
            low, high = pixels.min(), pixels.max()
            scaled: np.ndarray = ((pixels - low) / (high - low).clamp(min=1e-6) * 255).round().byte().numpy()
            return scaled
        data, size = self.settings, None if self.settings.image_size is None else self.size
        return decode(self._readable_test_source, index, size, data.channels, data.interpolation, data.window)

    def require(self) -> DataModule:
        """Open all that training needs, and return itself; the test set is listed but not decoded."""
        _ = self._train_source, self._has_test and self._test_source  # raises if classes do not fit
        _ = self.train, self.validation
        self._check_groups()
        return self

    def _check_groups(self) -> None:
        """Refuse a group with images in two splits, so that none is both trained and tested on."""
        groups = {name: source.groups for name, source in self.sources.items() if name != "unused"}
        for (one, first), (two, second) in itertools.combinations(groups.items(), 2):
            if first is not None and second is not None and len(common := np.intersect1d(first, second)):
                images = [self.sources[name].name(int((groups[name] == common[0]).argmax())) for name in (one, two)]
                raise InputError(
                    f"{len(common)} groups of {self.settings.name!r} have images in {one} and in {two}, such as "
                    f"{' and '.join(images)}; a group belongs to one split."
                )

    @property
    def sources(self) -> dict[str, Source]:
        """Sources of ``train`` and, if they exist, ``validation``, ``unused`` and ``test``; nothing is decoded."""
        return {**self._parts, "test": self._test_source} if self._has_test else self._parts

    def source(self, dataset: str) -> Source:
        """Return the source of ``train`` (without images held out), ``validation`` or ``test``.

        Any other name is a dataset, of which the test images are listed once. Nothing is decoded.
        """
        if dataset == "test":
            return self._test_source
        if dataset == "validation" and "validation" not in self._parts:
            raise InputError("there is no validation set: data.validation is 0.")
        if dataset in ("train", "validation"):
            return self._parts[dataset]
        return self._other(dataset)

    def _other(self, name: str) -> Source:
        if name not in self._others:
            columns = self.settings.columns if takes_columns(name) else {}
            other = NamedDataset(name, replace(self.settings, columns=columns), self.option)
            self._others[name] = other.open("test" if other.splits else "all", least_classes=1)
        return self._others[name]

    def leave_out(self, names: Container[str]) -> None:
        """Remove images from the test set by name, such as those used to tune settings."""
        source = self._test_source
        self._test_source = source.subset(np.array([source.name(index) not in names for index in range(len(source))]))

    def split_rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield (name, class, split) of each image, split by split."""
        for split, source in self.sources.items():
            for index, label in enumerate(source.labels):
                yield source.name(index), name_label(label, self.classes), split

    def fingerprint(self, dataset: str, times: bool = True) -> str:
        """Return :meth:`Source.fingerprint` of a dataset for :meth:`source`; ``train`` includes the images held out."""
        return (self._train_source if dataset == "train" else self.source(dataset)).fingerprint(times)

    def forget_fingerprints(self) -> None:
        """Hash images anew that a Dataset prepares each time, since it may have been changed in place."""
        for source in (self.given or {}).values():
            if isinstance(source.images, DatasetImages) and source.images.prepared:
                source.images.forget_fingerprint()

    def is_drawn(self, split: str) -> bool:
        """Return whether the images of ``train``, ``validation`` or ``test`` are drawn, not defined by the dataset."""
        data, few = self.settings, self.settings.images_per_class is not None
        if split == "test":
            return self._test_is_drawn or (few and self._joins_unused)
        held_out = data.validation > 0 and "validation" not in self._splits
        return held_out or (split == "train" and (few or not self._splits or data.folds is not None))

    def _missing_classes(self, images: ImageSet) -> str:
        """Return up to three classes without an image in a set as text, empty if there are none."""
        missing = np.setdiff1d(np.arange(len(self.classes)), present_classes(np.asarray(images.labels)))
        return ", ".join(printable(self.classes[number]) for number in missing[:3])

    def _build(self, source: Source, split: str, check: bool = False) -> ImageSet:
        """Build an image set, and warn of classes of which no image can be read."""
        images = build_image_set(source, self.settings, self.size, check=check)
        if isinstance(images, PreparedImages) and images.size != self.size:
            raise InputError(
                f"{split} images have size {images.size}, but training images {self.size}; resize them in the "
                "Dataset's transforms."
            )
        if self.settings.on_error == "skip" and (missing := self._missing_classes(images)):
            warn_once(f"no {split} image of {missing} can be read.")
        return images

    @property
    def _has_test(self) -> bool:
        """Whether there is a test set; only images passed from Python may lack one."""
        return self.given is None or "test" in self.given or self.settings.folds is not None

    @cached_property
    def _dataset(self) -> NamedDataset:
        return NamedDataset(self.settings.name, self.settings, self.option)

    def _open(self, split: str) -> Source:
        given, name = self.given or {}, self.settings.name
        if "train" in given and split not in given:
            where = "mixmo.fit or Run.test" if split == "test" else "mixmo.fit"
            raise MissingError(f"no {split} images were given; pass them to {where}.")
        source = given[split] if split in given else self._dataset.open(split)
        if source.multi_label != self.settings.multi_label:
            labels = "lists of labels" if source.multi_label else "one label each"
            which = "" if split == "all" else f"the {split} "
            raise InputError(
                f"{which}images of {name!r} have {labels}, but data.multi_label is {self.settings.multi_label}; "
                "set it accordingly, or label all images the same way."
            )
        if source.multi_label and split in ("train", "all") and (source.labels.sum(1) == 1).all():
            warn_once(f"each training image of {name!r} has one label; if none can have several, give class numbers.")
        return source

    @cached_property
    def _splits(self) -> set[str]:
        given = self.given or {}
        return set(given) if "train" in given else self._dataset.splits

    @cached_property
    def drawn_splits(self) -> dict[str, Source] | None:
        """``train`` (with images held out) and ``test``, if they are drawn; ``None`` if the dataset defines them.

        Every run draws the same test images of a dataset, regardless of its seed, unless ``split_seed`` is set, so no
        member of an ensemble has seen them.
        """
        data, seed = self.settings, seed_for(self.settings.split_seed or 0, 0, "test")
        if self._splits and data.folds is None:
            return None
        source = self._open("train" if self._splits else "all")
        if data.folds is None:
            chosen = draw_share(source.strata, data.test, seed, source.groups)
        else:
            chosen = draw_fold(source.strata, data.folds, data.fold, seed, source.groups)
        self._check_not_empty(chosen, source, "testing", "add images, or test images of their own")
        return {"train": source.subset(~chosen), "test": source.subset(chosen)}

    @property
    def _joins_unused(self) -> bool:
        """Whether unused images join the test set, as for digits."""
        return self.given is None and self.settings.name == "digits" and self.settings.folds is None

    @property
    def _test_is_drawn(self) -> bool:
        """Whether test images are drawn; those passed from Python later replace a fold."""
        return "test" not in (self.given or ()) and (not self._splits or self.settings.folds is not None)

    @cached_property
    def _train_source(self) -> Source:
        return self._open("train") if self.drawn_splits is None else self.drawn_splits["train"]

    @cached_property
    def _has_train(self) -> bool:
        if self.given is not None:
            return "train" in self.given
        try:
            return bool(len(self._train_source))
        except MissingError:
            return False

    @property
    def _main_source(self) -> Source:
        """The training set, or else the test set."""
        return self._train_source if self._has_train else self._test_source

    @cached_property
    def _test_source(self) -> Source:
        """The test set, numbered by the classes of the training set, if there is one."""
        drawn = self.drawn_splits if self._test_is_drawn else None
        source = self._open("test") if drawn is None else drawn["test"]
        if self._joins_unused and "unused" in self._parts:
            return source.join(self._parts["unused"])  # few test images otherwise
        if not self._has_train:
            return source
        return source.renumber(self._train_source.classes, f"the test set of {self.settings.name!r}")

    @cached_property
    def _readable_test_source(self) -> Source:
        if self.settings.on_error == "raise":
            return self._test_source
        size = None if self.settings.image_size is None else self.size
        return find_readable(self._test_source, size, self.settings)  # which decides the indices

    @cached_property
    def _parts(self) -> dict[str, Source]:
        """``train`` and, if they exist, ``validation`` and ``unused``, in the dataset's order."""
        source, held_out = self._train_source, dict[str, Source]()
        if self.settings.validation and "validation" in self._splits:
            where = f"the validation set of {self.settings.name!r}"
            held_out["validation"] = self._open("validation").renumber(source.classes, where)
        elif self.settings.validation:
            seed = self._split_seed("split")
            chosen = draw_validation(source.strata, self.settings.validation, seed, source.groups)
            self._check_not_empty(chosen, source, "validation", "set data.validation to 0")
            source, held_out["validation"] = source.subset(~chosen), source.subset(chosen)
        self._warn_of_small_classes(source, held_out)
        if self.settings.images_per_class is None:
            return {"train": source, **held_out}
        few = self._draw_few(source, self.settings.images_per_class)
        return {"train": source.subset(few), **held_out, "unused": source.subset(~few)}

    def _split_seed(self, stream: Stream) -> int:
        return seed_for(self.settings.seed_of_split(self.seed), 0, stream)

    def _check_not_empty(self, chosen: np.ndarray, source: Source, purpose: str, advice: str) -> None:
        """Refuse an empty draw."""
        if not chosen.any():
            what = "images" if source.groups is None else "groups of images"
            raise InputError(
                f"no class of {self.settings.name!r} has two {what}, one to train on and one for {purpose}; {advice}."
            )

    def _warn_of_small_classes(self, trained: Source, held_out: Mapping[str, Source]) -> None:
        """Warn of classes that are too small for all splits that are drawn."""
        parts = dict(held_out) if self.is_drawn("validation") else {}
        if self.drawn_splits is not None:
            parts["test"] = self.drawn_splits["test"]
        texts = []
        for name, part in parts.items():
            missing = np.setdiff1d(present_classes(trained.labels), present_classes(part.labels))
            if len(missing) and len(part):
                texts.append(f"{name} has no image of {list_some([trained.classes[number] for number in missing])}")
        if texts:
            few = "images of a class" if trained.groups is None else "groups of a class"
            advice = "add images, or raise the share (data.validation, data.test)"
            warn_once(f"{self.settings.name!r} has too few {few} for every split: {'; '.join(texts)}; {advice}.")

    def _draw_few(self, source: Source, count: int) -> np.ndarray:
        """Return a mask (N,) of ``count`` images drawn from each class, which includes those of any smaller count."""
        order = np.random.default_rng(self._split_seed("subset")).permutation(len(source.labels))
        chosen = np.zeros(len(order), dtype=bool)
        for number, name in enumerate(source.classes):
            indices = order[source.labels[order] == number]
            if len(indices) < count:
                raise InputError(
                    f"data.images_per_class is {count}, but class {printable(name)} has {len(indices)} images to train "
                    "on; lower it."
                )
            chosen[indices[:count]] = True
        return chosen
