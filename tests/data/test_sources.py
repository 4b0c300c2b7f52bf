"""Image sources: how folders, tar files and named datasets are read, and what is refused."""

import io
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torch
from conftest import open_data, open_source, packed, write_images, write_tree
from PIL import Image

from mixmo.config.data_settings import DataSettings
from mixmo.data.module import DataModule
from mixmo.errors import InputError


def settings(folder, **changes):
    return DataSettings(**({"name": f"folder:{folder}", "batch_size": 8, "validation": 0.0, "padding": 1} | changes))


def test_folders_are_read_in_the_order_of_sorted_names(image_folder):
    data = open_data(settings(image_folder))
    assert data.classes == ["cat", "dog", "emu"]
    assert data.size == (8, 8)
    assert (len(data.train), len(data.test), data.validation) == (24, 12, None)
    first = np.asarray(Image.open(image_folder / "train" / "dog" / "000.png"))
    assert np.array_equal(data.train.images[8].numpy(), first)
    assert data.train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8


@pytest.mark.parametrize("shards", [1, 3])
def test_tar_files_hold_what_the_folder_holds(image_folder, tmp_path, shards):
    packed = tmp_path / "packed"
    packed.mkdir()
    files = sorted((image_folder / "train").rglob("*.png"))
    for shard in range(shards):
        name = "train.tar.gz" if shards == 1 else f"train-{shard}.tar.gz"
        with tarfile.open(packed / name, "w:gz") as tar:
            for file in files[shard::shards]:
                tar.add(file, f"./{file.parent.name}/{file.name}")
    with tarfile.open(packed / "test.tar", "w") as tar:
        tar.add(image_folder / "test", ".")
    one, other = open_data(settings(image_folder)), open_data(settings(packed))
    assert one.classes == other.classes
    assert torch.equal(one.train.labels, other.train.labels)
    if shards == 1:
        assert torch.equal(one.train.images, other.train.images)
    assert torch.equal(one.test.images, other.test.images)


def test_missing_and_empty_datasets_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no dataset folder"):
        open_data(settings(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no images; it needs one folder for each class"):
        open_data(settings(tmp_path / "empty"))
    (tmp_path / "empty" / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no images"):
        open_data(settings(tmp_path / "empty"))
    write_images(tmp_path / "half" / "train")
    with pytest.raises(FileNotFoundError, match="no images for test: nothing in it is named test or val"):
        open_data(settings(tmp_path / "half"))
    write_images(tmp_path / "one" / "train", classes=["cat"])
    write_images(tmp_path / "one" / "test", classes=["cat"])
    with pytest.raises(ValueError, match=r"one class only \(cat\)"):
        open_data(settings(tmp_path / "one"))
    with pytest.raises(FileNotFoundError, match=r"data\.download: true"):
        open_data(DataSettings(name="torch/cifar100", root=str(tmp_path)))
    with pytest.raises(ValueError, match="unknown dataset 'cifar100'"):
        open_data(DataSettings(name="cifar100"))


def test_classes_of_train_and_test_must_agree(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", classes=["cat", "dog", "fox"])
    with pytest.raises(ValueError, match=r"test set of .* has classes that the training set lacks, fox"):
        open_data(settings(tmp_path))


def test_a_damaged_tar_file_is_named(image_folder, tmp_path):
    (tmp_path / "packed").mkdir()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(image_folder / "train", ".")
    (tmp_path / "packed" / "train.tar.gz").write_bytes(packed.getvalue()[:-200])
    with pytest.raises(
        ValueError, match=r"train\.tar\.gz cannot be unpacked into .*: .*; unpack it yourself and give the folder"
    ):
        open_source(f"folder:{tmp_path / 'packed'}", "train")


def opened(folder, split="train"):
    """Return the classes of the images, by their first values."""
    source = open_source(f"folder:{folder}", split)
    found = {}
    for index, label in enumerate(source.labels):
        found[int(np.asarray(Image.open(io.BytesIO(source.read(index))))[0, 0])] = source.classes[label]
    return found


DEEP = ("dog/images/b.JPEG", "cat/images/deep/er/a.png", "cat/c.png", "dog/a.png")


@pytest.mark.parametrize("top", [".", "train", "./train", "/train"])
@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.xz", ".tgz"])
def test_a_tree_means_the_same_in_a_tar_file(tmp_path, top, ending):
    values = write_tree(tmp_path / "folder" / "train", *DEEP)
    mode = {".tar": "w", ".tar.xz": "w:xz"}.get(ending, "w:gz")
    packed(tmp_path / "folder" / "train", tmp_path / "packed" / f"train{ending}", top, mode)
    assert opened(tmp_path / "folder") == opened(tmp_path / "packed") == {n: p[:3] for p, n in values.items()}
    one, other = (open_source(f"folder:{tmp_path / name}", "train") for name in ("folder", "packed"))
    assert [one.read(i) for i in range(4)] == [other.read(i) for i in range(4)]  # in the same order


def test_a_top_folder_named_like_the_split_is_no_class(tmp_path):
    values = write_tree(tmp_path / "train" / "train", *DEEP)
    assert opened(tmp_path) == {n: p[:3] for p, n in values.items()}


def test_shards_with_equal_names_keep_all_images(tmp_path):
    for shard in range(2):
        write_tree(tmp_path / f"{shard}" / "train", "cat/0.png", "dog/0.png")
        packed(tmp_path / f"{shard}" / "train", tmp_path / f"train-{shard}.tar", f"train-{shard}")
    (tmp_path / "train-0.tar.md5").write_text("not a tar file")
    assert open_source(f"folder:{tmp_path}", "train").labels.tolist() == [0, 0, 1, 1]


HIDDEN = (".ipynb_checkpoints/a.png", "cat/.ipynb_checkpoints/a.png", "cat/._a.png", "__MACOSX/cat/a.png", ".a.png")


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_hidden_names_are_no_classes_and_no_images(tmp_path, caplog, kind):
    write_tree(tmp_path / "folder" / "train", "cat/a.png", "dog/a.png", *HIDDEN)
    packed(tmp_path / "folder" / "train", tmp_path / "tar" / "train.tar")
    assert opened(tmp_path / kind) == {0: "cat", 1: "dog"}
    assert not caplog.records


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_what_is_no_image_is_left_out_and_said(tmp_path, caplog, kind):
    """Files with unknown endings are inspected; an image outside class folders is skipped."""
    write_tree(tmp_path / "folder" / "train", "cat/a.png", "cat/b.jfif", "dog/a", "stray.png")
    (tmp_path / "folder" / "train" / "cat" / "notes\x1b.txt").write_text("cat, but written")
    (tmp_path / "folder" / "train" / "dog" / "empty").touch()
    packed(tmp_path / "folder" / "train", tmp_path / "tar" / "train.tar.gz", mode="w:gz")
    assert opened(tmp_path / kind) == {0: "cat", 1: "cat", 2: "dog"}
    (record,) = caplog.records
    assert record.name == "mixmo" and record.levelname == "WARNING"
    text = record.getMessage()
    assert text.endswith(
        r"left out 3 entries that are not images or not in a class folder: cat/notes\x1b.txt, dog/empty, stray.png"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_links_are_followed_and_pipes_are_not_opened(tmp_path, caplog, kind):
    train = tmp_path / "folder" / "train"
    write_tree(train, "cat/a.png", "dog/a.png")
    write_tree(tmp_path / "elsewhere", "more/b.png", "fox/c.png")
    (train / "cat" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (train / "fox").symlink_to(tmp_path / "elsewhere" / "fox", target_is_directory=True)
    (train / "cat" / "above").symlink_to(train)
    (train / "cat" / "itself.png").symlink_to(train / "cat" / "itself.png")
    (train / "cat" / "nowhere.png").symlink_to("nowhere")
    os.mkfifo(train / "cat" / "pipe.png")
    source = open_source(f"folder:{tmp_path / 'folder'}", "train")
    assert source.classes == ["cat", "dog", "fox"] and source.labels.tolist() == [0, 0, 1, 2]
    assert "left out 4 entries that are not images" in caplog.text


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_members_that_lead_elsewhere_are_refused(tmp_path, kind):
    write_tree(tmp_path / "x", "cat/a.png", "dog/a.png")
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(tmp_path / "x", ".")
        member = tarfile.TarInfo("cat/link.png")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(InputError, match=r"train\.tar cannot be unpacked into .*link\.png"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("left", [None, "notes.txt", ".hidden.png"])
def test_a_class_without_images_is_refused(tmp_path, kind, left):
    write_tree(tmp_path / "folder" / "train", "cat/a.png", "dog/a.png")
    (tmp_path / "folder" / "train" / "zebra").mkdir()
    if left:
        (tmp_path / "folder" / "train" / "zebra" / left).write_text("no image")
    packed(tmp_path / "folder" / "train", tmp_path / "tar" / "train.tar")
    with pytest.raises(ValueError, match=r"train(\.tar)?/zebra has no images; remove the folder of this class, or put"):
        opened(tmp_path / kind)


NAMES = ["$HOME", "{0}", "%s", "\x1b[31mred", "a b", "名", "caf\udce9"]


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_odd_names_of_classes_are_only_names(tmp_path, kind):
    for name in NAMES:
        write_tree(tmp_path / "folder" / "train", f"{name}/a.png")
    (tmp_path / "folder" / "train" / NAMES[-1] / "b.png").write_bytes(b"damaged")
    packed(tmp_path / "folder" / "train", tmp_path / "tar" / "train.tar.gz", mode="w:gz")
    source = open_source(f"folder:{tmp_path / kind}", "train")
    assert source.classes == sorted(NAMES)
    assert len(source.fingerprint()) == 64
    (damaged,) = [source.name(i) for i in range(len(source)) if source.read(i) == b"damaged"]
    assert damaged.isprintable() and r"caf\udce9" in damaged


def test_a_test_set_may_lack_classes(image_folder, caplog):
    """Its labels are the training set's class numbers anyway, for every source."""
    (image_folder / "test" / "cat").rename(image_folder / "gone")
    (image_folder / "test" / "dog").rename(image_folder / "gone2")
    own = settings(image_folder)
    assert open_data(own).test.labels.tolist() == [2] * 4
    assert "has no images of cat, dog, which the training set has" in caplog.text
    images, classes = DataModule(own, 0).test, DataModule(own, 0).classes
    assert images.labels.tolist() == [2] * 4 and classes == ["cat", "dog", "emu"]
    images, classes = DataModule(settings(image_folder.parent / "images"), 0).other(f"folder:{image_folder}")
    assert images.labels.tolist() == [0] * 4 and classes == ["emu"]  # others have classes of their own


def test_a_test_set_stands_alone_where_the_training_set_is_not(image_folder):
    (image_folder / "train").rename(image_folder / "elsewhere")
    images, classes = DataModule(settings(image_folder), 0).test, DataModule(settings(image_folder), 0).classes
    assert len(images) == 12 and classes == ["cat", "dog", "emu"]


def every_source(folder):
    packed(folder / "train", folder.parent / "plain" / "train.tar")
    packed(folder / "train", folder.parent / "packed" / "train.tar.gz", mode="w:gz")
    yield open_source("digits", "train")
    yield open_source(f"folder:{folder}", "train")
    yield open_source(f"folder:{folder.parent / 'plain'}", "train")
    yield open_source(f"folder:{folder.parent / 'packed'}", "train")
    yield open_source("torch/image_folder", "train", root=str(folder))


def test_sources_can_be_pickled(image_folder):
    for source in every_source(image_folder):
        source.read(1)
        part = source.subset(np.array([5, 3]))
        again = pickle.loads(pickle.dumps(part))
        assert np.array_equal(again.read(1), source.read(3)) and again.name(0) == source.name(5)
        assert again.fingerprint() == part.fingerprint() != source.fingerprint()


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_fingerprints_tell_what_changed(image_folder, tmp_path, kind):
    def fingerprints(root):
        where = root
        if kind == "tar":
            where = tmp_path / f"{root.name}-packed"
            packed(root / "train", where / "train.tar")
        source = open_source(f"folder:{where}", "train")
        return source.fingerprint(), source.fingerprint(times=False)

    first = fingerprints(image_folder)
    assert fingerprints(image_folder)[1] == first[1]
    shutil.copytree(image_folder, tmp_path / "copy", copy_function=shutil.copyfile)
    copied = fingerprints(tmp_path / "copy")
    assert copied[1] == first[1] and copied[0] != first[0]
    file = tmp_path / "copy" / "train" / "cat" / "000.png"
    file.write_bytes(file.read_bytes() + bytes(10_000))
    changed = fingerprints(tmp_path / "copy")
    assert changed[1] != first[1]
    file.rename(file.with_name("renamed.png"))
    assert fingerprints(tmp_path / "copy")[1] not in (first[1], changed[1])


def test_fingerprints_of_splits(image_folder):
    own = settings(image_folder, validation=0.25)

    def opened(seed=0):
        return DataModule(own, seed)

    of_test, of_validation = opened().fingerprint("test"), opened().fingerprint("validation")
    assert of_validation != opened(1).fingerprint("validation")
    assert opened().fingerprint("digits") == opened().fingerprint("digits") != of_test
    os.utime(image_folder / "test" / "cat" / "000.png", (1, 1))
    assert opened().fingerprint("test") != of_test and opened().fingerprint("validation") == of_validation
    trained = open_data(own).fingerprint("train", times=False)
    os.utime(image_folder / "train" / "cat" / "000.png", (1, 1))
    assert open_data(own).fingerprint("train", times=False) == trained
    (image_folder / "train" / "cat" / "000.png").unlink()
    assert open_data(own).fingerprint("train", times=False) != trained


def test_listing_decodes_nothing(image_folder, monkeypatch):
    monkeypatch.setattr("mixmo.data.decoding.Image.open", None)
    for source in every_source(image_folder):
        assert source.fingerprint() and len(source)
