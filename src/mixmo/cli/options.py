"""Options that commands share."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace

from mixmo.config.plan import FOLDERS, known_settings, pairs, parsed
from mixmo.evaluation.results import GENERATED, EvaluationOptions

EVALUATION = ("checkpoint", "precision", "ood", "corruptions", "refresh", "download")
"""How runs are evaluated, by ``test`` and ``compare`` alike."""


def add_flag(parser: ArgumentParser, name: str, help: str) -> None:
    """Add an option that is false unless it is given, bare or with a value."""
    parser.add_argument(name, nargs="?", const=True, type=bool, default=False, help=help)


def add_evaluation(parser: ArgumentParser) -> None:
    """Add the options of :data:`EVALUATION`."""
    parser.add_argument("--checkpoint", type=str, default="last", help="last, or best on the validation set")
    parser.add_argument("--precision", type=str, default="32-true", help="32-true or bf16-mixed")
    parser.add_argument("--ood", nargs="+", type=str, default=[], help="out-of-distribution datasets")
    parser.add_argument(
        "--corruptions", nargs="?", const=GENERATED, type=str | None, default=None, metavar="FOLDER",
        help="corrupt the test images in 19 ways; with a folder, read CIFAR-10-C's or CIFAR-100-C's files",
    )  # fmt: skip
    add_flag(parser, "--refresh", help="predict again, whatever is kept of an earlier call")
    add_flag(parser, "--download", help="allow downloads of datasets and networks")


def add_overwrite(parser: ArgumentParser) -> None:
    """Add the option that files of others are replaced."""
    add_flag(parser, "--overwrite", help="replace files that mixmo did not write there")


def take_flag(name: str, words: Sequence[str], command: str) -> tuple[bool, list[str]]:
    """Return whether flag ``name`` is set among a plan's words, and the other words, in one form.

    Example:
        >>> take_flag("overwrite", ["--seed", "1", "--overwrite"], "preview")
        (True, ['--seed=1'])
    """
    given = pairs(words, {**known_settings(), FOLDERS[command][0]: str, name: bool}, command)
    flags = [parsed(text, bool, name) for each, text in given if each == name]
    return any(flags[-1:]), [f"--{each}={text}" for each, text in given if each != name]


def evaluation_options(chosen: Namespace) -> EvaluationOptions:
    """Return the options that were chosen."""
    return EvaluationOptions(**{name: chosen[name] for name in EVALUATION})
