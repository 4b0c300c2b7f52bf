"""Mutated recipes and sweeps: accepted, or refused with one message before any folder is made; none runs code."""

import random
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import write_images
from pydantic import TypeAdapter, ValidationError

from mixmo import library
from mixmo.cli.main import main
from mixmo.config.recipes import load_recipe
from mixmo.config.settings import known_settings
from mixmo.errors import InputError
from mixmo.sweeps import load_sweep
from mixmo.training import fit as fitting

COUNT, SWEEPS = 2500, 1300
ATTACK = {"class_path": "os.system", "init_args": {"command": "touch attacked"}}
NUMBERS = [0, 1, -1, 2, 7, 10**6, -(10**9), 2**63, 1e-9, 0.5, 1.5, -0.1, 1e30, float("nan"), float("inf"), True]
WORDS = ["", "x", "null", "auto", "gpu", "1e-3", "no way", "../..", "/", "ü", "a" * 300, "torch/x", "folder:no",
         "resnet18", "vit_tiny_patch16_224", "cut", "cutmix", "adamw", "lion", "stages.0", "!!x"]  # fmt: skip
OTHERS = [None, [], {}, [1], ["x"], [[]], {"a": 1}, {"cut": 0.5, "cow": 0.5}, {"cut": -1}, [0.5] * 4, ATTACK,
          {"x": ATTACK}]  # fmt: skip


def value_for(name, rng, share=0.7):
    """Return a value of the setting's type (by default seven times out of ten) or of any type."""
    everything = NUMBERS + WORDS + OTHERS
    fitting = [value for value in everything if fits(value, known_settings()[name])]
    return rng.choice(fitting if fitting and rng.random() < share else everything)


def fits(value, hint):
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def mutated(recipe, rng):
    """Change one to three settings, drop one, or misplace one."""
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
    monkeypatch.setattr(library, "calibrate_run", lambda *arguments: None)
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
        print(f"\n{COUNT} mutated recipes: {found[0]} fit, {found[2]} refused with a message, {len(wrong)} otherwise")
    assert not wrong, "\n".join(f"{lines}\n{content}" for content, _, lines in wrong[:10])


def sweep_of(rng):
    """Return a `sweep` section, mostly with valid values, with parts misplaced."""

    def axis():
        return rng.choice(sorted(known_settings())) if rng.random() < 0.97 else rng.choice(WORDS)

    def values(name):
        return [value_for(name, rng, 0.97) if name in known_settings() else 1 for _ in range(rng.choice([1, 1, 2]))]

    def choices():
        return {rng.choice(WORDS): mutated({}, rng) if rng.random() < 0.9 else rng.choice(OTHERS)}

    names = [axis() for _ in range(rng.choice([1, 1, 2]))]
    section = {"grid": {name: values(name) if rng.random() < 0.9 else choices() for name in names}}
    section |= {"seeds": rng.choice([[0], [0, 1], None])}
    if rng.random() < 0.1:
        section[rng.choice([*section, "x"])] = rng.choice(NUMBERS + WORDS + OTHERS)
    return section


@pytest.mark.torture
def test_mutated_sweeps(tmp_path, capsys):
    rng, found, wrong, file = random.Random(0), Counter(), [], tmp_path / "some.yaml"
    for _ in range(SWEEPS):
        content = yaml.safe_dump({"extends": "digits-cut", "data": {"validation": 0.1}, "sweep": sweep_of(rng)})
        file.write_text(content)
        try:
            trials = load_sweep(file)
            found["read"] += 1
            keys = [trial.key for trial in trials]
            if len(set(keys)) < len(keys) or any(not inside(tmp_path, key) for key in keys):
                wrong.append((content, keys))
        except InputError as error:
            found["refused"] += 1
            if "\n" in str(error) and "settings are wrong:\n" not in str(error):
                wrong.append((content, str(error)))
        except Exception as error:
            wrong.append((content, repr(error)))
    with capsys.disabled():
        print(f"\n{SWEEPS} mutated sweeps: {found['read']} read, {found['refused']} refused, {len(wrong)} else")
    assert not wrong, "\n".join(f"{what}\n{content}" for content, what in wrong[:5])


def inside(folder, key):
    return (folder / key).resolve().parent.parent == folder.resolve() and len(Path(key).parts) == 2
