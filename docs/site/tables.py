"""Tables of settings and of recipes, made of what defines them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from study_plans import digest_of, read_rows

from mixmo.config.keywords import keywords
from mixmo.config.recipes import group_recipes, method_name
from mixmo.config.settings import Settings, neutral_settings
from mixmo.validation import describe_type

ROOT = Path(__file__).parents[2]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    cells = ([" ".join(cell.replace("|", "&#124;").split()) for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def settings_rows(kind: type) -> dict[str, list[str]]:
    """Return type and range, default and meaning of each field of a class of settings."""
    hints, rows = get_type_hints(kind, include_extras=True), {}
    for name, field in kind.__pydantic_fields__.items():
        default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
        meaning = re.sub(r":\w+:`~?", "`", field.description or "").replace("``", "`")
        rows[name] = [describe_type(hints[name]).replace("null", "None"), default, meaning]
    return rows


def settings_table(kind: type) -> str:
    """Return the table of a class of settings."""
    rows = ([f"`{name}`", *row] for name, row in settings_rows(kind).items())
    return table(["argument", "type and range", "default", "meaning"], rows)


def fit_settings() -> str:
    """Return a table of every keyword of ``mixmo.fit``, for each section of a recipe."""
    kinds, neutral = get_type_hints(Settings), neutral_settings()
    sections: dict[str, list[list[str]]] = {}
    for keyword, setting in keywords().items():
        section, _, name = setting.rpartition(".")
        row = settings_rows(kinds[section] if section else Settings)[name]
        meaning = row[2] + (" *Changes no result.*" if setting in neutral else "")
        sections.setdefault(section, []).append([f"`{keyword}`", f"`{setting}`", *row[:2], meaning])
    header = ["keyword", "in recipes, and on the command line as --…", "type and range", "default", "meaning"]
    return "\n\n".join(f"## {section or 'The run'}\n\n{table(header, rows)}" for section, rows in sections.items())


ABOUT = """\
# Recipes

Each is one name for `mixmo fit NAME` and `mixmo.fit(recipe="NAME")`; any setting can be changed
([settings](api/mixmo.config.keywords.FitSettings.md)). `mixmo recipes` lists them in the terminal, and
[own recipes](extend.md#a-recipe) extend them. This page is made of the
[catalogue](files/src/mixmo/config/recipes/catalogue.yaml.md). An empty cell has not been measured.

- **b**: batch repetition, how often an image appears in a batch. **Epochs**: each shows every image b times.
- **Time**, **memory**, **result**: of one run with the recipe's own seed and precision, on one thread of the named
  processor: training with validation, the process's largest memory, and the top-1 accuracy on the test images
  ([command](files/benchmarks/recipes.py.md), [rows](files/benchmarks/results/recipes.csv.md)). Five seeds of the
  quickstart are in [when it pays](when-it-pays.md).
- **Published**: top-1 in % of the README of the paper's code, single checkpoints at the best test epoch. None is
  reproduced here yet. On an NVIDIA H100 a step of WideResNet-28-10 with two members takes 26.5 ms at batch 256
  ([performance](performance.md#on-a-gpu)).
"""


def recipes() -> str:
    """Return the page of all shipped recipes."""
    header = ["recipe", "network", "method", "b", "epochs", "training images", "time", "memory", "result, top-1 %",
              "published"]  # fmt: skip
    parts = [ABOUT]
    for title, group in group_recipes().items():
        rows = [
            [f"`{name}`", recipe["model"]["backbone"],
             method_name(recipe), str(recipe["data"].get("batch_repetition", 1)),
             str(recipe["trainer"]["max_epochs"]), *read_measurements(name, recipe), str(recipe.get("published", ""))]
            for name, recipe in group.items()
        ]  # fmt: skip
        filled = [index for index in range(len(header)) if any(row[index] for row in rows)]
        (data,) = {recipe["data"]["name"] for recipe in group.values()}
        shown = table([header[index] for index in filled], ([row[index] for index in filled] for row in rows))
        parts.append(f"## {title}\n\n`mixmo fit RECIPE{ALLOWED.get(data, '')}`. Data: `{data}`.\n\n{shown}")
    return "\n\n".join(parts)


ALLOWED = {"torch/cifar10": " --data.download true", "torch/cifar100": " --data.download true",
           "folder:photos": " --model.download true"}  # fmt: skip
"""What a command has to allow, by the name of the data."""


def read_measurements(name: str, recipe: Mapping[str, Any]) -> list[str]:
    """Return images, time, memory and accuracy of a recipe; empty where it has no row, or one of other settings."""
    rows = read_rows(ROOT / "benchmarks" / "results" / "recipes.csv")
    row = next((row for row in rows if row["recipe"] == name and row["digest"] == digest_of([recipe])), None)
    if row is None:
        return [""] * 4
    seconds = float(row["seconds"])
    time = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return [
        f"{int(row['images']):,}",
        f"{time}, {row['device']}",
        f"{row['memory_mib']} MiB",
        f"{100 * float(row['accuracy']):.1f}",
    ]
