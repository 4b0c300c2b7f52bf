"""``mixmo.compare``: compare runs, ensembles, seeds and other programs' predictions on a common test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table

from mixmo.errors import InputError, one_of
from mixmo.evaluation.comparison import Group, Networks, parse_entry, read_groups
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.results import EvaluationOptions
from mixmo.files import MARKDOWN_MARK, check_output_path, is_marked, make_folder, write_text
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
from mixmo.reporting.headline import summarise_comparison
from mixmo.reporting.text_table import TextTable
from mixmo.runs import RunFolder

FILES = ("comparison.csv", "comparison.md", "comparison.html")
"""The files of a comparison."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """Networks side by side on their common test set.

    Attributes:
        groups: The networks compared, in order.
        folder: The folder of its files; ``None`` if it was not written.

    Example:
        >>> import numpy, tempfile
        >>> targets, file = numpy.arange(40) % 2, Path(tempfile.mkdtemp(), "theirs.npz")
        >>> numpy.savez(file, logits=4 * numpy.eye(2)[targets], targets=targets)
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
        """N, the size of the test set, or of all folds of a cross-validation together."""
        return self.groups[0].images

    @property
    def table(self) -> list[dict[str, str | float]]:
        """A row per network or seed: ``group``, ``run``, the keys of ``test.json``, and costs; NaN if unknown.

        ``comparison.csv`` has the same rows; ``pandas.DataFrame(comparison.table)`` makes a table of them.
        """
        return table_rows(self.groups)

    @property
    def sentence(self) -> str:
        """A summary: the first network's accuracy, and the differences of the others from it with intervals."""
        return summarise_comparison(self.groups)

    @property
    def differences(self) -> dict[str, dict[str, Difference]]:
        """By name and metric: each network's value minus the first one's, with the ends of its 95 % interval.

        Intervals are paired: over test images, or over seeds if both have several; NaN if there is none
        (:func:`mixmo.evaluation.comparison.intervals_between`).
        """
        return {group.name: differences(group, self.groups[0]) for group in self.groups[1:]}

    @cached_property
    def tables(self) -> list[TextTable]:
        """The tables of metrics, of differences if there are several networks, and of costs if known."""
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
        """Return the comparison of some of the networks, in this order; files are not changed.

        Args:
            *names: Some of :attr:`names`; the others are compared with the first.

        Raises:
            InputError: if a name is not in :attr:`names`.
        """
        groups = {group.name: group for group in self.groups}
        if not names:
            raise InputError(f"only() names no network; there are {', '.join(groups)}.")
        return Comparison([groups[one_of(name, groups, "network")] for name in names])

    def show(self, *keys: str, title: str = "") -> Table:
        """Return a table of some metrics or costs, averaged over seeds, for :class:`rich.console.Console`.

        Args:
            *keys: Keys of ``test.json``, or of costs: ``macs``, ``parameters``, ``images`` ….
            title: The table's title.

        Raises:
            InputError: if a key is unknown.
        """
        columns = {key: METRICS[one_of(key, METRICS, "metric")] for key in keys}
        return groups_table(self.groups, columns, title).rich()

    def write(
        self, folder: str | Path, overwrite: bool = False, note: str = "", chosen: str = "", download: bool = False
    ) -> None:
        """Write ``comparison.csv``, ``comparison.md`` and ``comparison.html``.

        Args:
            folder: The folder to write into; created if missing.
            overwrite: Whether to replace files that are not an earlier comparison.
            note: Text below the tables of the page.
            chosen: The network selected on validation data; without it, the page calls none the best.
            download: Whether images shown on the page may be downloaded.

        Raises:
            InputError: if other files are in the way, or the folder cannot be written.
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

    Each network is a :class:`mixmo.Run`; the path of a run, of a folder of runs that differ by seed, or of another
    program's predictions (``.npz``); ``"NAME=PATH"`` or ``"PATH+PATH"``, as on the command line; a list or tuple of
    runs and paths, which form one ensemble, or one network's cross-validation if each has another test fold; or a
    mapping of names to any of these.

    Args:
        *networks: One or more.
        out: A folder for ``comparison.html``, ``comparison.csv`` and ``comparison.md``; ``None`` writes nothing.
        names: One name per network; their folders' names by default.
        overwrite: Whether to replace files in ``out`` that are not an earlier comparison.
        **options: Fields of :class:`~mixmo.evaluation.results.EvaluationOptions`: ``ood``, ``corruptions`` …;
            ``checkpoint`` and ``download`` default to those of each Run.

    Returns:
        The comparison: tables, intervals and a summary.

    Raises:
        MissingError: if a folder, a file or a run's dataset is missing.
        InputError: if an argument is none of these, or networks were tested on different images.

    Example:
        >>> import torch
        >>> from mixmo.library import fit
        >>> images, labels = torch.randint(256, (60, 8, 8, 1), dtype=torch.uint8), torch.arange(60) % 2
        >>> data = {"train": (images[:40], labels[:40]), "test": (images[40:], labels[40:])}
        >>> settings = {"epochs": 1, "batch_size": 8, "lr": 0.1, "progress": False}
        >>> one, two = (fit("wide_resnet10_1", **data, num_members=members, **settings) for members in (1, 2))
        >>> comparison = compare({"one": one, "two": two, "both": [one, two]})
        >>> [row["group"] for row in comparison.table], sorted(comparison.differences["two"])[0]
        (['one', 'two', 'both'], 'accuracy')
    """
    names = names if isinstance(names, str) else list(names)
    pairs: list[tuple[Any, Any]] = []
    for network in networks:
        pairs += network.items() if isinstance(network, Mapping) else [("", network)]
    if not pairs:
        raise InputError("there is nothing to compare; give runs, or their paths.")
    if names:
        if isinstance(names, str) or len(names) != len(pairs):
            raise InputError(f"names is {names!r}; give one name for each of the {len(pairs)} networks.")
        pairs = [(name, network) for name, (_, network) in zip(names, pairs, strict=True)]
    if out is not None:
        check_out(Path(out), overwrite)
    settings = EvaluationOptions(**options)
    if settings.per_class:
        raise InputError("per_class is not for comparisons; `mixmo test RUN --per_class` has the metrics of a run.")
    groups = read_groups([_to_networks(str(name), network, options) for name, network in pairs], settings)
    comparison = Comparison(groups, None if out is None else Path(out))
    if comparison.folder is not None:
        comparison.write(comparison.folder, overwrite, download=settings.download)
    return comparison


def check_out(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that a comparison cannot be written into."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose a folder to write into (out).")
    for file in FILES:
        check_output_path(folder / file, is_marked(folder / file), overwrite)


def _to_networks(name: str, network: Any, options: Mapping[str, Any]) -> Networks:
    """Normalise an argument of :func:`compare` to Networks."""
    if isinstance(network, Networks):
        return network
    if isinstance(network, str | Path):
        networks = parse_entry(str(network))
        return networks._replace(name=name, place=name) if name else networks
    members = [_open_member(run, options) for run in (network if isinstance(network, list | tuple) else [network])]
    if not members:
        raise InputError(f"an ensemble{f' {name}' if name else ''} has no runs.")
    place = name or " + ".join(str(member.path) for member in members)
    folds = {member.settings.data.fold for member in members if member.settings.data.folds}
    entries = [[member] for member in members] if len(folds) > 1 else [members]
    return Networks(name or " + ".join(member.path.name for member in members), entries, place)


def _open_member(run: Any, options: Mapping[str, Any]) -> TrainedRun:
    checkpoint, download = options.get("checkpoint"), options.get("download")
    if isinstance(run, Run):
        return run.reopen(checkpoint, download)
    if isinstance(run, str | Path):
        return TrainedRun(RunFolder(run), checkpoint or "last", bool(download), "download=True")
    raise InputError(
        f"{type(run).__name__} cannot be compared; give a mixmo.Run, its path, or a list of these for an ensemble."
    )
