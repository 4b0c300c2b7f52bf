"""Sharded datasets: splits, missing shards and labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from mixmo.data.sources import Images, Source, logger, warn_once
from mixmo.errors import InputError, MissingError
from mixmo.names import printable

SPLITS = ("train", "test", "val", "valid", "validation")
"""What splits are called, in the names of folders, archives and shards, and in tables; the last three are one."""

NUMBER = re.compile(r"\d{1,9}")
"""A class number as text."""

SHOWN = 10
"""Problems that are named."""


def by_split(files: Iterable[str]) -> dict[str, list[str]]:
    """Return files by the split that a word of their paths tells; under an empty name those without one.

    Args:
        files: Paths below the dataset's folder.

    Example:
        >>> by_split(["imagenet-train-0000.tar", "data/validation/0.tar", "x.tar"])
        {'train': ['imagenet-train-0000.tar'], 'validation': ['data/validation/0.tar'], '': ['x.tar']}
    """
    found: dict[str, list[str]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.lower())
        found.setdefault(next((word for word in words if word in SPLITS), ""), []).append(file)
    return found


def missing_shards(files: Sequence[str]) -> list[str]:
    """Return the names of shards that the numbers in the others' names tell of.

    Args:
        files: The shards of one split.

    Example:
        >>> missing_shards(["train-000.tar", "train-002.tar"]), missing_shards(["a-00000-of-00002.parquet"])
        (['train-001.tar'], ['a-00001-of-00002.parquet'])
    """
    numbered: dict[tuple[str, int, str], set[int]] = {}
    for file in files:
        if match := re.fullmatch(r"(.*?)(\d+)((?:-of-\d+)?[^\d/]*)", file):
            before, number, after = match.groups()
            numbered.setdefault((before, len(number), after), set()).add(int(number))
    missing = []
    for (before, digits, after), found in numbered.items():
        told = re.search(r"-of-(\d+)", after)
        least, most = min(found), max(found)
        row = most - least < 2 * len(found)  # dates and the like have wider gaps
        wanted = range(int(told[1])) if told else range(least, most) if row else ()
        missing += [f"{before}{number:0{digits}}{after}" for number in wanted if number not in found]
    return sorted(missing)


def number_labels(
    labels: Sequence[np.ndarray], names: Sequence[str] | None, where: str, on_error: str
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Return the class numbers (N,) of all records, the class names, and where each shard's records begin (S + 1,).

    Args:
        labels: Of each shard the (n,) class names, or class numbers as text.
        names: The class names in the order of their numbers; ``None`` where labels are names, or nobody tells.
        where: What the shards are called, for errors.
        on_error: ``raise``, or ``skip`` records without a label, whose class number is then -1.

    Raises:
        InputError: if a class number has no name, or labels are missing and ``on_error`` is ``raise``.
    """
    starts = np.cumsum([0, *map(len, labels)])
    texts, places, counts = np.unique(np.concatenate(labels), return_inverse=True, return_counts=True)
    there = are_labels(texts, counts, where, on_error)
    numbers, known = np.full(len(texts), -1, dtype=np.int64), [str(text) for text in texts[there]]
    if not all(NUMBER.fullmatch(text) for text in known):
        numbers[there] = np.arange(len(known))
        return numbers[places], known, starts
    numbers[there] = [int(text) for text in known]
    count = int(numbers.max(initial=-1)) + 1
    if names is None:
        if count > 10 * len(places) + 1000:
            raise InputError(f"class number {count - 1} is no label of {len(places)} images; classes count from 0.")
        names = [str(number) for number in range(count)]
    if count > len(names):
        raise InputError(f"an image has class number {count - 1}, but there are {len(names)} class names.")
    return numbers[places], list(names), starts


def are_labels(
    texts: Sequence[str] | np.ndarray, counts: Sequence[int] | np.ndarray, where: str, on_error: str
) -> np.ndarray:
    """Return which texts (n,) are labels; datasets write -1, null or nothing where an image has none.

    Args:
        texts: The labels, each once.
        counts: (n,) how often each stands there.
        where: Whose they are, for the error.
        on_error: ``raise``, or ``skip`` images without a label, which is logged.

    Raises:
        InputError: if labels are missing and ``on_error`` is ``raise``.

    Example:
        >>> are_labels(["-1", "0", "1"], [1, 2, 2], "here", "skip").tolist()
        [False, True, True]
    """
    absent = [text for text in texts if re.fullmatch(r"|-\d+|none|null|nan", text, re.IGNORECASE)]
    if not all(NUMBER.fullmatch(text) for text in texts if text not in absent):
        absent = [text for text in absent if text in ("", "-1")]  # "none" may be the name of a class among others
    there = np.array([text not in absent for text in texts], dtype=bool)
    if absent:
        lost, shown = int(np.asarray(counts)[~there].sum()), " or ".join(text or "empty" for text in absent)
        text = f"{printable(where)}: {lost} of {int(np.sum(counts))} labels are {shown} (no label)"
        if on_error == "raise":
            raise InputError(f"{text}; label these images, or continue without them with --data.on_error skip.")
        warn_once(f"{text}; these images are left out.")
    return there


def report_problems(problems: Sequence[str], where: str, on_error: str) -> None:
    """Stop at what is missing or damaged, or say what is left out.

    Args:
        problems: What is wrong.
        where: What the shards are called.
        on_error: ``raise`` or ``skip``.

    Raises:
        InputError: if something is wrong and ``on_error`` is ``raise``.
    """
    if not problems:
        return
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    text = printable(f"{'; '.join(problems[:SHOWN])}{more}")
    if on_error == "raise":
        raise InputError(f"{printable(where)}: {text}; repair it, or continue without it with --data.on_error skip.")
    logger.warning("%s: left out %d shard(s) or record(s): %s", printable(where), len(problems), text)


def build_source(images: Images, labels: np.ndarray, classes: list[str], where: str) -> Source:
    """Return the source of sharded images, without those whose class number is -1.

    Raises:
        MissingError: if there are none.
    """
    if not (labels >= 0).any():
        raise MissingError(f"{printable(where)} holds no labelled images.")
    source = Source(labels, classes, images)
    return source if labels.min() >= 0 else source.subset(np.flatnonzero(labels >= 0))


class ShardedImages:
    """Images that lie in shards, one after the other.

    Args:
        starts: (S + 1,) the number of each shard's first image, and of all images.
    """

    def __init__(self, starts: np.ndarray) -> None:
        self.starts = starts

    def shards(self, numbers: np.ndarray | None) -> np.ndarray:
        """Return the shard (N,) of each image.

        Args:
            numbers: The images; ``None`` is all.

        Example:
            >>> ShardedImages(np.array([0, 2, 5])).shards(None)
            array([0, 0, 1, 1, 1], dtype=int32)
        """
        if numbers is None:
            return np.repeat(np.arange(len(self.starts) - 1, dtype=np.int32), np.diff(self.starts))
        return np.searchsorted(self.starts, numbers, side="right").astype(np.int32) - 1

    def place(self, number: int) -> tuple[int, int]:
        """Return the shard of an image, and its place there."""
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return shard, number - int(self.starts[shard])
