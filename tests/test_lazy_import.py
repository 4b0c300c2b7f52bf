"""What ``import mixmo`` and the command line load; every public name is available anyway."""

import json
import subprocess
import sys

import pytest

import mixmo

HEAVY = ("jsonargparse", "lightning", "matplotlib", "pandas", "scipy", "sklearn", "torchmetrics")


NAMES = """
import json, sys, mixmo
loaded, unknown = [*sys.modules], hasattr(mixmo, "evaluat")
resolved = [name for name in mixmo.__all__ if getattr(mixmo, name) is not None]
from mixmo import *
print(json.dumps([loaded, unknown, resolved, callable(evaluate) and callable(load)]))
"""


@pytest.mark.slow
def test_importing_the_package_loads_the_method_only_and_other_names_when_they_are_used():
    done = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded, unknown, resolved, by_star = json.loads(done.stdout)
    packages = {name.partition(".")[0] for name in loaded}
    assert {"torch", "timm"} <= packages and not set(HEAVY) & packages
    rooms = {name.split(".")[1] for name in loaded if name.startswith("mixmo.")}
    method = {"batch_mixing", "masks", "mixing", "models", "network", "pairing", "pixel_mixing", "stem"}
    assert rooms == method | {"errors", "seeding", "validation"}
    assert resolved == mixmo.__all__ and by_star and not unknown


def test_public_names_are_listed():
    assert set(mixmo.__all__) <= set(dir(mixmo)) and not hasattr(mixmo, "no_such_name")


COMMAND = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, *_):
        if name == "torch" and {interrupt}:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
sys.meta_path.insert(0, Finder())
sys.argv = ["mixmo", *{words!r}]
import mixmo_command
code = mixmo_command.main()
HEAVY = {{"torch", "timm", "numpy", "jsonargparse", "lightning"}}
print(sorted({{name.partition(".")[0] for name in sys.modules}} & HEAVY))
sys.exit(code)
"""


def command(*words, interrupt=False):
    code = COMMAND.format(words=words, interrupt=interrupt)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "usage: mixmo COMMAND"),
        (["--help"], 0, "usage: mixmo COMMAND"),
        (["--version"], 0, f"mixmo {mixmo.__version__}"),
        (["recipes"], 0, "quickstart"),
        (["recipes", "--help"], 0, "List the shipped recipes."),
        (["recipes", "all"], 2, "unrecognized arguments: all; recipes takes none."),
        (["fti"], 2, "unknown command 'fti'; did you mean 'fit'?"),
    ],
)
def test_what_needs_no_network_loads_nothing_for_one(words, code, said):
    done = command(*words)
    assert done.returncode == code and said in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_interrupt_during_imports_ends_the_command_at_once():
    """Without a traceback, and not reported as a missing module."""
    done = command("test", "nowhere", interrupt=True)
    assert (done.returncode, done.stderr) == (130, "mixmo: stopped.\n")
