"""The command line: one noun each, typed and checked by jsonargparse."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

import mixmo
from mixmo.config.plan import make_plan, parse, print_help
from mixmo.config.recipes import NOTES, catalogue, load_recipe
from mixmo.errors import InputError, StoppedError, one_of, reason, sentence
from mixmo.names import printable
from mixmo.runs import Run, environment

JUDGING = ("checkpoint", "precision", "ood", "corruptions", "refresh", "download")
"""How runs are judged, by ``test`` and ``compare`` alike."""

USAGE = """\
usage: mixmo COMMAND …

  fit RECIPE [--run FOLDER] [--data.batch_size 128 …]   train a shipped recipe or a YAML file
  fit RUN                                               go on with a run that was stopped
  test RUN… [--ood DATASET …] [--corruptions]           figures on the test set, of several runs as one ensemble
  test --predictions FILE.npz                           the same figures for another program's predictions
  compare RUN RUN+RUN FILE.npz… [--out FOLDER]          side by side, with intervals; folders of seeds too
  recipes                                               list the shipped recipes
  preview RECIPE [--out FOLDER]                         pictures of what the network sees, and of every mask
  benchmark [--backbone resnet50 …]                     what MixMo costs on this machine
  --version                                             the version

`mixmo COMMAND --help` says more."""


STOPPED = 130
"""The exit code of what was stopped, as shells report an interrupt."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; say in one sentence on standard error what is wrong.

    Args:
        arguments: The command line without the program's name; ``None`` takes it from ``sys``.

    Returns:
        0; 2 for bad input; 130 where it was stopped; 1 for a defect, whose traceback is kept in a file.

    Example:
        >>> main(["recipes"])  # doctest: +SKIP
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], None]] = {
        "fit": fit_command,
        "test": test_command,
        "compare": compare_command,
        "recipes": recipes_command,
        "preview": preview_command,
        "benchmark": benchmark_command,
    }
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"mixmo {mixmo.__version__}")
        return 0
    with notices():
        try:
            commands[one_of(words[0], commands, "command")](words[1:])
        except InputError as error:
            return _say(sentence(error), 2)
        except (StoppedError, KeyboardInterrupt) as error:
            return _say(str(error) or "stopped.", STOPPED)
        except (MemoryError, torch.OutOfMemoryError):
            return _say("the memory is full; lower data.batch_size, data.eval_batch_size or data.image_size.", 2)
        except OSError as error:
            return _say(f"{error.filename or 'a file'}: {error.strerror or reason(error)}.", 2)
        except Exception as error:
            return _say(f"{type(error).__name__}: {reason(error)}. Please report this defect, with {_kept()}.", 1)
    return 0


def _say(text: str, code: int) -> int:
    print(f"mixmo: {printable(' '.join(text.split()))}", file=sys.stderr)
    return code


def _kept() -> str:
    """Return the name of a file that has the traceback of the exception at hand."""
    with tempfile.NamedTemporaryFile("w", prefix="mixmo-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(f"{json.dumps(environment(), indent=1)}\n{traceback.format_exc()}")
    return file.name


@contextmanager
def notices() -> Iterator[None]:
    """Show what mixmo's log has to say on standard error, a line each."""
    logger, handler = logging.getLogger("mixmo"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("mixmo: %(message)s"))
    propagate, level = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


def fit_command(words: list[str]) -> None:
    """``mixmo fit RECIPE [--key value …]`` or ``mixmo fit RUN``."""
    from mixmo.training.fit import fit

    if {"-h", "--help"} & set(words):
        print_help("fit")
        return
    if not words or words[0].startswith("-"):
        raise InputError("fit needs a recipe's name, a YAML file or a run's folder; `mixmo recipes` lists the recipes.")
    target, overrides = words[0], words[1:]
    resume = Path(target).is_dir()
    if resume:
        if overrides:
            raise InputError(
                f"{target} is a run's folder, which goes on with its own settings; to change {overrides[0]}, start "
                f"a new run with `mixmo fit {target}/config.yaml`."
            )
        run = Run(target).require()
        plan = make_plan(run.resumed_config())
    else:
        plan = make_plan(load_recipe(target), overrides)
        run = Run(plan.folder or f"runs/{Path(target).stem}")
    if resume and run.finished(plan.trainer["max_epochs"]):
        print(f"{run.path} is finished; `mixmo test {run.path}` judges it.")
        return
    try:
        fit(plan, run, resume)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the one into the other
        raise StoppedError(f"stopped; `mixmo fit {run.path}` goes on from the last finished epoch.") from None
    print(f"{run.path} is trained; `mixmo test {run.path}` judges it.")


def test_command(words: list[str]) -> None:
    """``mixmo test RUN… [--ood DATASET …] [--per_class true] …`` or ``mixmo test --predictions FILE``."""
    from mixmo.reporting.testing import judge, judge_file

    parser = ArgumentParser(prog="mixmo test", exit_on_error=False)
    parser.add_argument("runs", nargs="*", type=str, help="runs' folders; several are judged as one ensemble")
    parser.add_argument("--predictions", type=str | None, default=None, help="an .npz file in place of runs")
    _add_judging(parser)
    parser.add_argument("--per_class", type=bool, default=False, help="judge each class as well")
    chosen = parse(parser, words)
    if bool(chosen.runs) == (chosen.predictions is not None):
        raise InputError("test needs a run's folder, or several, or --predictions with a file.")
    if chosen.predictions is not None:
        if given := [name for name in JUDGING if chosen[name] != parser.get_default(name)]:
            raise InputError(f"--{given[0]} asks for a run; --predictions has nothing but what its file holds.")
        judge_file(chosen.predictions, chosen.per_class)
        return
    runs = [Run(path) for path in chosen.runs]
    judge(*runs, per_class=chosen.per_class, **{name: chosen[name] for name in JUDGING})


def compare_command(words: list[str]) -> None:
    """``mixmo compare RUN… [--out FOLDER]``."""
    from mixmo.evaluation.results import Options
    from mixmo.reporting.comparison_page import compare

    parser = ArgumentParser(prog="mixmo compare", exit_on_error=False)
    what = "runs' folders, folders of runs that differ by seed, RUN+RUN (one ensemble) or .npz files; NAME= before"
    parser.add_argument("networks", nargs="+", type=str, help=what)
    parser.add_argument("--out", type=str, default="comparison", help="the folder to write into")
    _add_judging(parser)
    chosen = parse(parser, words)
    compare(chosen.networks, Path(chosen.out), Options(**{name: chosen[name] for name in JUDGING}))


def recipes_command(words: list[str]) -> None:
    """``mixmo recipes``."""
    parser = ArgumentParser(prog="mixmo recipes", exit_on_error=False)
    parse(parser, words)
    table = Table(
        title="Shipped recipes",
        caption="published: top-1 in % and where it stands; readme = README of the paper's code, best test epoch",
    )
    for column in ("recipe", "dataset", "network", "method", "b", "published", "source"):
        table.add_column(column, no_wrap=True)
    for name, recipe in catalogue().items():
        table.add_row(
            name,
            recipe["data"]["name"],
            recipe["model"]["backbone"],
            method_of(recipe),
            str(recipe["data"].get("batch_repetition", 1)),
            *(str(recipe.get(key, "")) for key in NOTES),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def preview_command(words: list[str]) -> None:
    """``mixmo preview RECIPE [--key value …] [--out FOLDER]``."""
    from mixmo.reporting.preview import preview

    if {"-h", "--help"} & set(words):
        print_help("preview")
        return
    if not words or words[0].startswith("-"):
        raise InputError("preview needs a recipe's name or a YAML file; `mixmo recipes` lists the recipes.")
    plan = make_plan(load_recipe(words[0]), words[1:], "preview")
    name = Path(words[0]).stem
    for file in preview(plan, name, Path(plan.folder or f"preview/{name}")):
        print(file)


def benchmark_command(words: list[str]) -> None:
    """``mixmo benchmark [--backbone NAME --batch_size 64 --num_members 2 …] [--save FILE]``."""
    from mixmo.evaluation.benchmark import Benchmark, run

    parser = ArgumentParser(prog="mixmo benchmark", exit_on_error=False)
    parser.add_class_arguments(Benchmark, as_group=False)
    parser.add_argument("--save", type=str | None, default=None, help="keep the figures in a JSON file")
    chosen = parse(parser, words)
    save = chosen.pop("save")
    run(Benchmark(**vars(chosen)), save)


def method_of(recipe: Mapping[str, Any]) -> str:
    """Return the method's usual name: single, MIMO, Linear-MixMo, Cut-MixMo, with + CutMix or + mixup.

    Example:
        >>> method_of(load_recipe("cifar10-wrn28x10-linear-cutmix"))
        'Linear-MixMo + CutMix'
    """
    names = {"mimo": "MIMO", "linear": "Linear-MixMo", "cut": "Cut-MixMo", "cutmix": "CutMix"}
    kind = recipe.get("mixer", {}).get("kind", "cut")
    pixels = recipe.get("pixels", {}).get("kind", "none")
    kind = kind if isinstance(kind, str) else "/".join(kind)
    base = "single" if recipe["model"].get("num_members", 2) == 1 else names.get(kind, f"{kind} MixMo")
    return base if pixels == "none" else f"{base} + {names.get(pixels, pixels)}"


def _add_judging(parser: ArgumentParser) -> None:
    """Add the options of :data:`JUDGING`."""
    from mixmo.evaluation.results import MADE

    parser.add_argument("--checkpoint", type=str, default="last", help="last, or best on the validation set")
    parser.add_argument("--precision", type=str, default="32-true", help="32-true or bf16-mixed")
    parser.add_argument("--ood", nargs="+", type=str, default=[], help="datasets of none of the classes")
    parser.add_argument(
        "--corruptions", nargs="?", const=MADE, type=str | None, default=None, metavar="FOLDER",
        help="corrupt the test images in 19 ways; with a folder, take CIFAR-10-C's or CIFAR-100-C's files",
    )  # fmt: skip
    parser.add_argument("--refresh", action="store_true", help="predict anew, whatever is kept of an earlier call")
    parser.add_argument("--download", action="store_true", help="let what a network is built from be downloaded")
