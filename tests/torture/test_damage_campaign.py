"""Damaged checkpoints and exports: refused, or replaced by the previous one; no prediction changes unnoticed."""

import random
import shutil

import pytest
from damage import count_outcomes, cut, flipped, swapped, zeroed

import mixmo
from mixmo import checkpoints
from mixmo.cli.main import main
from mixmo.deploy.export import FORMATS, export
from mixmo.deploy.hub import save_pretrained
from mixmo.errors import InputError
from mixmo.evaluation.inference import TrainedRun
from mixmo.runs import RunFolder
from mixmo.training.initial_weights import read_tensors


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


@pytest.mark.torture
@pytest.mark.parametrize("form", [*FORMATS, "shared"])
def test_no_damage_of_an_export_changes_an_answer_unnoticed(gone, new_images, tmp_path, form, capsys):
    """Every file of every export format; no program reads the model card."""
    exported = tmp_path / FORMATS.get(form, form)
    if form == "shared":
        save_pretrained(gone, exported)
    else:
        export(TrainedRun(RunFolder(gone)), form, exported)
    files = sorted(new_images.iterdir())[:2]

    def answers(path):
        if form == "safetensors":
            return b"".join(each.numpy().tobytes() for _, each in sorted(read_tensors(path)[""].items()))
        return mixmo.Predictor(path)(files).probabilities.numpy().tobytes()

    refused, same, wrong = count_outcomes(exported, answers, answers(exported), 56, InputError)
    with capsys.disabled():
        print(f"\n{form}: of {refused + same + len(wrong)} damages {refused} refused, {same} change no answer, "
              f"{len(wrong)} change answers unnoticed")  # fmt: skip
    assert not wrong
