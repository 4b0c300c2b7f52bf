"""Mutated recipes: each trains, or is refused in one sentence before any folder is made; none runs code."""

import random
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import write_images

from mixmo.cli.main import main
from mixmo.config.checking import checked
from mixmo.config.plan import known_settings
from mixmo.config.recipes import load_recipe
from mixmo.errors import InputError
from mixmo.training import fit as fitting

COUNT = 2000
ATTACK = {"class_path": "os.system", "init_args": {"command": "touch attacked"}}
NUMBERS = [0, 1, -1, 2, 7, 10**6, -(10**9), 2**63, 1e-9, 0.5, 1.5, -0.1, 1e30, float("nan"), float("inf"), True]
WORDS = ["", "x", "null", "auto", "gpu", "1e-3", "no way", "../..", "/", "ü", "a" * 300, "torch/x", "folder:no",
         "resnet18", "vit_tiny_patch16_224", "cut", "cutmix", "adamw", "lion", "stages.0", "!!x"]  # fmt: skip
OTHERS = [None, [], {}, [1], ["x"], [[]], {"a": 1}, {"cut": 0.5, "cow": 0.5}, {"cut": -1}, [0.5] * 4, ATTACK,
          {"x": ATTACK}]  # fmt: skip


def value_for(name, rng):
    """Return a value of the setting's type, seven times of ten, or any."""
    everything = NUMBERS + WORDS + OTHERS
    fitting = [value for value in everything if fits(value, known_settings()[name])]
    return rng.choice(fitting if fitting and rng.random() < 0.7 else everything)


def fits(value, hint):
    try:
        checked(value, hint, "")
    except InputError:
        return False
    return True


def mutated(recipe, rng):
    """Change one to three settings, drop one, or put one in a wrong place."""
    changed = {section: dict(value) if isinstance(value, dict) else value for section, value in recipe.items()}
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        name = rng.choice(sorted(known_settings()))
        section, _, key = name.partition(".")
        value = value_for(name, rng)
        kind = rng.random()
        if kind < 0.85 and key:
            part = changed.setdefault(section, {})
            if isinstance(part, dict):
                part[key] = value
        elif kind < 0.95:
            changed[section] = value
        else:
            changed[rng.choice(WORDS)] = value
    return changed


@pytest.mark.torture
def test_mutated_recipes(tmp_path, monkeypatch, capsys):
    write_images(tmp_path / "pictures" / "train")
    write_images(tmp_path / "pictures" / "test")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fitting, "train", lambda *arguments: None)
    recipe, rng, found, wrong = load_recipe("digits-cut"), random.Random(0), Counter(), []
    own = {"name": "folder:pictures", "batch_size": 8, "channels": 3, "image_size": None, "validation": 0.25}
    recipe["data"] = {**recipe["data"], **own}
    for number in range(COUNT):
        content = yaml.safe_dump(mutated(recipe, rng))
        Path("own.yaml").write_text(content)
        code = main(["fit", "own.yaml", "--run", f"run-{number}"])
        lines = [line for line in capsys.readouterr().err.splitlines() if line]
        found[code] += 1
        if code not in (0, 2) or (code == 2 and Path(f"run-{number}").exists()) or (code == 2 and len(lines) > 3):
            wrong.append((content, code, lines))
        assert not Path("attacked").exists(), content
    with capsys.disabled():
        print(f"\n{COUNT} mutated recipes: {found[0]} fit, {found[2]} refused in a sentence, {len(wrong)} else")
    assert not wrong, "\n".join(f"{lines}\n{content}" for content, _, lines in wrong[:10])
