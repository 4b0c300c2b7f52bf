"""Damaged checkpoints: every one is refused or gives way to the one before it; none trains on unnoticed."""

import random
import shutil

import pytest

from mixmo import checkpoints
from mixmo.cli.main import main
from mixmo.errors import InputError


def flipped(content, rng):
    damaged = bytearray(content)
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(content, rng):
    return content[: rng.randrange(len(content))]


def zeroed(content, rng):
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.choice([1, 64, 4096]))
    if not any(content[start:stop]):
        return cut(content, rng)
    return content[:start] + bytes(stop - start) + content[stop:]


def swapped(content, rng):
    start, other = rng.randrange(len(content) - 64), rng.randrange(len(content) - 64)
    if content[start : start + 64] == content[other : other + 64]:
        return flipped(content, rng)
    damaged = bytearray(content)
    damaged[start : start + 64] = content[other : other + 64]
    return bytes(damaged)


@pytest.mark.torture
@pytest.mark.parametrize(("damage", "count"), [(flipped, 300), (cut, 100), (zeroed, 100), (swapped, 100)])
def test_no_damage_goes_unnoticed(trained, tmp_path, damage, count, capsys):
    _, run, _ = trained
    content, file, rng = run.checkpoint_file().read_bytes(), tmp_path / "last.ckpt", random.Random(0)
    unnoticed = 0
    for _ in range(count):
        file.write_bytes(damage(content, rng))
        try:
            checkpoints.load(file)
            unnoticed += 1
        except InputError:
            continue
    with capsys.disabled():
        print(f"\n{damage.__name__}: {unnoticed} of {count} damaged checkpoints go unnoticed")
    assert not unnoticed


@pytest.mark.torture
def test_commands_name_a_damaged_checkpoint(trained, tmp_path, capsys):
    _, run, _ = trained
    shutil.copytree(run.path, tmp_path / "run")
    file, rng = tmp_path / "run" / "checkpoints" / "last.ckpt", random.Random(1)
    content = file.read_bytes()
    for damage in (flipped, cut, zeroed, swapped):
        file.write_bytes(damage(content, rng))
        assert main(["test", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert "last.ckpt is damaged" in error and error.count("\n") == 1
