"""Class numbers and class names from the labels that a dataset has."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mixmo.data.messages import warn_once
from mixmo.errors import InputError
from mixmo.escaping import printable

SEPARATOR = "|"
"""The separator of an image's labels in a table's cell."""

ABSENT = re.compile(r"|-\d+|none|null|nan", re.IGNORECASE)
"""What datasets write for a missing label."""


def number_labels(
    labels: Sequence[Any],
    names: Sequence[str] | None,
    where: str,
    on_error: str | None = None,
    images: Sequence[int] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Return the class numbers (N,) of N labels, -1 where there is none, and the class names.

    Where images have several labels it is (N, K) uint8: 1 where a class is present.

    Args:
        labels: Class numbers or class names; -1, ``None`` or an empty string where an image has no label. Where
            images have several: for each a list of class numbers or names, or an array (K,) of 0 and 1.
        names: The class names in the order of their numbers; ``None`` if unknown.
        where: Whose labels they are, for errors.
        on_error: ``raise``, or ``skip`` images without a label, which is logged; ``None`` expects a label for each.
        images: Which image each label is of, for errors; ``None`` is one after another.

    Example:
        >>> number_labels(["owl", "bat", "owl"], None, "here")
        (array([1, 0, 1]), ['bat', 'owl'])
        >>> number_labels([1, -1], ["bat", "owl"], "here", on_error="skip")
        (array([ 1, -1]), ['bat', 'owl'])
        >>> number_labels([["owl", "bat"], [], ["owl"]], None, "here")[0].tolist()
        [[1, 1], [0, 0], [0, 1]]
    """
    if any(isinstance(label, list | tuple | set | np.ndarray) for label in labels):
        return _number_sets(labels, names, where)
    images = range(len(labels)) if images is None else images
    allowed = {int, str} if on_error is None else {int, str, type(None)}
    if odd := {type(label) for label in labels} - allowed:
        index, wrong = next((i, label) for i, label in enumerate(labels) if type(label) in odd)
        raise InputError(
            f"{where} image {images[index]} has the label {wrong!r}, a {type(wrong).__name__}; labels are class "
            "numbers, integers from 0, or names."
        )
    counts = Counter(labels)
    absent = set[Any]() if on_error is None else _find_absent(counts)
    if absent:
        _report_absent(absent, counts, where, on_error == "raise")
    known = counts.keys() - absent
    if names is None:
        names = _name_classes(known, len(labels), where)
    if all(isinstance(label, int) for label in known):
        numbers = {label: label for label in known}
    else:
        numbers = {name: number for number, name in enumerate(names)}
    for index, label in enumerate(labels):
        if label not in absent and (label not in numbers or not 0 <= numbers[label] < len(names)):
            what = f"class numbers lie between 0 and {len(names) - 1}" if label in numbers else "no class has that name"
            raise InputError(f"{where} image {images[index]} has the label {label!r}; {what}.")
    return np.array([numbers.get(label, -1) for label in labels], dtype=np.int64), list(names)


def _number_sets(labels: Sequence[Any], names: Sequence[str] | None, where: str) -> tuple[np.ndarray, list[str]]:
    """Return 0 or 1 for each class of each image (N, K), and the class names."""
    vectors = isinstance(labels[0], np.ndarray)
    for index, label in enumerate(labels):
        if vectors:
            size = len(names or labels[0])
            fits = isinstance(label, np.ndarray) and label.shape == (size,) and np.isin(label, (0, 1)).all()
            wanted = f"an array of {size} values, 0 or 1 for each class, as the first one or the class names have it"
        else:
            fits = isinstance(label, list | tuple | set) and len({*label}) == len(label)
            wanted = "a list of class numbers or names, each once; give 0 and 1 for each class as an array"
        if not fits:
            raise InputError(f"{where} image {index} has the labels {label!r}; they have to be {wanted}.")
    if vectors:
        found = np.stack(labels).astype(np.uint8)
        names = [str(number) for number in range(found.shape[1])] if names is None else names
    else:
        images = [index for index, label in enumerate(labels) for _ in label]
        numbers, names = number_labels([each for label in labels for each in label], names, where, images=images)
        found = np.zeros((len(labels), len(names)), np.uint8)
        found[images, numbers] = 1
    return found, list(names)


def rarest_labels(labels: np.ndarray) -> np.ndarray:
    """Return class numbers (N,), of several labels (N, K) the one that the fewest images have; K if there is none.

    Example:
        >>> rarest_labels(np.array([[1, 1], [1, 0], [0, 0]])).tolist()
        [1, 0, 2]
    """
    if labels.ndim == 1:
        return labels
    counts = np.where(labels, labels.sum(0), len(labels) + 1)
    return np.asarray(np.where(labels.any(1), counts.argmin(1), labels.shape[1]))


def present_classes(labels: np.ndarray) -> np.ndarray:
    """Return the numbers of the classes that images have, with repetitions.

    Example:
        >>> present_classes(np.array([[0, 1, 0], [0, 1, 1]])).tolist(), present_classes(np.array([2, 0, 2])).tolist()
        ([1, 2], [2, 0, 2])
    """
    return np.flatnonzero(labels.any(0)) if labels.ndim == 2 else labels


def name_label(label: np.ndarray, classes: Sequence[str]) -> str:
    """Return the name of an image's class, or those of several with | between them.

    Example:
        >>> name_label(np.array([1, 0, 1]), ["bat", "cat", "owl"]), name_label(np.array(1), ["bat", "cat"])
        ('bat|owl', 'cat')
    """
    numbers = np.flatnonzero(label).tolist() if label.ndim else [int(label)]
    return SEPARATOR.join(classes[number] for number in numbers)


def _find_absent(labels: Iterable[Any]) -> set[Any]:
    """Return the values that mean "no label"; among class names "none" is a class."""
    texts = {label for label in labels if isinstance(label, str)}
    absent = {text for text in texts if ABSENT.fullmatch(text)}
    if not all(text.isdecimal() for text in texts - absent):
        absent &= {"", "-1"}
    return absent | {label for label in labels if label is None or (isinstance(label, int) and label < 0)}


def _report_absent(absent: set[Any], counts: Counter[Any], where: str, refuse: bool) -> None:
    shown = " or ".join(sorted(str("empty" if label in (None, "") else label) for label in absent))
    missing = sum(counts[label] for label in absent)
    text = f"{printable(where)}: {missing} of {counts.total()} labels are {shown} (no label)"
    if refuse or missing == counts.total():
        raise InputError(
            f"{text}; label these images, or continue without them with --data.on_error skip; if images have none of "
            "the classes or several, set data.multi_label."
        )
    warn_once(f"{text}; these images are left out.")


def _name_classes(labels: Iterable[Any], count: int, where: str) -> list[str]:
    """Return class names: the labels that are names, sorted, or the numbers up to the largest."""
    if not all(isinstance(label, int) for label in labels):
        return sorted(map(str, labels))
    most = max(labels, default=-1)
    if most > 10 * count + 1000:
        raise InputError(f"{where}: class number {most} is too large for {count} images; number classes from 0.")
    return [str(number) for number in range(most + 1)]


def check_look_alike(names: Iterable[str], where: str) -> None:
    """Refuse names that differ only in their Unicode form, as systems encode accents differently, or in spaces."""
    found: dict[str, str] = {}
    for name in sorted(set(names)):
        other = found.setdefault(" ".join(unicodedata.normalize("NFC", name).split()), name)
        if other != name:
            raise InputError(
                f"{where} has two classes that look alike: {_spelt(name)} and {_spelt(other)}; rename one as the other."
            )


def _spelt(name: str) -> str:
    """Return a name with what distinguishes it from one that looks alike."""
    composed, decomposed = unicodedata.is_normalized("NFC", name), unicodedata.is_normalized("NFD", name)
    known = ["composed, NFC"] * composed + ["decomposed, NFD"] * decomposed
    form = known[0] if len(known) == 1 else "" if known else "partly composed"
    spaces = "" if name == " ".join(name.split()) else f"spaces as in {name!r}"
    return f"{printable(name)} ({', '.join(filter(None, [form, spaces])) or 'without further spaces'})"
