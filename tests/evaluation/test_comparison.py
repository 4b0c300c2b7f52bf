"""Entries and groups of a comparison: seeds are averaged, what differs is refused."""

import json
import shutil

import pytest

from mixmo.errors import InputError
from mixmo.evaluation.comparison import Networks, parse_entry, read_groups
from mixmo.evaluation.results import EvaluationOptions


def test_a_run_is_not_counted_twice(trained, tmp_path):
    _, run, _ = trained
    for name in ("a", "b"):
        shutil.copytree(run.path, tmp_path / "seeds" / name)
    with pytest.raises(InputError, match="have the same seed 0: one run, counted twice"):
        read_groups([parse_entry(str(tmp_path / "seeds"))], EvaluationOptions())
    with pytest.raises(InputError, match="names a run twice"):
        read_groups([parse_entry(f"{run.path}+{run.path}")], EvaluationOptions())


def copied(run, folder, seed, *replaced):
    shutil.copytree(run.path, folder / str(seed))
    config = folder / str(seed) / "config.yaml"
    text = config.read_text().replace("seed: 0", f"seed: {seed}")
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    return folder / str(seed)


def test_every_fold_has_the_same_seeds(trained, tmp_path):
    """Else two methods of the same networks would differ."""
    _, _, one = trained
    folds = [("folds: null", "folds: 2")]
    paths = [copied(one, tmp_path / "a", seed, *folds) for seed in (0, 1)]
    paths.append(copied(one, tmp_path / "b", 1, *folds, ("fold: 0", "fold: 1")))
    with pytest.raises(InputError, match="a has no run of seed 0 and fold 1, so folds would count differently"):
        read_groups([Networks("a", [[path] for path in paths])], EvaluationOptions())


FREE = [
    ("devices: null", "devices: 1"), ("workers: 2", "workers: 0"), ("accelerator: auto", "accelerator: cpu"),
    ("checkpoint_every_minutes: 10.0", "checkpoint_every_minutes: 5.0"), ("in_memory: null", "in_memory: true"),
    ("num_nodes: null", "num_nodes: 1"), ("checkpoint_every_steps: null", "checkpoint_every_steps: 9"),
]  # fmt: skip


def test_seeds_may_differ_in_what_changes_no_result_and_in_nothing_else(trained, tmp_path):
    _, _, one = trained
    seeds = tmp_path / "seeds"
    copied(one, seeds, 0)
    other = copied(one, seeds, 1, *FREE)
    assert len(read_groups([parse_entry(str(seeds))], EvaluationOptions())[0].entries) == 2
    about = json.loads((other / "environment.json").read_text())
    (name,) = about["conditions"]
    about["conditions"][name] = 2
    (other / "environment.json").write_text(json.dumps(about))
    with pytest.raises(
        InputError, match=r"differ in more than the seed: parts of a batch for batch norms .* is 1 in .* 2 in"
    ):
        read_groups([parse_entry(str(seeds))], EvaluationOptions())
    shutil.rmtree(other)
    copied(one, seeds, 1, ("max_epochs: 2", "max_epochs: 3"))
    with pytest.raises(InputError, match=r"differ in more than the seed: trainer\.max_epochs"):
        read_groups([parse_entry(str(seeds))], EvaluationOptions())
