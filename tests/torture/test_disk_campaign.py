"""Full or read-only disks: one message, and existing files are unchanged."""

import shutil
import subprocess

import pytest

from mixmo import checkpoints
from mixmo.cli.main import main
from mixmo.deploy.export import FORMATS, export
from mixmo.deploy.hub import save_pretrained
from mixmo.digests import is_whole_export
from mixmo.errors import InputError
from mixmo.evaluation.inference import TrainedRun
from mixmo.runs import RunFolder


def mount(*words):
    return subprocess.run(["mount", *map(str, words)], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A small separate disk, whose size and permissions ``mount -o remount`` changes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=64m", "none", folder):
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def gone_run(trained):
    return TrainedRun(trained[1])


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def fill(folder, rest):
    """Fill the disk up to a number of free bytes."""
    free = shutil.disk_usage(folder).free
    (folder / "ballast").write_bytes(bytes(max(0, free - rest)))


@pytest.mark.torture
@pytest.mark.parametrize("rest", [0, 4096, 20_000, 100_000, 300_000, 700_000, 1_000_000])
@pytest.mark.parametrize("command", ["fit", "go on", "test", "compare", "preview"])
def test_full_disks(trained, disk, monkeypatch, capsys, command, rest):
    folder, run, _ = trained
    shutil.copytree(run.path, disk / "run")
    config = disk / "run" / "config.yaml"
    config.write_text(config.read_text().replace("max_epochs: 2", "max_epochs: 6"))
    shutil.rmtree(disk / "run" / "predictions", ignore_errors=True)
    monkeypatch.chdir(disk)
    before = contents(disk / "run")
    small = [f"--data.name=folder:{folder}/data", "--data.batch_size=8", "--data.channels=3", "--data.validation=0.25"]
    words = {
        "fit": ["fit", "digits-cut", "--run=new", *small, "--data.image_size=null", "--trainer.max_epochs=6"],
        "go on": ["fit", "run"],
        "test": ["test", "run"],
        "compare": ["compare", "run", "--out", "out"],
        "preview": ["preview", "digits-cut", "--out", "out", *small, "--data.image_size=8"],
    }[command]
    fill(disk, rest)
    code = main(words)
    error = capsys.readouterr().err
    assert code in (0, 2) and "Traceback" not in error
    if code == 2:
        assert "No space left on device" in error
    after = contents(disk / "run")
    if command != "go on":
        assert {file: after[file] for file in before} == before
    elif code == 2:  # the last intact checkpoint is there, and the run resumes once there is space
        assert checkpoints.load(disk / "run" / "checkpoints" / "last.ckpt")["epoch"] >= 1
        (disk / "ballast").unlink()
        assert main(["fit", "run"]) == 0
    assert not [file for file in disk.rglob("*.partial")]


@pytest.mark.torture
@pytest.mark.parametrize("format", [*FORMATS, "hub"])
def test_exports_to_full_disks(gone_run, disk, format, capsys):
    """The earlier export stays, or the new one is complete; nothing else is left."""
    out = disk / "out"

    def write():
        if format == "hub":
            return save_pretrained(gone_run.path, out)
        return export(gone_run, format, out).path

    size = sum(file.stat().st_size for file in [write(), *out.rglob("*")])
    said = []
    for rest in [0, 4096, *(int(size * share) for share in (0.2, 0.5, 0.8, 0.95, 1.3, 2, 3, 30))]:
        if format == "hub":
            shutil.rmtree(out)
        (disk / "ballast").unlink(missing_ok=True)
        before = contents(disk)
        fill(disk, rest)
        try:
            write()
            said.append("written")
            assert format == "hub" or is_whole_export(out)
        except InputError as error:
            said.append(str(error))
            assert "No space left on device" in said[-1] and "\n" not in said[-1]
            (disk / "ballast").unlink()
            assert contents(disk) == before
        (disk / "ballast").unlink(missing_ok=True)
        assert {each.name for each in disk.iterdir()} <= {"out"}
        if format == "hub" and not out.exists():
            write()
    with capsys.disabled():
        print(f"\n{format}: {said.count('written')} of {len(said)} exports to nearly full disks are whole, the others "
              f"refused: {set(said) - {'written'}}")  # fmt: skip
    assert len(said) > said.count("written") > 0


@pytest.mark.torture
@pytest.mark.parametrize("command", ["fit", "go on", "test", "compare", "preview"])
def test_read_only_disks(trained, disk, monkeypatch, capsys, command):
    folder, run, _ = trained
    shutil.copytree(run.path, disk / "run")
    config = disk / "run" / "config.yaml"
    config.write_text(config.read_text().replace("max_epochs: 2", "max_epochs: 6"))
    monkeypatch.chdir(disk)
    small = [f"--data.name=folder:{folder}/data", "--data.batch_size=8", "--data.channels=3", "--data.image_size=8"]
    words = {
        "fit": ["fit", "digits-cut", "--run=new", *small, "--data.validation=0.25"],
        "go on": ["fit", "run"],
        "test": ["test", "run"],
        "compare": ["compare", "run", "--out", "out"],
        "preview": ["preview", "digits-cut", "--out", "out", *small],
    }[command]
    assert mount("-o", "remount,ro", disk)
    before = contents(disk)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "Read-only file system" in error and "Traceback" not in error
    assert contents(disk) == before
    assert RunFolder("run").finished_epochs() == 2
