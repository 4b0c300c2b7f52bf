"""Terminal messages: one line of bounded length that names the problem and contains no control sequences."""

import contextlib
import io
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixmo.cli.main import main, show_log
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.config.settings import known_settings
from mixmo.errors import InputError
from mixmo.escaping import message

PARTS = ["a", "ab cd ", "x'y", '"', "[1, ", "{a: 1}, ", "\x1b[31m", "\u202e", "é\n", "a/", "..\\", "💥", "0"]
huge = st.builds(lambda part, count: part * count, st.sampled_from(PARTS), st.integers(300, 3000))


def refused(*words):
    """Return a command's error message for bad input, after checks that apply to every message."""
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert main(list(words)) == 2
    line = err.getvalue()
    assert line.startswith("mixmo: ") and line.count("\n") == 1 and line[:-1].isprintable()
    assert len(line) < 700, line
    return line


@settings(max_examples=40)
@given(name=st.sampled_from(sorted(known_settings())), value=huge)
def test_a_huge_value_leaves_the_sentence_and_the_settings_name(name, value):
    try:
        make_plan(load_recipe("digits-cut"), [f"--{name}={value}"])
    except InputError as error:
        said = message(str(error))
        assert len(said) < 650 and said.isprintable() and said.endswith((".", "?")), said
        assert name.rpartition(".")[2].removesuffix("s") in said


@pytest.mark.parametrize("part", PARTS[::3])
@pytest.mark.parametrize(
    "words",
    [
        ["{}"],
        ["fit", "{}"],
        ["fit", "{}.yaml"],
        ["fit", "digits-cut", "--{}=1"],
        ["fit", "digits-cut", "{}"],
        ["fit", "digits-cut", "--data.name={}"],
        ["fit", "digits-cut", "--data.name=folder:{}"],
        ["fit", "digits-cut", "--model.backbone={}"],
        ["fit", "digits-cut", "--mixer.kind={}"],
        ["fit", "digits-cut", "--run={}", "--seed=-1"],
        ["sweep", "{}"],
        ["test", "{}"],
        ["test", "--predictions={}"],
        ["test", "a", "--{}"],
        ["compare", "{}", "{}+{}"],
        ["predict", "{}", "{}"],
        ["predict", "a", "b", "--batch_size={}"],
        ["export", "{}", "--format={}"],
        ["recipes", "{}"],
        ["benchmark", "--backbone={}"],
        ["benchmark", "--rounds={}"],
    ],
    ids=" ".join,
)
def test_huge_words_of_every_command(words, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(*(word.replace("{}", part * 2000) for word in words))


def test_what_a_long_message_keeps():
    path = f"/data/{'folder/' * 60}cat.png"
    said = message(f"image {path} cannot be read; leave it out with data.on_error: skip.")
    assert said.startswith("image /data/folder/") and "/cat.png cannot be read; leave it out with" in said
    assert len(said) < 250 and message(said) == said
    short = f"the run's folder {'a/' * 50}b is not the runs' folder."
    assert message(short) == short
    said = message(f"there is no class 'x'; there are {', '.join(f'class {i}' for i in range(500))}. Name one of them.")
    assert said.startswith("there is no class 'x'") and said.endswith("Name one of them.") and len(said) < 700


def test_notices_cannot_steer_the_terminal(capsys):
    with show_log():
        logging.getLogger("mixmo").warning("class %s", "\x1b[2Ja\rb")
        logging.getLogger("mixmo").info("class %s", "\x1b[2J")
    shown = capsys.readouterr()
    assert shown.err == "mixmo: class \\x1b[2Ja\\rb\n" and shown.out == "class \\x1b[2J\n"
