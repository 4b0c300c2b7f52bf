"""Class numbers and class names from a dataset's labels."""

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

ABSENT = re.compile(r"|-\d+(\.0*)?|none|null|nan", re.IGNORECASE)
"""Values that datasets use for a missing label."""

NUMBER = re.compile(r"\d+(\.\d*)?")
"""Class numbers in a table, also as written by programs that take them for decimal fractions."""


def number_labels(
    labels: Sequence[Any],
    names: Sequence[str] | None,
    where: str,
    on_error: str | None = None,
    images: Sequence[int] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Return the class numbers (N,) of N labels, -1 for a missing one, and the class names.

    For images with several labels, return (N, K) uint8 instead: 1 if a class is present.

    Args:
        labels: Class numbers or class names; -1, ``None`` or an empty string for a missing label. For images with
            several labels, a list of class numbers or names, or an array (K,) of 0 and 1, for each.
        names: The class names in the order of their numbers; ``None`` if unknown.
        where: The dataset, for errors.
        on_error: ``raise`` for missing labels, or ``skip`` them with a warning; ``None`` if none can be missing.
        images: The index of each label's image, for errors; ``None`` is 0, 1, ….

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
    if wrong := next(((i, label) for i, label in enumerate(labels) if type(label) not in allowed), None):
        raise InputError(
            f"{where} image {images[wrong[0]]} has the label {wrong[1]!r}, a {type(wrong[1]).__name__}; labels are "
            "class numbers, integers from 0, or names."
        )
    counts = Counter(labels)
    absent = set[Any]() if on_error is None else _find_absent(counts)
    if absent:
        _report_absent(absent, counts, where, on_error == "raise")
    present = counts.keys() - absent
    if names is None:
        names = _name_classes(present, len(labels), where)
    if all(isinstance(label, int) for label in present):
        numbers = {label: label for label in present}
    else:
        numbers = {name: number for number, name in enumerate(names)}
    for index, label in enumerate(labels):
        if label not in absent and (label not in numbers or not 0 <= numbers[label] < len(names)):
            why = f"class numbers lie between 0 and {len(names) - 1}" if label in numbers else "no class has that name"
            raise InputError(f"{where} image {images[index]} has the label {label!r}; {why}.")
    return np.array([numbers.get(label, -1) for label in labels], dtype=np.int64), list(names)


def _number_sets(labels: Sequence[Any], names: Sequence[str] | None, where: str) -> tuple[np.ndarray, list[str]]:
    """Return 0 or 1 for each image and class, (N, K), and the class names."""
    vectors = isinstance(labels[0], np.ndarray)
    if vectors and labels[0].shape == (1,):
        raise InputError(f"{where} labels have shape ({len(labels)}, 1); give class numbers as ({len(labels)},).")
    for index, label in enumerate(labels):
        if vectors:
            size = len(names or labels[0])
            fits = isinstance(label, np.ndarray) and label.shape == (size,) and np.isin(label, (0, 1)).all()
            expected = f"an array of {size} values, 0 or 1 for each class, like the first image's or the class names"
        else:
            fits = isinstance(label, list | tuple | set) and len({*label}) == len(label)
            expected = "a list of class numbers or names, each once; give 0 and 1 for each class as an array"
        if not fits:
            raise InputError(f"{where} image {index} has the labels {label!r}; they have to be {expected}.")
    if vectors:
        sets = np.stack(labels).astype(np.uint8)
        names = [str(number) for number in range(sets.shape[1])] if names is None else names
    else:
        images = [index for index, label in enumerate(labels) for _ in label]
        numbers, names = number_labels([each for label in labels for each in label], names, where, images=images)
        sets = np.zeros((len(labels), len(names)), np.uint8)
        sets[images, numbers] = 1
    return sets, list(names)


def rarest_labels(labels: np.ndarray) -> np.ndarray:
    """Return class numbers (N,); for several labels (N, K), the class with the fewest images, or K without a label.

    Example:
        >>> rarest_labels(np.array([[1, 1], [1, 0], [0, 0]])).tolist()
        [1, 0, 2]
    """
    if labels.ndim == 1:
        return labels
    counts = np.where(labels, labels.sum(0), len(labels) + 1)
    return np.asarray(np.where(labels.any(1), counts.argmin(1), labels.shape[1]))


def present_classes(labels: np.ndarray) -> np.ndarray:
    """Return the class numbers that occur in labels, maybe repeatedly.

    Example:
        >>> present_classes(np.array([[0, 1, 0], [0, 1, 1]])).tolist(), present_classes(np.array([2, 0, 2])).tolist()
        ([1, 2], [2, 0, 2])
    """
    return np.flatnonzero(labels.any(0)) if labels.ndim == 2 else labels


def name_label(label: np.ndarray, classes: Sequence[str]) -> str:
    """Return the name of an image's class, or those of several joined by |.

    Example:
        >>> name_label(np.array([1, 0, 1]), ["bat", "cat", "owl"]), name_label(np.array(1), ["bat", "cat"])
        ('bat|owl', 'cat')
    """
    numbers = np.flatnonzero(label).tolist() if label.ndim else [int(label)]
    return SEPARATOR.join(classes[number] for number in numbers)


def _find_absent(labels: Iterable[Any]) -> set[Any]:
    """Return the values that mean "no label"; if labels are names, "none" is a class."""
    texts = {label for label in labels if isinstance(label, str)}
    absent = {text for text in texts if ABSENT.fullmatch(text)}
    if not all(NUMBER.fullmatch(text) for text in texts - absent):
        absent &= {"", "-1"}
    return absent | {label for label in labels if label is None or (isinstance(label, int) and label < 0)}


def _report_absent(absent: set[Any], counts: Counter[Any], where: str, refuse: bool) -> None:
    shown = " or ".join(sorted(str("empty" if label in (None, "") else label) for label in absent))
    missing = sum(counts[label] for label in absent)
    text = f"{printable(where)}: {missing} of {counts.total()} labels are {shown} (no label)"
    if refuse or missing == counts.total():
        raise InputError(
            f"{text}; label these images, or continue without them with data.on_error: skip; if images can have no "
            "class or several, set data.multi_label."
        )
    warn_once(f"{text}; these images are left out.")


def _name_classes(labels: Iterable[Any], count: int, where: str) -> list[str]:
    """Return class names: sorted labels, or all numbers up to the largest."""
    if not all(isinstance(label, int) for label in labels):
        return sorted(map(str, labels))
    largest = max(labels, default=-1)
    if largest > 10 * count + 1000:
        raise InputError(f"{where}: class number {largest} is too large for {count} images; number classes from 0.")
    return [str(number) for number in range(largest + 1)]


def check_names(names: Sequence[str], where: str) -> None:
    """Refuse class names that are equal or look alike."""
    if len(set(names)) < len(names):
        name, count = Counter(names).most_common(1)[0]
        raise InputError(f"{where} has {count} classes named {printable(name)}; give each class a name of its own.")
    check_look_alike(names, where)


def check_look_alike(names: Iterable[str], where: str) -> None:
    """Refuse names that differ only in spaces or in Unicode normalisation, as systems encode accents differently."""
    normalised: dict[str, str] = {}
    for name in sorted(set(names)):
        other = normalised.setdefault(" ".join(unicodedata.normalize("NFC", name).split()), name)
        if other != name:
            pair = f"{_describe_spelling(name)} and {_describe_spelling(other)}"
            raise InputError(f"{where} has two classes that look alike: {pair}; rename one as the other.")


def _describe_spelling(name: str) -> str:
    """Return a name with its Unicode form and spaces, to tell it from one that looks alike."""
    composed, decomposed = unicodedata.is_normalized("NFC", name), unicodedata.is_normalized("NFD", name)
    forms = ["composed, NFC"] * composed + ["decomposed, NFD"] * decomposed
    form = forms[0] if len(forms) == 1 else "" if forms else "partly composed"
    spaces = "" if name == " ".join(name.split()) else f"spaces as in {name!r}"
    return f"{printable(name)} ({', '.join(filter(None, [form, spaces])) or 'without further spaces'})"
