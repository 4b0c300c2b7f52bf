"""Drawn splits and folds: stratified, seeded, with undivided groups, and every class in the training set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from mixmo.data.splits import draw_fold, draw_share, draw_validation
from mixmo.errors import InputError

cases = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=80)
"""Class and group of each image."""


def check(chosen, labels, groups):
    """Check that every class keeps a training image, and that no group is divided."""
    assert set(labels[~chosen]) == set(labels)
    if groups is not None:
        assert not set(groups[chosen]) & set(groups[~chosen])


@settings(max_examples=60)
@given(cases, st.sampled_from([0.05, 0.1, 0.2, 0.35, 0.5, 0.9]), st.integers(0, 99), st.booleans())
def test_a_share_leaves_every_class_something(images, share, seed, grouped):
    labels, groups = np.array(images).T
    groups = groups if grouped else None
    for draw in (draw_share, draw_validation):
        chosen = draw(labels, share, seed, groups)
        check(chosen, labels, groups)
        assert (chosen == draw(labels, share, seed, groups)).all()


@pytest.mark.parametrize("counts", [(48, 16, 4), (500, 9), (60, 20, 3, 2)])
def test_rare_classes_are_validated_on(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    for seed in range(6):
        held_out = np.bincount(labels[draw_validation(labels, 0.05, seed)], minlength=len(counts))
        assert all(held >= 1 for held, count in zip(held_out, counts, strict=True) if count > 2)


@settings(max_examples=60)
@given(cases, st.integers(2, 6), st.integers(0, 99), st.booleans())
def test_folds_are_disjoint_and_hold_all_but_single_images(images, count, seed, grouped):
    labels, groups = np.array(images).T
    groups = groups if grouped else None
    most = min(np.bincount(labels).max(), len(labels) if groups is None else len(set(groups)))
    if count > most:
        with pytest.raises(InputError, match=f"data.folds is {count}, but there are {most} "):
            draw_fold(labels, count, 0, seed, groups)
        return
    folds = np.array([draw_fold(labels, count, fold, seed, groups) for fold in range(count)])
    for chosen in folds:
        check(chosen, labels, groups)
    assert (folds.sum(0) <= 1).all()
    kin = np.arange(len(labels)) if groups is None else groups
    assert len(set(kin[folds.sum(0) == 0])) <= len(set(labels))  # tested nowhere: what a class has to train on


def test_folds_are_those_of_scikit_learn():
    labels = np.random.default_rng(0).integers(0, 3, 60)
    parts = StratifiedKFold(4, shuffle=True, random_state=7).split(labels, labels)
    for fold, (_, expected) in enumerate(parts):
        assert np.flatnonzero(draw_fold(labels, 4, fold, 7)).tolist() == expected.tolist()


@pytest.mark.parametrize(("share", "count"), [(0.1, 100), (0.2, 5000), (0.35, 100), (0.5, 100)])
def test_a_share_of_groups_is_about_the_share_of_each_class(share, count):
    rng = np.random.default_rng(0)
    groups = rng.integers(0, count, 10 * count)
    labels = (rng.random(10 * count) < np.where(groups % 3, 0.2, 0.7)).astype(int)
    drawn = [draw_share(labels, share, seed, groups) for seed in range(3)]
    for chosen in drawn:
        for label in (0, 1):
            assert chosen[labels == label].mean() == pytest.approx(share, abs=0.03)
    assert (drawn[0] != drawn[1]).any() and (drawn[1] != drawn[2]).any()


def test_a_single_group_is_trained_on():
    assert not draw_share(np.array([0, 1, 0, 1]), 0.5, 0, np.zeros(4, dtype=int)).any()
