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
from mixmo.data.messages import ignore_image_warnings
from mixmo.errors import InputError, StoppedError, extract_message, one_of, reason
from mixmo.escaping import message, printable
from mixmo.launching import is_first

USAGE = """\
usage: mixmo COMMAND …

  fit RECIPE [--run FOLDER] [--SETTING VALUE …] train a shipped recipe or a YAML file
  fit RUN                                       resume a run
  sweep FILE [--out FOLDER]                     every combination of a grid with every seed
  test RUN… [--ood DATASET …] [--corruptions]   test-set metrics; several runs are one ensemble
  test --predictions FILE.npz                   the same metrics for another program's predictions
  compare RUN RUN+RUN FILE.npz… [--out FOLDER]  side by side, with intervals; folders of seeds too
  predict RUN IMAGES…|FOLDER|- [--out FILE]     classes, confidence and uncertainty of new images
  export RUN --format timm|onnx|safetensors     a file or folder that other programs open
  recipes                                       list the shipped recipes
  preview RECIPE [--out FOLDER]                 pictures of what the network sees and of masks
  benchmark [--backbone resnet50 …]             what MixMo costs on this machine
  completion bash|zsh|tcsh                      a script that completes commands and options
  help COMMAND                                  the options of a command
  --version                                     the version

`mixmo help COMMAND` and `mixmo COMMAND --help` say more."""


COMMANDS = (
    "fit", "sweep", "test", "compare", "predict", "export", "recipes", "preview", "benchmark", "completion",
)  # fmt: skip

SHOWN = "mixmo.cli"
"""The name of the log's handlers."""

PATIENCE = 5
"""Seconds that other ranks give the first to report what is wrong with their common input."""

FULL = "the memory is full; lower data.batch_size, data.eval_batch_size or data.image_size."


def main(arguments: Sequence[str] | None = None, loaded: Callable[[], None] | None = None) -> int:
    """Run one command; report on standard error, in one sentence, what is wrong.

    Args:
        arguments: The command line without the program's name; ``None`` takes it from ``sys``.
        loaded: Called once the modules of the command are imported.

    Returns:
        0; 1 where some images could not be read, or for a defect, whose traceback is saved in a file; 2 for bad input;
        130 where it was stopped by the keyboard, 128 and the signal's number by another signal, SIGPIPE included.

    Example:
        >>> main(["recipes"])  # doctest: +SKIP
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(words, loaded)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe, as head does
        with suppress(OSError, ValueError):  # so that Python's last flush finds a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + getattr(signal, "SIGPIPE", 13)
    return code


def _run(words: list[str], loaded: Callable[[], None] | None) -> int:
    """Run one command, or print the help or the version; return the exit code."""
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"mixmo {mixmo.__version__}")
        return 0
    first = is_first()
    with show_log():
        try:
            command = import_module(f"mixmo.cli.{one_of(words[0], COMMANDS, 'command')}")
            if loaded is not None:
                loaded()
            with ignore_image_warnings():
                return command.run(words[1:]) or 0
        except BrokenPipeError:
            raise
        except SystemExit as end:  # argparse's own way to end after --help
            if end.code:
                raise
            return 0
        except (Exception, KeyboardInterrupt) as error:
            text, code = _explain(error)
            if isinstance(error, InputError) and not first:
                time.sleep(PATIENCE)  # usually the first reports the same, and the launcher ends this rank
            if first or not isinstance(error, StoppedError):
                print(f"mixmo: {message(text)}", file=sys.stderr)
            return code


def _explain(error: BaseException) -> tuple[str, int]:
    """Return the message for an error, and the exit code."""
    if isinstance(error, InputError):
        return extract_message(error), 2
    if isinstance(error, StoppedError):
        return str(error), error.code
    if isinstance(error, KeyboardInterrupt):
        return "stopped.", 130  # as shells report an interrupt
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return FULL, 2
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or reason(error)}.", 2
    from mixmo.data.workers import lost_worker

    if lost := lost_worker(error):
        return lost, 2
    defect = f"{type(error).__name__}: {reason(error)}"
    return f"{defect}. Please report this defect, with {_save_traceback()}.", 1


def _save_traceback() -> str:
    """Save the current exception's traceback; return the file's name."""
    from mixmo.environment import environment

    with tempfile.NamedTemporaryFile("w", prefix="mixmo-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(f"{json.dumps(environment(), indent=1)}\n{traceback.format_exc()}")
    return file.name


class _Printable(logging.Formatter):
    """Shows records whose names, as of files and classes, cannot steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def show_log() -> Iterator[None]:
    """Show mixmo's log, a line each: progress on standard output, warnings on standard error."""
    logger = logging.getLogger("mixmo")
    if any(handler.name == SHOWN for handler in logger.handlers):  # a command within a command
        yield
        return
    progress, warnings = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    progress.name = warnings.name = SHOWN
    progress.addFilter(lambda record: record.levelno < logging.WARNING)
    warnings.setLevel(logging.WARNING)
    progress.setFormatter(_Printable())
    warnings.setFormatter(_Printable("mixmo: %(message)s"))
    propagate, level = logger.propagate, logger.level
    logger.addHandler(progress)
    logger.addHandler(warnings)
    logger.propagate = False
    logger.setLevel(logging.INFO if is_first() else logging.ERROR)  # only the first rank logs
    try:
        yield
    finally:
        logger.removeHandler(progress)
        logger.removeHandler(warnings)
        logger.propagate = propagate
        logger.setLevel(level)
