"""What ``import mixmo`` loads, and that every public name is there all the same."""

import subprocess
import sys

import mixmo

HEAVY = ("jsonargparse", "lightning", "matplotlib", "pandas", "scipy", "sklearn", "torchmetrics")


def in_a_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_loads_the_method_only():
    loaded = in_a_new_process("import sys, mixmo; print(*{name.partition('.')[0] for name in sys.modules})")
    assert {"torch", "timm"} <= set(loaded)
    assert not set(HEAVY) & set(loaded)
    own = in_a_new_process("import sys, mixmo; print(*(name for name in sys.modules if name.startswith('mixmo.')))")
    rooms = {name.split(".")[1] for name in own}
    method = {"batch_mixing", "masks", "mixing", "models", "network", "pairing", "pixel_mixing", "stem"}
    assert rooms == method | {"errors", "seeding"}


def test_every_public_name_resolves():
    code = "import mixmo; print(*(name for name in mixmo.__all__ if getattr(mixmo, name) is not None))"
    assert in_a_new_process(code) == mixmo.__all__
    assert set(mixmo.__all__) <= set(dir(mixmo))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(mixmo, "no_such_name")
    assert in_a_new_process("import mixmo; print(hasattr(mixmo, 'evaluat'))") == ["False"]


def test_star_import_brings_every_public_name():
    assert in_a_new_process("from mixmo import *; print(callable(evaluate), callable(load))") == ["True", "True"]
