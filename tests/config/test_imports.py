"""A user's own kinds and objectives: imported where the user allows it, and never otherwise."""

import sys

import pytest
import yaml
from conftest import write_images

import mixmo
from mixmo.cli.main import main
from mixmo.config.recipes import load_recipe
from mixmo.errors import InputError
from mixmo.runs import RunFolder
from mixmo.training.user_code import resolve

CODE = """
from pathlib import Path

from mixmo import mixed_cross_entropy
from mixmo.masks.splits import vertical

Path("imported").touch()
number = 5


def stripes(ratios, shape, generator=None, roles=None):
    return vertical(ratios, shape, generator, roles)


def quarter(ratios, shape, generator=None, roles=None):
    return vertical(ratios, shape, generator, roles) / 4


def twice(logits, batch):
    return 2 * mixed_cross_entropy(logits, batch.targets, batch.weights)


def pair(logits, batch):
    return logits.sum((0, 2))


def fails(*arguments):
    raise RuntimeError("no luck")
"""
ALLOWED = "--allow_imports=[ownwork.parts]"
SMALL = {
    "extends": "digits-cut",
    "data": {"name": "folder:pictures", "batch_size": 8, "padding": 1, "channels": 3, "image_size": None},
    "trainer": {"max_epochs": 1, "limit_train_batches": 1},
    "mixer": {"kind": "ownwork.parts:stripes", "probability": 1.0},
    "objective": {"name": "ownwork.parts:twice"},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with pictures and a user's package that creates a file when imported."""
    (tmp_path / "ownwork").mkdir()
    (tmp_path / "ownwork" / "__init__.py").touch()
    (tmp_path / "ownwork" / "parts.py").write_text(CODE)
    write_images(tmp_path / "pictures" / "train")
    write_images(tmp_path / "pictures" / "test", count=4, seed=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield tmp_path
    forget()


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "ownwork"]:
        del sys.modules[name]


def write(folder, **changes):
    (folder / "own.yaml").write_text(yaml.safe_dump(SMALL | changes))
    return "own.yaml"


def untouched(folder):
    return not (folder / "imported").exists() and "ownwork" not in sys.modules


def test_a_recipe_that_allows_its_module_trains_with_it(folder, observed):
    assert main(["fit", write(folder, allow_imports=["ownwork.parts"]), "--run=run"]) == 0
    assert (folder / "imported").exists() and observed.shaped == [True]
    kept = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert kept["allow_imports"] == ["ownwork.parts"] and kept["mixer"]["kind"] == "ownwork.parts:stripes"


def test_the_objective_is_what_is_trained_on(folder):
    losses = []
    for name, objective in (("one", "mixed_cross_entropy"), ("two", "ownwork.parts:twice")):
        assert main(["fit", write(folder, objective={"name": objective}), ALLOWED, f"--run={name}"]) == 0
        losses.append(float(RunFolder(name).read_metrics()[0]["train_loss"]))
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-4)


def test_a_resumed_run_has_the_same_code(folder, capsys):
    assert main(["fit", write(folder, allow_imports=["ownwork.parts"]), "--run=run"]) == 0
    module = folder / "ownwork" / "parts.py"
    module.write_text(module.read_text() + "\n# changed")
    forget()
    again = ["fit", "run", ALLOWED, "--trainer.max_epochs=2"]
    assert main(again) == 2
    assert "digest of the code of ownwork.parts is" in capsys.readouterr().err
    assert main([*again, "--accept_changes"]) == 0 and len(RunFolder("run").read_metrics()) == 2


def test_kinds_with_probabilities_may_be_ones_own(folder):
    kinds = {"cut": 0.5, "ownwork.parts:stripes": 0.5}
    assert main(["fit", write(folder, mixer={"kind": kinds}), ALLOWED, "--run=run"]) == 0


@pytest.mark.parametrize("allowed", [[], ["ownwork"], ["ownwork.other"], ["ownwork.parts.stripes"], ["*"]])
def test_nothing_is_imported_that_the_recipe_does_not_list(folder, allowed, capsys):
    for changes in ({"objective": {}}, {"mixer": {}}):
        assert main(["fit", write(folder, allow_imports=allowed, **changes), "--run=run"]) == 2
        assert "is not allowed; if you trust it, allow it with allow_imports: [" in capsys.readouterr().err
    assert untouched(folder) and not (folder / "run").exists()


@pytest.fixture
def shared(folder):
    """A run whose author allowed the imports, copied to another machine."""
    assert main(["fit", write(folder, allow_imports=["ownwork.parts"]), "--run=shared"]) == 0
    file = folder / "shared" / "config.yaml"
    content = yaml.safe_load(file.read_text())
    content["trainer"]["max_epochs"] = 2  # so that there is something to resume
    file.write_text(yaml.safe_dump(content))
    (folder / "imported").unlink()
    forget()
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "shared"],
        ["fit", "shared/config.yaml", "--run=mine"],
        ["fit", "shared/renamed.yaml", "--run=mine"],
        ["preview", "shared/config.yaml", "--out=pages"],
    ],
    ids=" ".join,
)
def test_a_runs_own_list_allows_nothing(shared, words, few_masks, capsys):
    config = shared / "shared" / "config.yaml"
    (shared / "shared" / "renamed.yaml").write_bytes(config.read_bytes())
    assert main(words) == 2
    assert "allow_imports: [ownwork.parts]" in capsys.readouterr().err
    assert untouched(shared) and not (shared / "mine").exists() and not (shared / "pages").exists()
    assert main([*words, ALLOWED]) == 0
    assert (shared / "imported").exists()


def test_a_configuration_on_its_own_allows_nothing(shared):
    (shared / "alone").mkdir()
    (shared / "alone" / "config.yaml").write_bytes((shared / "shared" / "config.yaml").read_bytes())
    assert "allow_imports" not in load_recipe("alone/config.yaml")
    assert main(["fit", "alone/config.yaml", "--run=mine"]) == 2 and untouched(shared)


def test_evaluation_needs_no_imports_and_does_none(shared):
    """Neither masks nor the objective are used after training."""
    assert mixmo.load("shared").num_members == 2
    assert main(["test", "shared"]) == 0
    assert main(["compare", "shared", "--out=table"]) == 0
    assert untouched(shared)


def test_a_resumed_run_takes_no_other_seed(shared, capsys):
    assert main(["fit", "shared", ALLOWED, "--seed=5"]) == 2
    assert "seed is 5, and was 0. Change" in capsys.readouterr().err and untouched(shared)


@pytest.mark.parametrize(
    ("section", "name", "message"),
    [
        ("mixer", "ownwork.parts:quarter", "sum to 0.25, not one"),
        ("mixer", "ownwork.parts:fails", "fails on maps of (16, 8, 8) with roles of shape (2,): no luck"),
        ("mixer", "ownwork.parts:number", "is int, not a function"),
        ("mixer", "ownwork.parts:nothing", "cannot be imported: module 'ownwork.parts' has no attribute 'nothing'"),
        ("mixer", "ownwork.parts:", "is not an import path"),
        ("mixer", "ownwork/parts:stripes", "is not an import path"),
        ("objective", "ownwork.parts:fails", "fails on a batch of two mixtures: no luck"),
        ("objective", "ownwork.parts:pair", "does not return a scalar tensor that has a gradient"),
        ("objective", "focal", "unknown objective 'focal'"),
    ],
)
def test_what_is_wrong_with_ones_own_code_is_one_sentence(folder, section, name, message, capsys):
    changes = {"mixer": {}, "objective": {}} | {section: {"kind" if section == "mixer" else "name": name}}
    assert main(["fit", write(folder, **changes), ALLOWED, "--run=run"]) == 2
    assert message in capsys.readouterr().err and not (folder / "run").exists()


@pytest.mark.parametrize("name", ["os", "os:", ":getcwd", "os.path:a.b", "..os:x", "os:getcwd()", "a b:c", ""])
def test_a_malformed_path_is_refused_whatever_is_allowed(name):
    with pytest.raises(InputError, match="not an import path"):
        resolve(name, [name, "os", name.partition(":")[0]])
