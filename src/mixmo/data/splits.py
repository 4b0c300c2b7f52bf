"""Stratified splits and folds of images, without dividing any group."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from mixmo.errors import InputError

MAX_PARTS = 20
"""Largest number of parts that groups are divided into; some of the parts make up a share."""
MAX_STRATIFIED_GROUPS = 1000
"""More groups than this count once each, by the class of their first image: as even and much faster."""


def draw_share(labels: np.ndarray, share: float, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return a mask (N,) of a share of each class, of at least one image but not all.

    Groups are drawn whole: some of the parts of scikit-learn's ``StratifiedGroupKFold``, with the number of parts that
    comes closest to the share, and at least one group of every class stays.

    Example:
        >>> chosen = draw_share(np.array([0] * 8 + [1, 1, 2]), 0.25, seed=0)
        >>> [int(part.sum()) for part in np.split(chosen, [8, 10])]
        [2, 1, 0]
        >>> draw_share(np.array([0, 0, 1, 1] * 2), 0.25, seed=0, groups=np.arange(8) // 4).tolist()
        [True, True, True, True, False, False, False, False]
    """
    generator = np.random.default_rng(seed)
    if groups is not None:
        limit = min(MAX_PARTS, len(np.unique(groups)), np.bincount(labels).max())
        ratios = [(count, parts) for parts in range(2, limit + 1) for count in range(1, parts)]
        if not ratios:
            return np.zeros(len(labels), dtype=bool)
        count, parts = min(ratios, key=lambda ratio: abs(ratio[0] / ratio[1] - share))
        chosen = np.isin(_assign_folds(labels, parts, seed, groups), generator.permutation(parts)[:count])
        return _keep_one_per_class(chosen, labels, groups)
    order = generator.permutation(len(labels))
    chosen = np.zeros(len(order), dtype=bool)
    for number in np.unique(labels):
        indices = order[labels[order] == number]
        chosen[indices[: min(len(indices) - 1, max(1, round(share * len(indices))))]] = True
    return chosen


def draw_validation(labels: np.ndarray, share: float, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return a mask (N,) of the images held out, a stratified share of all.

    If there are groups, or if this would hold out all images of a class, or none of a class that has three or more,
    :func:`draw_share` draws it.
    """
    if groups is None:
        try:
            _, held_out = train_test_split(
                np.arange(len(labels)), test_size=share, stratify=labels, random_state=seed % 2**32
            )
        except ValueError:  # a class is too small
            return draw_share(labels, share, seed)
        chosen = np.zeros(len(labels), dtype=bool)
        chosen[held_out] = True
        counts, held_out_counts = np.bincount(labels), np.bincount(labels[chosen], minlength=labels.max() + 1)
        if (held_out_counts < counts)[counts > 0].all() and held_out_counts[counts > 2].all():
            return chosen
    return draw_share(labels, share, seed, groups)


def draw_fold(labels: np.ndarray, folds: int, fold: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return a mask (N,) of the images of one of k folds, by ``StratifiedKFold`` or ``StratifiedGroupKFold``.

    One image (or group) of a class that is only in this fold is left out of it, so that every class is trained on. The
    folds of one seed are disjoint.
    """
    limits = {"images of the largest class": int(np.bincount(labels).max())}
    if groups is not None:
        limits["groups"] = len(np.unique(groups))
    what = min(limits, key=limits.__getitem__)
    if folds > limits[what]:
        raise InputError(f"data.folds is {folds}, but there are {limits[what]} {what}; lower it.")
    return _keep_one_per_class(_assign_folds(labels, folds, seed, groups) == fold, labels, groups)


def _assign_folds(labels: np.ndarray, count: int, seed: int, groups: np.ndarray | None) -> np.ndarray:
    """Return the fold numbers (N,) of the images."""
    if groups is not None:
        _, firsts, groups = np.unique(groups, return_index=True, return_inverse=True)
        if len(firsts) > MAX_STRATIFIED_GROUPS:
            return _assign_folds(labels[firsts], count, seed, None)[groups]
    if groups is None:
        splitter = StratifiedKFold(count, shuffle=True, random_state=seed % 2**32)
    else:  # ties are broken by group number; shuffled here, since versions of scikit-learn shuffle differently
        groups = np.random.default_rng(seed).permutation(groups.max() + 1)[groups]
        splitter = StratifiedGroupKFold(count)
    folds = np.empty(len(labels), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about small classes, which are reported elsewhere
        for number, (_, indices) in enumerate(splitter.split(labels, labels, groups)):
            folds[indices] = number
    return folds


def _keep_one_per_class(chosen: np.ndarray, labels: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Deselect one image (or group) of each class whose images are all chosen."""
    groups = np.arange(len(labels)) if groups is None else groups
    for number in np.setdiff1d(labels, labels[~chosen]):
        chosen = chosen & (groups != groups[(labels == number).argmax()])
    return chosen
