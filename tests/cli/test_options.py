"""Options of every command: none is abbreviated, and flags are true or false wherever they stand."""

import pytest
from jsonargparse import ArgumentParser

from mixmo.cli.main import COMMANDS, main
from mixmo.config.plan import known_settings, pairs
from mixmo.errors import InputError
from mixmo.runs import Run

RECIPE_FIRST = {"fit": ["digits-cut"], "preview": ["digits-cut"], "sweep": ["own.yaml"]}
OWN = {"fit": ["run", "accept_changes"], "preview": ["out"], "sweep": ["out", "ray", "address", "cpus", "gpus"]}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("extends: digits-cut\nsweep: {seeds: [0]}\n")


@pytest.fixture
def parser_of(monkeypatch):
    """Returns the parser of a command that has one, as the command builds it, and what it made of its words."""
    seen = []
    honest = ArgumentParser.parse_args

    def watched(self, words):
        seen.append((self, honest(self, words)))
        raise InputError("seen.")

    monkeypatch.setattr(ArgumentParser, "parse_args", watched)

    def parsed(command, *words):
        seen.clear()
        main([command, *RECIPE_FIRST.get(command, []), *words])
        return seen[0] if seen else (None, None)

    return parsed


POSITIONAL = {"test": ["a"], "compare": ["a"], "predict": ["a", "b"], "export": ["a", "--format=onnx"]}


def options_of(command, parser_of):
    if command in RECIPE_FIRST:
        return [f"--{name}" for name in [*known_settings(), *OWN[command]]]
    parser, _ = parser_of(command, *POSITIONAL.get(command, []))
    return [name for name in parser._option_string_actions if name.startswith("--")]


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"recipes"}))  # which has none
def test_no_option_is_abbreviated(command, parser_of, monkeypatch, capsys):
    known = options_of(command, parser_of)
    monkeypatch.undo()
    shortened = {name[:-cut] for name in known for cut in (1, 4)} - {*known}
    for number, name in enumerate(sorted(name for name in shortened if len(name) > 4 and not name.endswith("."))):
        if command in RECIPE_FIRST and number % 20:  # the whole command takes a tenth of a second
            with pytest.raises(InputError, match="unknown setting '"):
                pairs([f"{name}=1"], dict.fromkeys((each.removeprefix("--") for each in known), str))
            continue
        for words in ([name], [f"{name}=1"]):
            assert main([command, *RECIPE_FIRST.get(command, POSITIONAL.get(command, [])), *words]) == 2, name
            assert f"mixmo: unknown {'setting' if command in RECIPE_FIRST else 'option'} '" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"fit", "preview", "recipes"}))
def test_flags_are_true_bare_and_take_a_value_that_is_never_ignored(command, parser_of, monkeypatch, capsys):
    positional = POSITIONAL.get(command, [])
    parser, _ = parser_of(command, *positional)
    actions = [action for action in parser._actions if action.const is True or isinstance(action.default, bool)]
    for name in [action.option_strings[0] for action in actions]:
        key = name.removeprefix("--")
        spellings = {True: ([name], [name, "TRUE"], [f"{name}=yes"]), False: ([f"{name}=False"], [name, "no"])}
        for value, cases in spellings.items():
            for words in cases:
                assert parser_of(command, *words, *positional)[1][key] is value, words
        assert parser_of(command, f"{name}=maybe", *positional) == (None, None)
        assert "'maybe'; it is true or false" in capsys.readouterr().err
    assert actions


def test_flags_among_settings(pictures, capsys):
    """Also for a run that goes on: nothing but true or false is taken for accepting its changes."""
    words = ["--data.padding=1", "--data.batch_size=8", "--data.validation=0", "--data.flip", "TRUE"]
    words += ["--data.image_size=null", "--data.channels=3", "--model.compile", "No", "--data.download"]
    assert (
        main(["fit", "digits-cut", f"--data.name=folder:{pictures}", *words, "--trainer.max_epochs=1", "--run=a"]) == 0
    )
    assert Run("a").config()["data"]["flip"] is True and Run("a").config()["model"]["compile"] is False
    config = Run("a").config_file
    config.write_text(config.read_text().replace("max_epochs: 1", "max_epochs: 2").replace("alpha: 2", "alpha: 1"))
    for refused in ([], ["--accept_changes=false"], ["--accept_changes", "No"], ["--accept_changes=ja"]):
        assert main(["fit", "a", *refused]) == 2
        said = capsys.readouterr().err
        assert ("'ja'; it is true or false" if "ja" in str(refused) else "--accept_changes") in said
    assert main(["fit", "a", "--accept_changes", "True"]) == 0
    assert main(["fit", "digits-cut", "--accept_changes"]) == 2
    assert "is for a run's folder" in capsys.readouterr().err


def test_an_unknown_option_is_answered_as_one(capsys):
    for command in ("fit", "preview", "sweep"):
        for words in (["--quiet", "--seed=1"], ["--quiet"], ["--zzz", "1"]):
            assert main([command, *RECIPE_FIRST[command], *words]) == 2
            assert f"unknown setting '{words[0][2:]}'; " in (error := capsys.readouterr().err)
        assert f"none has a similar name; `mixmo {command} --help` lists them." in error
