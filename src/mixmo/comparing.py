"""``mixmo.compare``: compare runs, ensembles, seeds and other programs' predictions on one test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table

from mixmo.errors import InputError, one_of
from mixmo.evaluation.comparison import Group, Networks, read_groups, read_word
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.results import EvaluationOptions
from mixmo.files import MARKDOWN_MARK, check_place, is_marked, make_folder, write_text
from mixmo.library import Run
from mixmo.metrics.catalogue import METRICS
from mixmo.reporting.comparison_page import comparison_page
from mixmo.reporting.comparison_tables import (
    Difference,
    as_csv,
    costs_table,
    differences,
    differences_table,
    groups_table,
    metrics_table,
    table_rows,
)
from mixmo.reporting.headline import comparison_sentence
from mixmo.reporting.text_table import TextTable
from mixmo.runs import RunFolder

FILES = ("comparison.csv", "comparison.md", "comparison.html")
"""What is written of a comparison."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """Networks side by side on their common test set.

    Attributes:
        groups: What was compared, in order.
        folder: Where it was written; ``None`` if it was not.

    Example:
        >>> import numpy, tempfile
        >>> targets, file = numpy.arange(40) % 2, Path(tempfile.mkdtemp(), "theirs.npz")
        >>> numpy.savez(file, logits=numpy.eye(2)[targets], targets=targets)
        >>> comparison = compare({"theirs": file})
        >>> comparison.names, comparison.images, comparison.table[0]["accuracy"]
        (['theirs'], 40, 1.0)
    """

    groups: Sequence[Group]
    folder: Path | None = None

    def __repr__(self) -> str:
        return f"Comparison({', '.join(map(repr, self.names))})"

    def __str__(self) -> str:
        return "\n\n".join([self.sentence, *(table.markdown() for table in self.tables)])

    _repr_markdown_ = __str__  # in a notebook

    @property
    def names(self) -> list[str]:
        """The name of each network."""
        return [group.name for group in self.groups]

    @property
    def images(self) -> int:
        """N, the images of the test set, or of all folds of a cross-validation."""
        return self.groups[0].images

    @property
    def table(self) -> list[dict[str, str | float]]:
        """A row for each network or seed: ``group``, ``run``, the keys of ``test.json``, and costs; NaN if unknown.

        ``comparison.csv`` has the same rows; so has ``pandas.DataFrame(comparison.table)``.
        """
        return table_rows(self.groups)

    @property
    def sentence(self) -> str:
        """How good the first network is, how much the others differ from it, and how certain that is."""
        return comparison_sentence(self.groups)

    @property
    def differences(self) -> dict[str, dict[str, Difference]]:
        """By name and metric: each network's value less the first one's, and the ends of its 95 % interval.

        Intervals are paired: over test images, or over seeds if both sides have several; NaN where there is none
        (:func:`mixmo.evaluation.comparison.intervals_between`).
        """
        return {group.name: differences(group, self.groups[0]) for group in self.groups[1:]}

    @cached_property
    def tables(self) -> list[TextTable]:
        """The tables of metrics, of differences between several networks, and of costs where these are known."""
        tables = [metrics_table(self.groups)]
        if len(self.groups) > 1:
            tables.append(differences_table(self.groups))
        if any(entry.runs for group in self.groups for entry in group.entries):
            tables.append(costs_table(self.groups))
        return tables

    @property
    def page(self) -> Path | None:
        """The page ``comparison.html``; ``None`` if nothing was written."""
        return None if self.folder is None else self.folder / FILES[-1]

    def only(self, *names: str) -> Comparison:
        """Return the comparison of some of the networks, in this order; what was written stays as it is.

        Args:
            *names: Of :attr:`names`; the first is what the others are compared with.

        Raises:
            InputError: if a name is not in :attr:`names`.
        """
        known = {group.name: group for group in self.groups}
        if not names:
            raise InputError(f"only() names no network; there are {', '.join(known)}.")
        return Comparison([known[one_of(name, known, "network")] for name in names])

    def show(self, *keys: str, title: str = "") -> Table:
        """Return a table for :class:`rich.console.Console` of some metrics or costs, means over seeds.

        Args:
            *keys: By the keys of ``test.json``, and those of costs: ``macs``, ``parameters``, ``images`` ….
            title: Above the table.

        Raises:
            InputError: for a key that is not known.
        """
        columns = {key: METRICS[one_of(key, METRICS, "metric")] for key in keys}
        return groups_table(self.groups, columns, title).rich()

    def write(
        self, folder: str | Path, overwrite: bool = False, note: str = "", chosen: str = "", download: bool = False
    ) -> None:
        """Write ``comparison.csv``, ``comparison.md`` and ``comparison.html``.

        Args:
            folder: Where; made if it is missing.
            overwrite: Whether to replace files that are not an earlier comparison.
            note: Text below the tables of the page.
            chosen: The name of the network that did best on validation data; without it none is called best.
            download: Whether images that the page shows may be downloaded.

        Raises:
            InputError: if other files stand there, or nothing can be written.
        """
        folder, tables = Path(folder), self.tables
        check_out(folder, overwrite)
        make_folder(folder)
        texts = [MARKDOWN_MARK, *(table.markdown() for table in tables)]
        write_text(folder / FILES[0], as_csv(self.groups))
        write_text(folder / FILES[1], "\n\n".join(texts) + "\n")
        write_text(folder / FILES[2], comparison_page(self.groups, tables, note, chosen, download))


def compare(
    *networks: Any,
    out: str | Path | None = None,
    names: Sequence[str] = (),
    overwrite: bool = False,
    **options: Any,
) -> Comparison:
    """Compare networks on their common test set: metrics, costs, and differences to the first with 95 % intervals.

    Each network is a :class:`mixmo.Run`, also one that was trained on a Dataset or a module of your own; the path of a
    run, of a folder of runs that differ by their seed, or of another program's predictions (``.npz``); ``"NAME=PATH"``
    and ``"PATH+PATH"`` as on the command line; a list or tuple of runs and paths, which is one ensemble of all their
    members; or a mapping of names to any of these.

    Args:
        *networks: One or more.
        out: A folder for ``comparison.html``, ``comparison.csv`` and ``comparison.md``; ``None`` writes nothing.
        names: One name for each; by default the names of their folders.
        overwrite: Whether to replace files in ``out`` that are not an earlier comparison.
        **options: Of :class:`~mixmo.evaluation.results.EvaluationOptions`: ``ood``, ``corruptions`` …; a Run's own
            ``checkpoint`` and ``download`` hold where these are left out.

    Returns:
        Tables, intervals and the summary that the page begins with.

    Raises:
        MissingError: if a folder or file is missing, or a run's images are.
        InputError: if an argument is none of these, or networks were tested on different images.

    Example:
        >>> import torch
        >>> from mixmo.library import fit
        >>> images, labels = torch.randint(256, (60, 8, 8, 1), dtype=torch.uint8), torch.arange(60) % 2
        >>> data = {"train": (images[:40], labels[:40]), "test": (images[40:], labels[40:])}
        >>> own = {"epochs": 1, "batch_size": 8, "lr": 0.1, "progress": False}
        >>> one, two = (fit("wide_resnet10_1", **data, num_members=members, **own) for members in (1, 2))
        >>> found = compare({"one": one, "two": two, "both": [one, two]})
        >>> [row["group"] for row in found.table], sorted(found.differences["two"])[0]
        (['one', 'two', 'both'], 'accuracy')
    """
    names = names if isinstance(names, str) else list(names)
    given: list[tuple[Any, Any]] = []
    for network in networks:
        given += network.items() if isinstance(network, Mapping) else [("", network)]
    if not given:
        raise InputError("there is nothing to compare; give runs, or their paths.")
    if names:
        if isinstance(names, str) or len(names) != len(given):
            raise InputError(f"names is {names!r}; give one name for each of the {len(given)} networks.")
        given = [(name, what) for name, (_, what) in zip(names, given, strict=True)]
    if out is not None:
        check_out(Path(out), overwrite)
    chosen = EvaluationOptions(**options)
    groups = read_groups([_networks(str(name), what, options) for name, what in given], chosen)
    comparison = Comparison(groups, None if out is None else Path(out))
    if comparison.folder is not None:
        comparison.write(comparison.folder, overwrite, download=chosen.download)
    return comparison


def check_out(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that a comparison cannot be written into, before anything is computed."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose a folder to write into with --out.")
    for file in FILES:
        check_place(folder / file, is_marked(folder / file), overwrite)


def _networks(name: str, what: Any, options: Mapping[str, Any]) -> Networks:
    """Return what is given as the comparison takes it."""
    if isinstance(what, Networks):
        return what
    if isinstance(what, str | Path):
        found = read_word(str(what))
        return found._replace(name=name, place=name) if name else found
    members = [_member(each, options) for each in (what if isinstance(what, list | tuple) else [what])]
    if not members:
        raise InputError(f"an ensemble{f' {name}' if name else ''} has no runs.")
    place = name or " + ".join(str(member.path) for member in members)
    return Networks(name or " + ".join(member.path.name for member in members), [members], place)


def _member(each: Any, options: Mapping[str, Any]) -> TrainedRun:
    checkpoint, download = options.get("checkpoint"), options.get("download")
    if isinstance(each, Run):
        return each.reopen(checkpoint, download)
    if isinstance(each, str | Path):
        return TrainedRun(RunFolder(each), checkpoint or "last", bool(download), "download=True")
    raise InputError(
        f"{type(each).__name__} cannot be compared; give a mixmo.Run, its path, or a list of these, which forms one "
        "ensemble."
    )
