"""Entries and groups of a comparison: seeds are averaged, what differs is refused."""

import json
import math
import shutil

import numpy as np
import pytest

from mixmo.errors import InputError
from mixmo.evaluation.comparison import read_groups
from mixmo.evaluation.results import EvaluationOptions


def test_runs_have_metrics_and_costs_and_files_have_no_costs(trained, tmp_path):
    _, two, one = trained
    (tmp_path / "seeds").mkdir()
    for seed in (0, 1):
        shutil.copytree(one.path, tmp_path / "seeds" / str(seed))
        config = tmp_path / "seeds" / str(seed) / "config.yaml"
        config.write_text(config.read_text().replace("seed: 0", f"seed: {seed}"))
    targets = np.arange(3).repeat(4)
    np.savez(tmp_path / "theirs.npz", logits=np.eye(3)[targets], targets=targets)
    words = [f"both={two.path}+{one.path}", f"{tmp_path}/seeds", f"{tmp_path}/theirs.npz"]
    both, seeds, theirs = read_groups(words, EvaluationOptions())
    assert [group.name for group in (both, seeds, theirs)] == ["both", "seeds", "theirs.npz"]
    (entry,) = both.entries
    assert len(entry.runs) == 2 and len(entry.result.metrics.members) == 3
    assert entry.flat() == pytest.approx(entry.result.flat() | entry.costs, nan_ok=True)
    assert both.mean("parameters") == entry.costs["parameters"] > seeds.mean("parameters") > 0
    assert len(seeds.entries) == 2 and seeds.deviation("accuracy") == 0 and math.isnan(seeds.mean("d_re"))
    assert theirs.entries[0].costs == {} and math.isnan(theirs.mean("parameters"))
    assert theirs.mean("accuracy") == 1 and math.isnan(theirs.deviation("accuracy"))


def test_other_images_are_refused(tmp_path):
    for name, count in (("two", 2), ("three", 3)):
        np.savez(tmp_path / f"{name}.npz", logits=np.eye(4)[:count], targets=np.arange(count))
    with pytest.raises(InputError, match="was tested on other images or classes"):
        read_groups([f"{tmp_path}/two.npz", f"{tmp_path}/three.npz"], EvaluationOptions())
    with pytest.raises(InputError, match="is named twice"):
        read_groups([f"{tmp_path}/two.npz"] * 2, EvaluationOptions())


def test_a_run_is_not_counted_twice(trained, tmp_path):
    _, run, _ = trained
    for name in ("a", "b"):
        shutil.copytree(run.path, tmp_path / "seeds" / name)
    with pytest.raises(InputError, match="have the same seed 0: one run, counted twice"):
        read_groups([str(tmp_path / "seeds")], EvaluationOptions())
    with pytest.raises(InputError, match="names a run twice"):
        read_groups([f"{run.path}+{run.path}"], EvaluationOptions())


def copied(run, folder, seed, *replaced):
    shutil.copytree(run.path, folder / str(seed))
    config = folder / str(seed) / "config.yaml"
    text = config.read_text().replace("seed: 0", f"seed: {seed}")
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    return folder / str(seed)


FREE = [
    ("devices: null", "devices: 1"),
    ("checkpoint_every_minutes: 10.0", "checkpoint_every_minutes: 5.0"), ("in_memory: null", "in_memory: true"),
    ("num_nodes: null", "num_nodes: 1"), ("checkpoint_every_steps: null", "checkpoint_every_steps: 9"),
]  # fmt: skip


def test_seeds_may_differ_in_what_changes_no_result_and_in_nothing_else(trained, tmp_path):
    _, _, one = trained
    seeds = tmp_path / "seeds"
    copied(one, seeds, 0)
    other = copied(one, seeds, 1, *FREE)
    assert len(read_groups([str(seeds)], EvaluationOptions())[0].entries) == 2
    about = json.loads((other / "environment.json").read_text())
    (name,) = about["conditions"]
    about["conditions"][name] = 2
    (other / "environment.json").write_text(json.dumps(about))
    with pytest.raises(
        InputError, match=r"differ in more than the seed: parts of a batch for batch norms .* is 1 in .* 2 in"
    ):
        read_groups([str(seeds)], EvaluationOptions())
    shutil.rmtree(other)
    copied(one, seeds, 1, ("max_epochs: 2", "max_epochs: 3"))
    with pytest.raises(InputError, match=r"differ in more than the seed: trainer\.max_epochs"):
        read_groups([str(seeds)], EvaluationOptions())
