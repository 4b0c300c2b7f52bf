"""Hooks of mkdocs: pages that are made of other files, and links that work in the repository and on the site alike."""

from __future__ import annotations

import inspect
import json
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# mkdocs loads this file by its path: its neighbours and the package are found here only
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "src"), str(ROOT / "benchmarks")]

from docstrings import find, symbols  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402
from tables import fit_settings, recipes  # noqa: E402

PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md",
         "SECURITY.md": "security.md", "docs/method.ipynb": "method.md"}  # fmt: skip
"""Pages of the site that are files of the repository elsewhere, or under another name."""

LINK = re.compile(r"(\]\(|\b(?:src|srcset|href)=\")(?!\w+:)([^)\"#\s]+)(?=[)\"#])")
NAMED = re.compile(r"\[(?:\w+/)*[\w-]+\.md\]\(([^)#\s]+)")
ROW = re.compile(r"^\|.*$", re.MULTILINE)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".cff": "yaml", ".json": "json"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files of docs/, and those for files that pages link to."""
    made = {target: _read(source) for source, target in PAGES.items()}
    made |= {f"api/{name}.md": _symbol_page(name) for name in symbols()}
    made |= {"api/index.md": _overview(), "recipes.md": recipes()}
    sources = {file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()}
    sources |= {target: source for source, target in PAGES.items()}
    linked = {"src/mixmo/config/recipes/catalogue.yaml", "benchmarks/results/recipes.csv", "benchmarks/recipes.py"}
    for page, source in sources.items():
        text = made.get(page) or (ROOT / source).read_text(encoding="utf-8")
        linked |= {path for _, path in _targets(text, source) if _site_path(path).startswith("files/")}
    for path in linked | {file for folder in linked for file in _inside(folder)}:
        made[f"files/{path}.md"] = _file_page(path)
    for target, text in made.items():
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Have links lead to pages of the site, and pictures follow the theme."""
    at = page.file.src_uri
    source = next((source for source, target in PAGES.items() if target == at), f"docs/{at}")
    markdown = re.sub(r"```(\w+) file=(\S+)", r'```\1 title="\2"', markdown)
    markdown = re.sub(r"<picture>.*?srcset=\"(.*?)\".*?<img alt=\"(.*?)\" src=\"(.*?)\">.*?</picture>",
                      r"![\2](\3#only-light)\n![\2](\1#only-dark)", markdown, flags=re.DOTALL)  # fmt: skip

    def rewrite(match: re.Match[str]) -> str:
        path = _resolve(match[2], source)
        if at == "recipes.md" or at.startswith(("api/", "files/")) or not (ROOT / path).exists():
            return match[0]
        return match[1] + posixpath.relpath(_site_path(path), posixpath.dirname(at) or ".")

    markdown = NAMED.sub(lambda match: f"[{_title(_resolve(match[1], source))}]({match[1]}", markdown)
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(
        part if number % 2 else ROW.sub(_keep_figures, LINK.sub(rewrite, part)) for number, part in enumerate(parts)
    )


def _keep_figures(row: re.Match[str]) -> str:
    """Return a row of a table whose figures are not broken: a ± b, [low, high]."""
    return re.sub(r" ± |(?<=\d), (?=[+−]?[\d.]+\])", lambda match: match[0].replace(" ", "\u00a0"), row[0])


def _resolve(link: str, source: str) -> str:
    """Return the path in the repository that a link of a file leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _targets(text: str, source: str) -> list[tuple[str, str]]:
    found = [(link, _resolve(link, source)) for _, link in LINK.findall(text)]
    return [(link, path) for link, path in found if (ROOT / path).exists()]


def _site_path(path: str) -> str:
    """Return the page or the picture of the site that shows a file or folder of the repository."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}.md"


def _title(path: str) -> str:
    """Return the first heading of a page, which links name in place of its file."""
    return re.search(r"^# (.*)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)[1]


def _read(source: str) -> str:
    text = (ROOT / source).read_text(encoding="utf-8")
    return _notebook(text) if source.endswith(".ipynb") else text


def _notebook(text: str) -> str:
    """Return a notebook, its outputs included, in Markdown."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if "image/png" in (data := output.get("data", {})):
                parts.append(f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">')
            else:
                parts.append(f"```text\n{''.join(data.get('text/plain', output.get('text', '')))}\n```")
    return "\n\n".join(parts)


def _inside(path: str) -> list[str]:
    """Return the files in a folder of the repository."""
    folder = ROOT / path
    return sorted(f"{path}/{file.name}" for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []


def _file_page(path: str) -> str:
    """Return a page with a file of the repository, or with links to the files of a folder."""
    head = f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n"
    if (ROOT / path).is_dir():
        name = posixpath.basename(path)
        return head + "\n".join(
            f"- [{posixpath.basename(file)}]({name}/{posixpath.basename(file)}.md)" for file in _inside(path)
        )
    text = (ROOT / path).read_text(encoding="utf-8").rstrip()
    return f"{head}````{LANGUAGES.get(os.path.splitext(path)[1], 'text')}\n{text}\n````\n"


def _symbol_page(name: str) -> str:
    """Return the page of a public symbol: its docstring, and the tables that follow from what it lists."""
    short = name.rpartition(".")[2]
    page = f"---\ntitle: {short}\n---\n\n::: {name}\n"
    if name == "mixmo.masks":
        page += "    options: {members: []}\n"
        for kind, function in find("mixmo.masks.KINDS").items():
            identifier = f"{function.__module__}.{function.__name__}"
            page += f"\n## {kind}\n\n::: {identifier}\n    options: {{show_root_heading: false}}\n"
    elif name == "mixmo.Run":
        page += "    options: {inherited_members: [path, network]}\n"
    elif name.endswith(".FitSettings"):
        page += f"    options: {{members: []}}\n\n{fit_settings()}\n"
    elif name == "mixmo.errors":
        page += "    options: {members: [InputError, MissingError, InUseError, TrainingError]}\n"
    return page


def _overview() -> str:
    """Return the list of all symbols, each with the first sentence of its docstring."""
    lines = ["# API reference", "", "| name | what it is or does |", "| --- | --- |"]
    for name in symbols():
        summary = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", inspect.getdoc(find(name)).split("\n\n")[0]).replace("\n", " ")
        lines.append(f"| [`{name.rpartition('.')[2]}`]({name}.md) | {summary.replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"
