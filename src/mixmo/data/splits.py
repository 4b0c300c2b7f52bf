"""Splits of images: a share or a fold of each class, without dividing any group of images."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from mixmo.errors import InputError

FINEST = 20
"""Most parts that groups are divided into; some of them make up a share."""
MANY = 1000
"""Above this many groups each counts once, by the class of its first image: as even and much faster."""


def draw_share(labels: np.ndarray, share: float, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return which images (N,) are drawn: a share of each class, at least one, and never its last.

    Groups are drawn whole, by scikit-learn's ``StratifiedGroupKFold`` with the number of parts of which some come
    closest to the share; at least one group of every class stays.

    Example:
        >>> chosen = draw_share(np.array([0] * 8 + [1, 1, 2]), 0.25, seed=0)
        >>> [int(part.sum()) for part in np.split(chosen, [8, 10])]
        [2, 1, 0]
        >>> draw_share(np.array([0, 0, 1, 1] * 2), 0.25, seed=0, groups=np.arange(8) // 4).tolist()
        [True, True, True, True, False, False, False, False]
    """
    generator = np.random.default_rng(seed)
    if groups is not None:
        finest = min(FINEST, len(np.unique(groups)), np.bincount(labels).max())
        ratios = [(some, parts) for parts in range(2, finest + 1) for some in range(1, parts)]
        if not ratios:
            return np.zeros(len(labels), dtype=bool)
        some, parts = min(ratios, key=lambda ratio: abs(ratio[0] / ratio[1] - share))
        taken = generator.permutation(parts)[:some]
        return _leave_some(np.isin(_assign_folds(labels, parts, seed, groups), taken), labels, groups)
    order = generator.permutation(len(labels))
    chosen = np.zeros(len(order), dtype=bool)
    for number in np.unique(labels):
        own = order[labels[order] == number]
        chosen[own[: min(len(own) - 1, max(1, round(share * len(own))))]] = True
    return chosen


def draw_validation(labels: np.ndarray, share: float, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return which images (N,) are held out: a stratified share of all.

    With groups, or classes too small to be in both parts of such a split, :func:`draw_share` draws them.
    """
    if groups is None:
        try:
            _, held_out = train_test_split(
                np.arange(len(labels)), test_size=share, stratify=labels, random_state=seed % 2**32
            )
        except ValueError:  # a class is too small for its part of the share
            return draw_share(labels, share, seed)
        chosen = np.zeros(len(labels), dtype=bool)
        chosen[held_out] = True
        if len(np.unique(labels[~chosen])) == len(np.unique(labels)):
            return chosen
    return draw_share(labels, share, seed, groups)


def draw_fold(labels: np.ndarray, folds: int, fold: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return which images (N,) are in one of k folds, by ``StratifiedKFold`` or ``StratifiedGroupKFold``.

    A class that would be in no other fold stays out of this one, so that every class is trained on. The seed is the
    same for all k.
    """
    limits = {"images of the largest class": int(np.bincount(labels).max())}
    if groups is not None:
        limits["groups"] = len(np.unique(groups))
    what = min(limits, key=limits.__getitem__)
    if folds > limits[what]:
        raise InputError(f"data.folds is {folds}, but there are {limits[what]} {what}; lower it.")
    return _leave_some(_assign_folds(labels, folds, seed, groups) == fold, labels, groups)


def _assign_folds(labels: np.ndarray, count: int, seed: int, groups: np.ndarray | None) -> np.ndarray:
    """Return the fold (N,) of each image."""
    if groups is not None:
        _, firsts, groups = np.unique(groups, return_index=True, return_inverse=True)
        if len(firsts) > MANY:
            return _assign_folds(labels[firsts], count, seed, None)[groups]
    if groups is None:
        splitter = StratifiedKFold(count, shuffle=True, random_state=seed % 2**32)
    else:  # ties are broken by number; shuffled here, since scikit-learn's versions shuffle differently
        groups = np.random.default_rng(seed).permutation(groups.max() + 1)[groups]
        splitter = StratifiedGroupKFold(count)
    folds = np.empty(len(labels), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about small classes, which are reported elsewhere
        for number, (_, own) in enumerate(splitter.split(labels, labels, groups)):
            folds[own] = number
    return folds


def _leave_some(chosen: np.ndarray, labels: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Return the drawn images, less one (or one group) of each class that would be drawn whole."""
    groups = np.arange(len(labels)) if groups is None else groups
    for number in np.setdiff1d(labels, labels[~chosen]):
        chosen = chosen & (groups != groups[(labels == number).argmax()])
    return chosen
