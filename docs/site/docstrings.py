"""Docstrings as the site shows them: Sphinx's roles become links, classes of settings get a table of their fields."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import griffe
from tables import settings_table

ROOT = Path(__file__).parents[2]
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`(~?)([\w.]+)`")


def symbols() -> list[str]:
    """Return the dotted names of what has a page, in the order of the navigation."""
    return re.findall(r"api/(mixmo[\w.]*)\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def find(name: str) -> Any:
    """Return the object of a dotted name: a module, or what is in one."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        module, _, last = name.rpartition(".")
        return getattr(find(module), last)


def home(name: str) -> str:
    """Return the dotted name under which a symbol is defined."""
    found = find(name)
    return f"{found.__module__}.{found.__qualname__}" if hasattr(found, "__qualname__") else name


class SiteDocstrings(griffe.Extension):
    """Prepares docstrings before they are parsed."""

    def __init__(self) -> None:
        self.pages = {home(name): name for name in symbols()}
        self.last = {name.rpartition(".")[2]: name for name in symbols()}

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is None:
            return
        text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
        text = re.sub(r"::\n\n", ":\n\n", text)
        if isinstance(obj, griffe.Class) and any("settings_class" in str(each.value) for each in obj.decorators):
            text = show_settings(obj, text)
        obj.docstring.value = ROLE.sub(lambda match: self._link(match, obj), text)

    def _link(self, match: re.Match[str], obj: griffe.Object) -> str:
        """Return a link to what a role names, or its name alone where it has no page."""
        short, name = match.groups()
        shown = f"`{name.rpartition('.')[2] if short else name}`"
        owner, _, last = name.rpartition(".")
        for candidate in (name, f"{obj.module.path}.{name}"):
            if candidate in self.pages or candidate in self.pages.values():
                return f"[{shown}][{self.pages.get(candidate, candidate)}]"
        if not owner and name in self.last:
            return f"[{shown}][{self.last[name]}]"
        cls = obj if obj.is_class or obj.parent is None else obj.parent
        page = self.last.get(owner) or self.pages.get(owner or cls.path)
        if page and hasattr(find(page), last):
            return f"[{shown}][{page}.{last}]"
        return shown


def show_settings(cls: griffe.Class, docstring: str) -> str:
    """Return the docstring of a class of settings with a table of its fields, which are not shown one by one."""
    kind = find(cls.path)
    for name in kind.__pydantic_fields__:
        cls.del_member(name)
    body, section, rest = re.split(r"(\n(?:Raises|Examples):|$)", docstring, maxsplit=1)
    return f"{body.rstrip()}\n\n{settings_table(kind)}\n{section}{rest}"
