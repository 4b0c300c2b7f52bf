"""Options of every command: no abbreviations, and flags work in any position."""

import re
import shutil
import subprocess
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest

from mixmo.cli.main import COMMANDS, main
from mixmo.config.settings import known_settings
from mixmo.errors import InputError
from mixmo.runs import RunFolder
from mixmo.validation import hints_of

WORDS = {
    "fit": ["digits-cut"], "preview": ["digits-cut"], "sweep": ["own.yaml"], "test": ["a"], "compare": ["a"],
    "predict": ["a", "b"], "export": ["a", "--format=onnx"], "completion": ["bash"],
}  # fmt: skip
"""The arguments that each command requires."""

DESCRIBED = {name: import_module(f"mixmo.cli.{name}").COMMAND for name in COMMANDS if name != "recipes"}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("extends: digits-cut\nsweep: {seeds: [0]}\n")


def options_of(command):
    """Return the annotation of every option that has a name."""
    own = DESCRIBED[command]
    found = {name: hint for each in own.options for name, hint in hints_of(each).items()}
    found |= known_settings() if own.takes_settings else {}
    return {name: hint for name, hint in found.items() if name not in own.positional}


@pytest.mark.parametrize("command", DESCRIBED)
def test_no_option_is_abbreviated(command, capsys):
    known = options_of(command)
    shortened = {name[:-cut] for name in known for cut in (1, 4)} - {*known}
    for name in sorted(name for name in shortened if len(name) > 2 and not name.endswith(".")):
        for words in ([f"--{name}"], [f"--{name}=1"]):
            with pytest.raises(InputError, match=f"unknown option '--{name}'"):
                DESCRIBED[command].parse([*WORDS.get(command, []), *words])
    assert main([command, *WORDS.get(command, []), "--zzz"]) == 2
    assert "unknown option '--zzz'" in capsys.readouterr().err


@pytest.mark.parametrize("command", DESCRIBED)
def test_flags_are_true_bare_and_take_a_value_that_is_never_ignored(command):
    flags = [name for name, hint in options_of(command).items() if hint in (bool, bool | None)]
    assert flags or command == "completion"
    for name in flags:
        spellings = {True: ([f"--{name}"], [f"--{name}", "TRUE"], [f"--{name}=yes"])}
        spellings[False] = ([f"--{name}=False"], [f"--{name}", "no"])
        for value, cases in spellings.items():
            for words in cases:
                chosen, settings = DESCRIBED[command].parse([*words, *WORDS.get(command, [])])
                found = {key: own for each in chosen for key, own in asdict(each).items()} | settings
                assert found[name] is value, words
        if name not in known_settings():
            with pytest.raises(InputError, match=f"{name} is 'maybe'; it must be true or false"):
                DESCRIBED[command].parse([f"--{name}=maybe", *WORDS.get(command, [])])


def test_all_that_is_wrong_is_said_at_once(capsys):
    assert main(["fit", "digits-cut", "--data.batch_siz=3", "--sed", "4"]) == 2
    said = capsys.readouterr().err
    assert "did you mean '--data.batch_size'" in said and "did you mean '--seed'" in said
    assert main(["fit", "digits-cut", "--data.batch_size=0", "--data.flip=maybe", "--mixer.kind=cutt"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mixmo: 3 settings are wrong") and said.count("\n") == 1
    assert all(name in said for name in ("data.batch_size is 0", "data.flip is 'maybe'", "did you mean 'cut'"))


def test_what_is_missing_is_named(capsys):
    for words, said in {
        ("fit",): "fit needs recipe", ("predict", "a"): "predict needs images", ("export", "a"): "needs --format",
        ("sweep",): "sweep needs file", ("preview", "--seed"): "--seed needs a value", ("compare",): "needs networks",
        ("export", "a", "b", "--format=onnx"): "unknown argument 'b'",
    }.items():  # fmt: skip
        assert main(list(words)) == 2
        assert said in capsys.readouterr().err, words


@pytest.mark.parametrize("command", DESCRIBED)
def test_help_names_every_option_with_its_meaning(command, capsys):
    assert main(["help", command]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name in options_of(command):
        assert f"--{name}" in said
    assert main([command, "--help"]) == 0


def test_help_says_what_values_an_option_takes(capsys):
    """In plain words and with the range, without Python or Sphinx notation."""
    assert main(["help", "fit"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not constant. (type: number, 0 to 1, default: 0.5)" in said
    assert "(type: integer, ≥ 0, default: 0)" in said and "(type: integer, ≥ 1 or null, default: null)" in said
    assert not re.search(r"Optional\[|Literal\[|Union\[|:\w+:`", said)


def test_help_of_a_recipe_has_its_settings(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("extends: [digits-cut]\nmixer: {probability: 0.25}\n")
    expected = {"digits-cut": "0.5", "mine.yaml": "0.25", "": "0.5", "no-recipe": "0.5"}
    for recipe, probability in expected.items():
        assert main(["fit", "--run", "mine.yaml", *[recipe] * bool(recipe), "--help"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"not constant. (type: number, 0 to 1, default: {probability})" in said
        known = recipe in ("digits-cut", "mine.yaml")
        assert ("default: digits)" in said) == (f"Default values are those of {recipe}." in said) == known


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_completes_commands_and_options(capsys):
    assert main(["completion", "bash"]) == 0
    script = (
        capsys.readouterr().out
        + """
    complete_words() {
        COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=(); _shtab_mixmo; echo "${COMPREPLY[@]}"
    }
    complete_words mixmo pre; complete_words mixmo fit --trainer.acc; complete_words mixmo predict --max
    """
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "predict",
        "preview",
        "--trainer.accelerator",
        "--trainer.accumulate",
        "--max_error_rate",
    ]


def test_flags_among_settings(pictures, capsys):
    """Also when resuming a run: only true or false is accepted for --accept_changes."""
    words = ["--data.padding=1", "--data.batch_size=8", "--data.validation=0", "--data.flip", "TRUE"]
    words += ["--data.image_size=null", "--data.channels=3", "--model.compile", "No", "--data.download"]
    assert (
        main(["fit", "digits-cut", f"--data.name=folder:{pictures}", *words, "--trainer.max_epochs=1", "--run=a"]) == 0
    )
    assert RunFolder("a").config()["data"]["flip"] is True and RunFolder("a").config()["model"]["compile"] is False
    config = RunFolder("a").config_file
    config.write_text(config.read_text().replace("max_epochs: 1", "max_epochs: 2").replace("alpha: 2", "alpha: 1"))
    for refused in ([], ["--accept_changes=false"], ["--accept_changes", "No"], ["--accept_changes=ja"]):
        assert main(["fit", "a", *refused]) == 2
        said = capsys.readouterr().err
        assert ("'ja'; it must be true or false" if "ja" in str(refused) else "--accept_changes") in said
    assert main(["fit", "a", "--accept_changes", "True"]) == 0
    assert main(["fit", "digits-cut", "--accept_changes"]) == 2
    assert "is for a run's folder" in capsys.readouterr().err


def test_an_unknown_option_is_answered_as_one(capsys):
    for command in ("fit", "preview", "sweep"):
        for words in (["--quiet", "--seed=1"], ["--quiet"], ["--zzz", "1"]):
            assert main([command, *WORDS[command], *words]) == 2
            assert f"unknown option '{words[0]}'; " in (error := capsys.readouterr().err)
        assert f"none has a similar name; `mixmo {command} --help` lists them." in error
