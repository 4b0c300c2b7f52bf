"""The ``mixmo`` command: dispatch, logging and exit codes."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module

import mixmo
from mixmo.data.messages import ignore_image_warnings, log_level
from mixmo.errors import InputError, StoppedError, one_of, reason
from mixmo.escaping import message, printable
from mixmo.launching import is_first

USAGE = """\
usage: mixmo COMMAND …

  fit RECIPE [--run FOLDER] [--SETTING VALUE …] train a shipped recipe or a YAML file
  fit RUN                                       resume a run
  sweep FILE [--out FOLDER]                     train every combination of a grid with every seed
  test RUN… [--ood DATASET …] [--corruptions]   evaluate a run, or several as an ensemble
  test --predictions FILE.npz                   evaluate another program's predictions
  compare RUN RUN+RUN FILE.npz… [--out FOLDER]  compare runs, ensembles, folders of seeds
  predict RUN IMAGES…|FOLDER|- [--out FILE]     classes, confidence and uncertainty of new images
  export RUN --format timm|onnx|safetensors     export a network for other programs
  recipes                                       list the shipped recipes
  preview RECIPE [--out FOLDER]                 draw training inputs and masks
  benchmark [--backbone resnet50 …]             measure what MixMo costs on this machine
  completion bash|zsh|tcsh                      print a script for shell completion
  help COMMAND                                  list the options of a command
  --version                                     print the version

`mixmo help COMMAND` and `mixmo COMMAND --help` say more."""


COMMANDS = (
    "fit", "sweep", "test", "compare", "predict", "export", "recipes", "preview", "benchmark", "completion",
)  # fmt: skip

HANDLER_NAME = "mixmo.cli"

RANK_TIMEOUT = 5
"""Seconds that other ranks wait for the first to report an error in their common input."""

OUT_OF_MEMORY = "the memory is full; lower data.batch_size, data.eval_batch_size or data.image_size."


def main(arguments: Sequence[str] | None = None, loaded: Callable[[], None] | None = None) -> int:
    """Run a command; report errors on standard error in one line.

    Args:
        arguments: The command line without the program's name; ``None`` reads ``sys.argv``.
        loaded: Called once the command's modules are imported.

    Returns:
        0; 1 if some images could not be read or trials failed, or for a defect, whose traceback is saved in a file; 2
        for invalid input; 130 if interrupted by the keyboard, 128 + n by another signal n, including SIGPIPE.

    Example:
        >>> main(["recipes"])  # doctest: +SKIP
    """
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments), loaded)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader closed the pipe, as head does
        with suppress(OSError, ValueError):  # for Python's final flush
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + getattr(signal, "SIGPIPE", 13)
    return code


def _run(arguments: list[str], loaded: Callable[[], None] | None) -> int:
    """Run a command, or print the help or version; return the exit code."""
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"mixmo {mixmo.__version__}")
        return 0
    first = is_first()
    with show_log():
        try:
            command = import_module(f"mixmo.cli.{one_of(arguments[0], COMMANDS, 'command')}")
            if loaded is not None:
                loaded()
            with ignore_image_warnings():
                return command.run(arguments[1:]) or 0
        except BrokenPipeError:
            raise
        except SystemExit as end:  # argparse exits this way after --help
            if end.code:
                raise
            return 0
        except (Exception, KeyboardInterrupt) as error:
            text, code = _explain(error)
            if isinstance(error, InputError) and not first:
                time.sleep(RANK_TIMEOUT)  # usually the first reports the same error, and the launcher ends this rank
            if first or not isinstance(error, StoppedError):
                print(f"mixmo: {message(text)}", file=sys.stderr)
            return code


def _explain(error: BaseException) -> tuple[str, int]:
    """Return an error's message and exit code."""
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, StoppedError):
        return str(error), error.code
    if isinstance(error, KeyboardInterrupt):
        return "stopped.", 130  # as shells report an interrupt
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return OUT_OF_MEMORY, 2
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or reason(error)}.", 2
    from mixmo.data.workers import explain_lost_worker

    if lost := explain_lost_worker(error):
        return lost, 2
    return f"{type(error).__name__}: {reason(error)}. Please report this defect with {_save_traceback()}.", 1


def _save_traceback() -> str:
    """Save the current exception's traceback; return the path."""
    from mixmo.environment import environment

    with tempfile.NamedTemporaryFile("w", prefix="mixmo-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(f"{json.dumps(environment(), indent=1)}\n{traceback.format_exc()}")
    return file.name


class _Printable(logging.Formatter):
    """Escapes control characters, which names of files and classes may contain."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def show_log() -> Iterator[None]:
    """Show mixmo's log: progress on standard output, warnings on standard error."""
    logger = logging.getLogger("mixmo")
    if any(handler.name == HANDLER_NAME for handler in logger.handlers):  # nested command
        yield
        return
    progress, warnings = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    progress.name = warnings.name = HANDLER_NAME
    progress.addFilter(lambda record: record.levelno < logging.WARNING)
    warnings.setLevel(logging.WARNING)
    progress.setFormatter(_Printable())
    warnings.setFormatter(_Printable("mixmo: %(message)s"))
    logger.addHandler(progress)
    logger.addHandler(warnings)
    propagate, logger.propagate = logger.propagate, False
    try:
        with log_level(logging.INFO if is_first() else logging.ERROR, "mixmo"):  # only the first rank logs
            yield
    finally:
        logger.removeHandler(progress)
        logger.removeHandler(warnings)
        logger.propagate = propagate
