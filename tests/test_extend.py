"""The page "Extend it": its files are written, and its Python and commands run, in order."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from mixmo import corruptions
from mixmo.cli.main import main
from mixmo.runs import RunFolder

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)(?: file=(\S+))?\n(.*?)```", PAGE, re.DOTALL)
SHRUNK = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--mixer.probability=1"]


@pytest.fixture
def clean(monkeypatch):
    """Undo the page's imports and registrations."""
    for table in (corruptions.KINDS, corruptions.SMALL, corruptions.LARGE):
        monkeypatch.setitem(table, "posterize", None)
        monkeypatch.delitem(table, "posterize")
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
        del sys.modules[name]


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, observed, clean, few_masks, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names, commands = {}, []
    for language, file, text in BLOCKS:
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, "docs/extend.md", "exec"), names)
        else:
            commands += [shlex.split(line)[1:] for line in text.splitlines()]
    assert [words[0] for words in commands] == ["fit", "preview", "test"]
    for words in commands:
        assert main(words + (SHRUNK if words[0] != "test" else [])) == 0, capsys.readouterr().err
    assert len(observed.shaped) >= 2 and all(observed.shaped)  # stripes differ from place to place
    config = RunFolder("runs/own").config_file.read_text()
    assert "mypackage.masks:stripes" in config and "mypackage.losses:focal" in config


def test_the_page_covers_what_can_be_added():
    assert re.findall(r"^## (.*)$", PAGE, re.MULTILINE) == [
        "A mask", "An objective", "A recipe", "A backbone", "A metric", "A corruption",
    ]  # fmt: skip
    assert {file for _, file, _ in BLOCKS if file} == {
        "own.yaml", *(f"mypackage/{name}.py" for name in ("masks", "losses", "metrics", "corruptions")),
    }  # fmt: skip
