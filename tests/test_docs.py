"""The documentation's commands, recipes, options, imports and YAML settings exist."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from mixmo.cli.main import COMMANDS
from mixmo.config.plan import make_plan
from mixmo.config.recipes import catalogue, load_recipe
from mixmo.config.settings import known_settings
from mixmo.sweeps import load_sweep
from mixmo.validation import fields_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, *sorted((ROOT / "examples").rglob("*.py")), *sorted((ROOT / "src").rglob("*.py"))]
TEXTS += sorted((ROOT / "examples").rglob("*.yaml"))


def commands(text):
    """Find every ``mixmo COMMAND …`` in code blocks, text and docstrings; return command and rest of the line."""
    text = text.replace("\\\n", " ")
    found = re.findall(rf"(?<![\w./'-])mixmo ({'|'.join(COMMANDS)})\b([^`\n\"#]*)", text)
    return [(command, rest.strip()) for command, rest in found]


@pytest.fixture(scope="module")
def options():
    """The options of every command."""
    found = {command: set() for command in COMMANDS}
    for command in set(COMMANDS) - {"recipes"}:  # which has none
        own = import_module(f"mixmo.cli.{command}").COMMAND
        found[command] = {name for kind in own.options for name in fields_of(kind)}
        found[command] |= {*known_settings()} if own.takes_settings else set()
    return found


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_commands_name_recipes_and_options_that_exist(file, options):
    for command, rest in commands(file.read_text(encoding="utf-8")):
        words = rest.split()
        if command in ("fit", "preview") and words and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", words[0]):
            assert words[0] in catalogue(), f"mixmo {command} {rest}"
        for name in re.findall(r"--([\w.]+)", rest):
            owner = name.partition(".options.")[0] + ".options"
            assert name in options[command] | {"help", "key", "name"} or owner in options[command], (
                f"mixmo {command} {rest}"
            )


def test_there_are_commands_to_check():
    found = [each for file in TEXTS for each in commands(file.read_text(encoding="utf-8"))]
    assert {command for command, _ in found} == {*COMMANDS} and len(found) > 100
    assert ("fit", "cifar100-wrn28x10-cut --run runs/cut") in found  # behind torchrun


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_yaml_on_pages_makes_a_plan(file, tmp_path):
    for number, block in enumerate(
        re.findall(r"```ya?ml[^\n]*\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL)
    ):
        own = tmp_path / f"{number}.yaml"
        own.write_text(block)
        if re.search(r"^sweep:", block, re.MULTILINE):
            assert load_sweep(own)
        else:
            assert make_plan(load_recipe(own)).settings


@pytest.mark.parametrize(
    "file", [file for file in PAGES if file.name not in ("own-loop.md", "fit.md")], ids=lambda file: file.name
)
def test_every_block_of_python_imports_what_it_names(file):
    """Readers copy single blocks; those of own-loop.md and fit.md continue one another, as stated there."""
    for block in re.findall(r"```python[^\n]*\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL):
        nodes = [*ast.walk(ast.parse(block))]
        named = {node.id for node in nodes if isinstance(node, ast.Name)}
        imported = {
            name.asname or name.name.partition(".")[0]
            for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for name in node.names
        }  # fmt: skip
        assert not named & {"torch", "mixmo", "np", "timm", "F", "json", "Image"} - imported, block
