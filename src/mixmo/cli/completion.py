"""``mixmo completion``: shell completion of commands and options."""

from __future__ import annotations

from importlib import import_module
from typing import Literal

from jsonargparse import ArgumentParser

from mixmo.cli.options import Command, Word
from mixmo.errors import import_extra
from mixmo.validation import settings_class


@settings_class()
class Options:
    """The shell."""

    shell: Word[Literal["bash", "zsh", "tcsh"]]
    """bash, zsh or tcsh."""


COMMAND = Command(
    "completion",
    'Print a script that completes commands and options: `eval "$(mixmo completion bash)"` in ~/.bashrc, say.',
    (Options,),
)


def run(words: list[str]) -> None:
    """``mixmo completion bash|zsh|tcsh``."""
    from mixmo.cli.main import COMMANDS

    (own,), _ = COMMAND.read(words)
    shtab = import_extra("shtab", "completion", "completion needs shtab")
    parser = ArgumentParser(prog="mixmo")
    inside = parser.add_subcommands(required=False)
    for name in COMMANDS:
        command = getattr(import_module(f"mixmo.cli.{name}"), "COMMAND", None)
        inside.add_subcommand(name, ArgumentParser() if command is None else command.parser())
    print(shtab.complete(parser, own.shell))
