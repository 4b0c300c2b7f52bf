"""Local datasets: folders with and without splits, zip files and tables."""

import csv
import pickle
import shutil
import tarfile
import zipfile
from collections import Counter

import numpy as np
import pytest
from conftest import open_data, open_source, write_tree
from PIL import Image

from mixmo.cli.main import main
from mixmo.config.data_settings import DataSettings
from mixmo.data.datasets import NamedDataset
from mixmo.data.module import DataModule
from mixmo.data.sources import decode
from mixmo.errors import InputError
from mixmo.runs import RunFolder

CLASSES = {"cat": 10, "dog": 5, "emu": 3}


def settings(name, **changes):
    given = {"name": name, "batch_size": 4, "validation": 0.0, "padding": 0, "channels": 1}
    return DataSettings(**given | changes)


def names(source):
    return [source.name(index) for index in range(len(source))]


@pytest.fixture
def photos(tmp_path):
    """Class folders without any split."""
    write_tree(tmp_path / "photos", *(f"{name}/{i}.png" for name, count in CLASSES.items() for i in range(count)))
    return tmp_path / "photos"


def zipped(folder, archive, top=""):
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, f"{top}{path.relative_to(folder)}")
    return archive


def tabled(folder, file, split=None):
    with file.open("w", newline="") as content:
        writer = csv.writer(content)
        writer.writerow(["path", "label"] + (["split"] if split else []))
        for path in sorted(folder.rglob("*.png")):
            row = [path.relative_to(file.parent), path.parent.name]
            writer.writerow(row + ([split(path)] if split else []))
    return file


@pytest.mark.parametrize("form", ["folder", "zip", "zip with a top folder", "csv"])
def test_classes_without_splits_are_drawn_class_by_class(photos, tmp_path, form):
    """One image in five for testing, at least one and never all; the same for every seed."""
    if form == "csv":
        name = f"csv:{tabled(photos, tmp_path / 'photos.csv')}"
    elif form == "folder":
        name = f"folder:{photos}"
    else:
        name = f"folder:{zipped(photos, tmp_path / 'photos.zip', 'holiday/' if 'top' in form else '')}"
    assert NamedDataset(name).splits == set()
    data = open_data(settings(name))
    assert data.classes == ["cat", "dog", "emu"]
    assert Counter(data.test.labels.tolist()) == {0: 2, 1: 1, 2: 1}
    assert Counter(data.train.labels.tolist()) == {0: 8, 1: 4, 2: 2}
    rows = list(data.split_rows())
    assert len({path for path, *_ in rows}) == len(rows) == 18
    for seed in (0, 7):
        again = DataModule(settings(name, validation=0.25), seed)
        tested = [path for path, _, split in again.split_rows() if split == "test"]
        assert tested == [path for path, _, split in rows if split == "test"]
        assert Counter(split for *_, split in again.split_rows()) == {"train": 10, "validation": 4, "test": 4}
    other = DataModule(settings(name, split_seed=3), 0)
    assert [path for path, _, split in other.split_rows() if split == "test"] != tested
    assert len(data.other(name)[0]) == 18  # as an out-of-distribution dataset all of it


def test_shares_of_the_draw(photos, caplog):
    counts = {}
    for share in (0.01, 0.5, 0.99):
        counts[share] = Counter(open_data(settings(f"folder:{photos}", test=share, batch_size=2)).test.labels.tolist())
    assert counts == {0.01: {0: 1, 1: 1, 2: 1}, 0.5: {0: 5, 1: 2, 2: 2}, 0.99: {0: 9, 1: 4, 2: 2}}
    with pytest.raises(InputError, match=r"data\.test is 1\.0"):
        settings("digits", test=1.0)
    write_tree(photos, "fox/0.png")
    open_data(settings(f"folder:{photos}", batch_size=2, validation=0.0))
    assert "has too few images of a class for every split: test has no image of fox; add images" in caplog.text


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
@pytest.mark.parametrize("form", ["folder", "zip", "csv"])
def test_a_validation_set_of_its_own(tmp_path, form, validation):
    folder = tmp_path / "photos"
    parts = {"train": 6, "test": 2, validation: 3}
    write_tree(folder, *(f"{part}/{c}/{i}.png" for part, n in parts.items() for c in ("a", "b") for i in range(n)))
    name = {
        "folder": lambda: f"folder:{folder}",
        "zip": lambda: f"folder:{zipped(folder, tmp_path / 'photos.zip')}",
        "csv": lambda: f"csv:{tabled(folder, tmp_path / 'photos.csv', lambda path: path.parts[-3])}",
    }[form]()
    assert NamedDataset(name).splits == {"train", "validation", "test"}
    data = open_data(settings(name, validation=0.1))
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 6, 4) and data.drawn_splits is None
    assert all(f"{validation}/" in each for each in names(data._parts["validation"]))
    assert open_data(settings(name, validation=0.0)).validation is None


def test_a_single_other_split_is_the_test_set(tmp_path):
    write_tree(tmp_path, *(f"{part}/{c}/{i}.png" for part in ("train", "valid") for c in ("a", "b") for i in range(4)))
    assert NamedDataset(f"folder:{tmp_path}").splits == {"train", "test"}
    data = open_data(settings(f"folder:{tmp_path}"))
    assert len(data.test) == 8 and all("valid" in each for each in names(data._test_source))


def test_zip_files_are_read_by_processes(photos, tmp_path):
    """The open file is not pickled with the images."""
    source = open_source(f"folder:{zipped(photos, tmp_path / 'photos.zip')}", "all")
    assert source.read(0).startswith(b"\x89PNG")
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(i) for i in range(len(again))] == [source.read(i) for i in range(len(source))]
    assert again.fingerprint() == source.fingerprint()


def test_odd_names_in_zip_files(photos, tmp_path):
    archive = zipped(photos, tmp_path / "photos.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("__MACOSX/cat/._0.png", b"x")
        file.writestr("../../cat/up.png", (photos / "cat/0.png").read_bytes())
        file.writestr("notes.txt", "no image")
        file.writestr("dog/without_ending", (photos / "cat/0.png").read_bytes())
    source = open_source(f"folder:{archive}", "all")
    assert source.classes == ["cat", "dog", "emu"] and len(source) == 19
    assert any(each.endswith("photos.zip/dog/without_ending") for each in names(source))
    assert not list(tmp_path.rglob("up.png"))


def test_an_archive_is_unpacked_once_and_again_when_it_has_changed(photos, tmp_path, caplog):
    caplog.set_level("INFO", "mixmo")
    archive = zipped(photos, tmp_path / "photos.zip")
    for _ in range(2):
        assert len(open_source(f"folder:{archive}", "all")) == 18
    assert caplog.text.count("unpacking") == 1
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("dog/new.png", (photos / "cat/0.png").read_bytes())
    assert len(open_source(f"folder:{archive}", "all")) == 19


def test_a_run_writes_its_split_down_and_notices_a_change(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [f"--data.name=folder:{photos}", "--data.batch_size=4", "--data.image_size=8", "--trainer.max_epochs=1"]
    assert main(["fit", "digits-cut", *words, "--data.validation=0.25", "--run=run"]) == 0
    with (tmp_path / "run/split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["split"] for row in rows) == {"train": 10, "validation": 4, "test": 4}
    assert all(row["path"].startswith(str(photos)) and row["label"] in row["path"] for row in rows)
    assert main(["test", "run"]) == 0
    assert RunFolder("run").read_json("test.json")["about"]["images"] == 4
    write_tree(photos, "cat/new.png")
    capsys.readouterr()
    assert main(["test", "run"]) == 2
    assert "has changed since run was trained: other images would be drawn for testing" in capsys.readouterr().err


def test_what_is_drawn_for_validation_is_noticed_too_and_the_calibration_kept(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, tmp_path / "own/train")
    shutil.copytree(photos, tmp_path / "own/test")
    words = ["--data.name=folder:own", "--data.batch_size=4", "--data.image_size=8", "--trainer.max_epochs=1"]
    assert main(["fit", "digits-cut", *words, "--data.validation=0.25", "--run=run"]) == 0
    assert len(list(csv.DictReader((tmp_path / "run/split.csv").open(newline="")))) == 36  # given test images, too
    file = tmp_path / "run/calibration-last.safetensors"
    before = file.read_bytes()
    write_tree(tmp_path / "own/train", "cat/new.png")
    capsys.readouterr()
    assert main(["test", "run"]) == 0  # the test images are what they were, and so is the calibration
    assert file.read_bytes() == before
    assert main(["test", "run", "--refresh"]) == 2
    assert "other images would be drawn for validation" in capsys.readouterr().err
    file.unlink()
    assert main(["fit", "run"]) == 2
    assert not file.exists()
    (tmp_path / "own/train/cat/new.png").unlink()
    assert main(["fit", "run"]) == 0  # finished, and calibrated now
    assert file.read_bytes() == before


def test_runs_of_other_input_sizes_are_one_ensemble_on_strange_images(photos, tmp_path, monkeypatch):
    """Each run sees the same images at its own size."""
    monkeypatch.chdir(tmp_path)
    words = [f"--data.name=folder:{photos}", "--data.batch_size=4", "--data.validation=0", "--trainer.max_epochs=1"]
    for size in (8, 12):
        assert main(["fit", "digits-single", *words, f"--data.image_size={size}", f"--run=at{size}"]) == 0
    shutil.copytree(photos, tmp_path / "strange")
    assert main(["test", "at8", "at12", "--ood", "folder:strange"]) == 0


def test_runs_tested_on_other_drawn_images_are_neither_one_ensemble_nor_compared(photos, tmp_path, monkeypatch, capsys):
    """Their labels are the same, one by one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, tmp_path / "copy")
    words = ["--data.batch_size=4", "--data.image_size=8", "--data.validation=0", "--trainer.max_epochs=1"]
    for name, folder, split_seed in (("one", "photos", 0), ("two", "photos", 7), ("same", "copy", 0)):
        more = [f"--data.name=folder:{folder}", f"--data.split_seed={split_seed}", f"--run={name}"]
        assert main(["fit", "digits-single", *words, *more]) == 0
    assert main(["test", "one", "same"]) == 0 == main(["compare", "one", "same"])
    capsys.readouterr()
    assert main(["test", "one", "two"]) == 2
    assert "one and two cannot be ensembled: they were tested on different images" in capsys.readouterr().err
    assert main(["compare", "one", "two"]) == 2
    assert "two and one were tested on different images or classes" in capsys.readouterr().err


def test_a_cell_lists_any_number_of_labels(tmp_path):
    """Images without labels belong to no class; held-out images are stratified by their rarest labels."""
    cells = ["cat | dog", "", "dog", "owl|cat|dog", "dog", "cat"] * 6 + ["ape|owl"] * 2
    write_tree(tmp_path, *(f"{number}.png" for number in range(len(cells))))
    rows = [f"{number}.png,{cell}" for number, cell in enumerate(cells)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    name = f"csv:{tmp_path}/t.csv"
    source = open_source(name, "all", multi_label=True)
    assert source.classes == ["ape", "cat", "dog", "owl"]
    assert source.labels[:4].tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 1]]
    data = open_data(settings(name, multi_label=True, validation=0.25, test=0.5, batch_size=4))
    parts = [np.asarray(each.labels) for each in (data.train, data.validation, data.test)]
    assert [part.shape for part in parts] == [(13, 4), (6, 4), (19, 4)]
    assert parts[2][:, 0].sum() == 1 and (parts[2][:, 3].sum(), (parts[2].sum(1) == 0).sum()) == (4, 3)
    assert parts[0].any(0).all()
    labels = {name: label for name, label, _ in data.split_rows()}
    assert labels[str(tmp_path / "0.png")] == "cat|dog" and labels[str(tmp_path / "1.png")] == ""
    with pytest.raises(InputError, match="line 3, has no label"):
        open_data(settings(name))
    with pytest.raises(InputError, match="images_per_class is 2, which draws images class by class"):
        settings(name, multi_label=True, images_per_class=2)
    with pytest.raises(InputError, match=r"have one label each, but data\.multi_label is True"):
        open_data(settings("digits", multi_label=True))


def test_strange_images_need_neither_columns_nor_classes(photos, tmp_path):
    """Datasets that a network is to tell from its own are not trained on."""
    write_tree(tmp_path, *(f"strange/only/{i}.png" for i in range(3)), *(f"{i}.png" for i in range(8)))
    (tmp_path / "t.csv").write_text("image,label\n" + "".join(f"{i}.png,{'xy'[i % 2]}\n" for i in range(8)))
    data = open_data(settings(f"csv:{tmp_path}/t.csv", columns={"path": "image"}, test=0.25))
    images, classes = data.other(f"folder:{tmp_path}/strange")
    assert len(images) == 3 and classes == ["only"]


def test_a_zip_file_of_one_file_holds_no_images(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/README.txt").write_text("nothing here")
    zipped(tmp_path / "photos", tmp_path / "photos.zip")
    with pytest.raises(FileNotFoundError, match="holds no images; it needs one folder for each class"):
        open_data(settings(f"folder:{tmp_path}/photos.zip"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04damaged", b"no zip at all", None])
def test_damaged_zip_files_are_one_sentence(tmp_path, content):
    if content is None:  # one byte of the list of files is another
        write_tree(tmp_path / "photos", "cat/a.png", "dog/a.png")
        whole = bytearray(zipped(tmp_path / "photos", tmp_path / "photos.zip").read_bytes())
        whole[whole.index(b"PK\x01\x02") + 3] ^= 1
        content = bytes(whole)
    (tmp_path / "photos.zip").write_bytes(content)
    with pytest.raises(
        InputError, match=r"photos\.zip cannot be unpacked into .*; unpack it yourself and give the folder"
    ):
        open_data(settings(f"folder:{tmp_path}/photos.zip"))


def test_folders_without_images_say_what_is_needed(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no images; it needs one folder for each class"):
        open_data(settings(f"folder:{tmp_path}"))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "loose.png")
    with pytest.raises(FileNotFoundError, match="holds no images; it needs one folder for each class"):
        open_data(settings(f"folder:{tmp_path}"))


COMPOSED, DECOMPOSED = "M\u00fccke", "Mu\u0308cke"


def look_alikes(kind, folder, train, test):
    """Write a dataset of two classes, one of which has two spellings; return the dataset's name."""
    rng = np.random.default_rng(0)
    for split, names in (("train", train), ("test", test)):
        for name in (*names, "cat"):
            for index in range(3):
                file = folder / "images" / split / name / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(file)
    files = sorted((folder / "images").rglob("*.png"))
    if kind == "csv":
        rows = [f"{file},{file.parent.name},{file.parent.parent.name}" for file in files]
        (folder / "data.csv").write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")
        return f"csv:{folder}/data.csv"
    if kind == "zip":
        with zipfile.ZipFile(folder / "data.zip", "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(folder / "images"))
        return f"folder:{folder}/data.zip"
    if kind == "tar":
        (folder / "tars").mkdir()
        for split in ("train", "test"):
            with tarfile.open(folder / "tars" / f"{split}.tar", "w") as tar:
                for file in (each for each in files if each.parent.parent.name == split):
                    tar.add(file, f"{file.parent.name}/{file.name}")
        return f"folder:{folder}/tars"
    return f"folder:{folder}/images"


@pytest.mark.parametrize("kind", ["folder", "csv", "zip", "tar"])
@pytest.mark.parametrize("within", [False, True])
def test_one_name_in_two_unicode_forms_is_said(tmp_path, kind, within):
    """Systems write the same accent differently: composed or decomposed."""
    train = [COMPOSED, DECOMPOSED] if within else [COMPOSED]
    name = look_alikes(kind, tmp_path, train, [DECOMPOSED])
    with pytest.raises(InputError) as raised:
        open_data(DataSettings(name=name, batch_size=2, validation=0.0))
    said = str(raised.value)
    assert "look alike" in said
    assert f"{COMPOSED} (composed, NFC)" in said and f"{DECOMPOSED} (decomposed, NFD)" in said
    assert "train" in said or within


def test_names_that_differ_in_spaces_or_capitals_are_said(tmp_path):
    name = look_alikes("folder", tmp_path / "spaces", ["dog"], ["dog "])
    with pytest.raises(InputError, match=r"look alike: dog +\(spaces as in 'dog '\) and dog \(without"):
        open_data(DataSettings(name=name, batch_size=2, validation=0.0))
    name = look_alikes("folder", tmp_path / "capitals", ["dog"], ["Dog"])
    with pytest.raises(InputError, match=r"lacks, Dog \(Dog and dog differ in capitals\)"):
        open_data(DataSettings(name=name, batch_size=2, validation=0.0))
    name = look_alikes("folder", tmp_path / "letters", ["a", "A"], ["a", "A"])
    assert open_source(name, "train").classes == ["A", "a", "cat"]


def labelled(folder, labels):
    """Write a table of images of one value each with these labels, and a test set of two classes."""
    rows = [
        *((f"train{value}", label, "train") for value, label in enumerate(labels)),
        ("a", 0, "test"),
        ("b", 1, "test"),
    ]
    for value, (name, *_) in enumerate(rows):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(folder / f"{name}.png")
    (folder / "data.csv").write_text("\n".join(["path,label,split", *(f"{n}.png,{label},{s}" for n, label, s in rows)]))
    return f"csv:{folder}/data.csv"


@pytest.mark.parametrize("absent", ["-1", "nan"])
def test_rows_without_a_label_are_no_class(tmp_path, absent, caplog):
    name = labelled(tmp_path, [absent if value % 5 == 0 else value % 2 for value in range(30)])
    with pytest.raises(InputError, match=rf"data\.csv: 6 of 30 labels are {absent} \(no label\).*data\.on_error: skip"):
        open_source(name, "train")
    source, wanted = open_source(name, "train", on_error="skip"), [value for value in range(30) if value % 5]
    assert source.classes == ["0", "1"] and source.labels.tolist() == [value % 2 for value in wanted]
    assert [int(decode(source, index, None, 1)[0, 0, 0]) for index in range(24)] == wanted
    assert f"6 of 30 labels are {absent} (no label); these images are left out" in caplog.text


@pytest.mark.parametrize("absent", ["", "nan", "NaN", "-1.0"])
@pytest.mark.parametrize("classes", [("0", "1"), ("0.0", "1.0"), ("cat", "dog")])
def test_rows_without_a_label_are_left_out(tmp_path, absent, classes):
    if classes == ("cat", "dog") and absent:
        return  # a class of that name
    name = labelled(tmp_path, [absent if value == 5 else classes[value % 2] for value in range(10)])
    source = open_source(name, "train", on_error="skip")
    assert source.classes == [*classes] and len(source) == 9


def test_a_class_may_be_called_none(tmp_path):
    assert open_source(labelled(tmp_path, ["cat", "none", "nan", "cat"]), "train").classes == ["cat", "nan", "none"]
