"""``mixmo completion``: shell completion of commands and options."""

from __future__ import annotations

from importlib import import_module
from typing import Literal

from jsonargparse import ArgumentParser

from mixmo.cli.options import Command, Positional
from mixmo.errors import import_extra
from mixmo.validation import settings_class


@settings_class()
class Options:
    """The shell to complete commands in."""

    shell: Positional[Literal["bash", "zsh", "tcsh"]]
    """bash, zsh or tcsh."""


COMMAND = Command(
    "completion",
    'Print a script that completes commands and options: `eval "$(mixmo completion bash)"` in ~/.bashrc, say.',
    (Options,),
)


def run(arguments: list[str]) -> None:
    """Run ``mixmo completion bash|zsh|tcsh``."""
    from mixmo.cli.main import COMMANDS

    (chosen,), _ = COMMAND.parse(arguments)
    shtab = import_extra("shtab", "completion", "completion needs shtab")
    parser = ArgumentParser(prog="mixmo")
    commands = parser.add_subcommands(required=False)
    for name in COMMANDS:
        command = getattr(import_module(f"mixmo.cli.{name}"), "COMMAND", None)
        commands.add_subcommand(name, ArgumentParser() if command is None else command.parser())
    print(shtab.complete(parser, chosen.shell))
