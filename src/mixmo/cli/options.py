"""Options that commands share."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from mixmo.evaluation.results import MADE

JUDGING = ("checkpoint", "precision", "ood", "corruptions", "refresh", "download")
"""How runs are judged, by ``test`` and ``compare`` alike."""


def add_judging(parser: ArgumentParser) -> None:
    """Add the options of :data:`JUDGING`."""
    parser.add_argument("--checkpoint", type=str, default="last", help="last, or best on the validation set")
    parser.add_argument("--precision", type=str, default="32-true", help="32-true or bf16-mixed")
    parser.add_argument("--ood", nargs="+", type=str, default=[], help="datasets of none of the classes")
    parser.add_argument(
        "--corruptions", nargs="?", const=MADE, type=str | None, default=None, metavar="FOLDER",
        help="corrupt the test images in 19 ways; with a folder, take CIFAR-10-C's or CIFAR-100-C's files",
    )  # fmt: skip
    parser.add_argument("--refresh", action="store_true", help="predict anew, whatever is kept of an earlier call")
    parser.add_argument("--download", action="store_true", help="let what a network is built from be downloaded")
