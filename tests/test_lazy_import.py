"""What ``import mixmo`` and the command line load, and that every public name is there all the same."""

import subprocess
import sys

import pytest

import mixmo

HEAVY = ("jsonargparse", "lightning", "matplotlib", "pandas", "scipy", "sklearn", "torchmetrics")


def in_a_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_importing_the_package_loads_the_method_only():
    loaded = in_a_new_process("import sys, mixmo; print(*{name.partition('.')[0] for name in sys.modules})")
    assert {"torch", "timm"} <= set(loaded)
    assert not set(HEAVY) & set(loaded)
    own = in_a_new_process("import sys, mixmo; print(*(name for name in sys.modules if name.startswith('mixmo.')))")
    rooms = {name.split(".")[1] for name in own}
    method = {"batch_mixing", "masks", "mixing", "models", "network", "pairing", "pixel_mixing", "stem"}
    assert rooms == method | {"errors", "seeding", "validation"}


@pytest.mark.slow
def test_every_public_name_resolves():
    code = "import mixmo; print(*(name for name in mixmo.__all__ if getattr(mixmo, name) is not None))"
    assert in_a_new_process(code) == mixmo.__all__
    assert set(mixmo.__all__) <= set(dir(mixmo))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(mixmo, "no_such_name")
    assert in_a_new_process("import mixmo; print(hasattr(mixmo, 'evaluat'))") == ["False"]


@pytest.mark.slow
def test_star_import_brings_every_public_name():
    assert in_a_new_process("from mixmo import *; print(callable(evaluate), callable(load))") == ["True", "True"]


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


@pytest.mark.slow
def test_the_command_loads_what_it_needs(tmp_path):
    done = command("test", str(tmp_path / "nowhere"))
    assert done.returncode == 2 and "there is no run folder" in done.stderr and "'torch'" in done.stdout


def test_an_interrupt_during_imports_ends_the_command_at_once():
    """Not as a traceback, nor as a module that is missing."""
    done = command("test", "nowhere", interrupt=True)
    assert (done.returncode, done.stderr) == (130, "mixmo: stopped.\n")
