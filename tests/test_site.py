"""The documentation site: a page for every public symbol, and no requests to other hosts."""

import dataclasses
import inspect
import re
import subprocess
import sys
from importlib import import_module, util
from pathlib import Path

import pytest

import mixmo

ROOT = Path(__file__).parents[1]
NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
SYMBOLS = re.findall(r"api/(mixmo[\w.]*)\.md", NAVIGATION)


def find(name):
    try:
        return import_module(name)
    except ModuleNotFoundError:
        module, _, last = name.rpartition(".")
        return getattr(find(module), last)


def undocumented(function, text):
    """Return the arguments of a function or class that its docstring does not explain.

    Arguments that Lightning passes to every hook are exempt.
    """
    if isinstance(function, type) and not dataclasses.is_dataclass(function):
        function = function.__init__ if function.__init__ is not object.__init__ else function.__new__
    names = [*inspect.signature(function).parameters.keys() - {"self", "_cls", "batch_idx"}]
    return [name for name in names if not re.search(rf"^ +\**{name}: \w*", text, re.MULTILINE)]


def test_every_public_symbol_has_a_page():
    integrations = ["mixmo.integrations.lightning.MixMoModule", "mixmo.integrations.timm.MixMoTask"]
    assert {f"mixmo.{name}" for name in mixmo.__all__} | {*integrations} <= {*SYMBOLS}
    assert len(SYMBOLS) == len({*SYMBOLS})


def test_every_page_is_in_the_navigation():
    assert all(f" {file.name}" in NAVIGATION for file in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("name", SYMBOLS)
def test_public_symbols_say_what_they_take_and_show_an_example(name):
    symbol = find(name)
    text = inspect.getdoc(symbol)
    if name.endswith((".FitSettings", ".errors")):  # one is a table of settings, the other of exceptions
        return
    example = text.partition("\nExample:\n")[2]
    assert ">>> " in example and "+SKIP" not in example, f"{name} shows no example that runs"
    if inspect.ismodule(symbol):
        return
    assert not undocumented(symbol, text), f"{name} does not explain {undocumented(symbol, text)}"
    for key, member in vars(symbol).items() if isinstance(symbol, type) else ():
        if inspect.isfunction(member) and not key.startswith("_") and member.__module__.startswith("mixmo"):
            own = inspect.getdoc(member) or ""
            unnamed = [each for each in undocumented(member, own) if not re.search(rf"\b{each}\b", own)]
            assert own and not unnamed, f"{name}.{key} does not explain {unnamed}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly: broken links or anchors and pages missing from the navigation are errors."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        if util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_the_site_is_whole_and_asks_nothing_of_other_hosts(site):
    pages = {file.relative_to(site).as_posix(): file.read_text(encoding="utf-8") for file in site.rglob("*.html")}
    assert {"index.html", "recipes.html", "method.html", *(f"api/{name}.html" for name in SYMBOLS)} <= pages.keys()
    asked = r'<(?:img|script|link|iframe|source|video|audio|object)\b[^>]*?(?:src|href|srcset|data)="?(?:https?:)?//'
    for page, text in pages.items():
        assert not re.findall(asked, text), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)[\"' ]*(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    assert "docs/fit.md" not in pages["index.html"] and 'href="fit.html"' in pages["index.html"]


@pytest.mark.slow
def test_the_site_links_symbols_and_lists_recipes(site):
    fit = (site / "api" / "mixmo.fit.html").read_text(encoding="utf-8")
    assert ":class:" not in fit and "mixmo.MixMo.html" in fit
    settings = (site / "api" / "mixmo.config.keywords.FitSettings.html").read_text(encoding="utf-8")
    recipes = (site / "recipes.html").read_text(encoding="utf-8")
    assert all(f"<code>{key}</code>" in settings for key in mixmo.config.keywords.keywords())
    assert all(f"<code>{name}</code>" in recipes for name in mixmo.config.recipes.catalogue())
    assert re.search(r"<code>quickstart</code>.*?\d+ s,", recipes, re.DOTALL)
