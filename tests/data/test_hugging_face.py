"""Parquet files and tar shards through the Hugging Face library: every image once, in any number of processes."""

import io
import json
import logging
import pickle
import sys
import tarfile

import numpy as np
import pytest
import torch
from conftest import open_data, open_source, plan_of, write_splits
from killing import differences
from PIL import Image

from mixmo.config.data_settings import DataSettings
from mixmo.data.datasets import NamedDataset
from mixmo.data.given import open_given
from mixmo.data.image_sets import build_train_loader
from mixmo.data.module import DataModule
from mixmo.data.sources import decode
from mixmo.errors import InputError, MissingError
from mixmo.runs import RunFolder
from mixmo.training.fit import fit

datasets = pytest.importorskip("datasets", reason="datasets is not installed")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
KINDS = ("webdataset", "parquet")
NAMES = ["ape", "bee", "cow"]


def png(value, size=8):
    content = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(content, "PNG")
    return content.getvalue()


def write_records(file, records):
    """Write a tar file of records: a name, and the content for each ending."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in ((f"{key}.{end}", each) for key, parts in records.items() for end, each in parts.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_tars(folder, split, values, labels, shard=5):
    """Write images of one value each."""
    for start in range(0, len(values), shard):
        records = {
            f"{split}/{value:04}": {"png": png(value), "cls": str(label).encode()}
            for value, label in zip(values[start : start + shard], labels[start : start + shard], strict=True)
        }
        write_records(folder / f"{split}-{start // shard:03}.tar", records)
    (folder / "classes.txt").write_text("\n".join(NAMES))


def write_parquet(folder, split, values, labels, shard=5, names=NAMES):
    """Write a Parquet file of such images, with the datasets library's metadata if there are class names."""
    folder.mkdir(parents=True, exist_ok=True)
    count = -(-len(values) // shard)
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    for number in range(count):
        part = slice(number * shard, (number + 1) * shard)
        images = [{"bytes": png(value), "path": f"{value}.png"} for value in values[part]]
        table = pa.table({"image": images, "label": pa.array(labels[part], pa.int64())})
        if names is not None:
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, folder / f"{split}-{number:05}-of-{count:05}.parquet")


WRITERS = {"webdataset": write_tars, "parquet": write_parquet}


def write_dataset(kind, folder, train=23, test=6):
    """Write a dataset whose class is the value modulo three; return its name."""
    for split, values in (("train", range(train)), ("test", range(100, 100 + test))):
        WRITERS[kind](folder, split, list(values), [value % 3 for value in values])
    return f"{kind}:{folder}"


def values_of(source):
    return [int(decode(source, index, None, 3)[0, 0, 0]) for index in range(len(source))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_is_found_with_its_label(tmp_path, kind):
    name = write_dataset(kind, tmp_path / "[data] *")
    for ending in ("tar", "parquet"):
        (tmp_path / "[data] *" / f"._train-9.{ending}").write_bytes(b"Mac OS X")
    assert NamedDataset(name).splits == {"train", "test"}
    source = open_source(name, "train")
    assert values_of(source) == list(range(23))
    assert source.labels.tolist() == [value % 3 for value in range(23)] and source.classes == NAMES
    assert len(open_source(name, "test")) == 6
    tar = f"{tmp_path}/[data] */train-001.tar/train/0007"
    assert source.name(7) == (tar if kind == "webdataset" else f"{tmp_path}/[data] * train image 7")
    assert values_of(pickle.loads(pickle.dumps(source))) == list(range(23))  # as workers get it
    assert values_of(source.subset(np.array([11, 3]))) == [11, 3]


def test_hidden_folders_and_files_without_a_split_are_left_out(tmp_path, caplog):
    name = write_dataset("parquet", tmp_path / "data")
    write_parquet(tmp_path / "data/.cache", "train", list(range(12)), [0] * 12, shard=12, names=None)
    write_parquet(tmp_path / "data", "extra", list(range(12)), [0] * 12, shard=12, names=None)
    assert len(open_source(name, "train")) == 23
    assert "left out 1 files that name no split: extra-00000-of-00001.parquet" in caplog.text


def test_a_single_file_has_classes_without_splits(tmp_path):
    write_parquet(tmp_path, "photos", list(range(12)), [value % 2 for value in range(12)], shard=12, names=None)
    name = f"parquet:{tmp_path}/photos-00000-of-00001.parquet"
    assert NamedDataset(name).splits == set()
    data = open_data(DataSettings(name=name, batch_size=4, validation=0.0))
    assert (len(data.train), len(data.test), data.classes) == (10, 2, ["0", "1"])


def test_labels_may_stand_in_json(tmp_path):
    records = {"a": {"jpg": png(1), "json": b'{"label": "owl"}'}, "b": {"jpg": png(2), "json": b'{"label": "bat"}'}}
    write_records(tmp_path / "train.tar", records)
    source = open_source(f"webdataset:{tmp_path}", "train")
    assert source.classes == ["bat", "owl"] and source.labels.tolist() == [1, 0]


def test_numbers_beyond_the_names_of_classes_are_named(tmp_path):
    name = write_dataset("webdataset", tmp_path)
    (tmp_path / "classes.txt").write_text("ape\nbee\n")
    with pytest.raises(InputError, match="image 2 has the label 2; class numbers lie between 0 and 1"):
        open_source(name, "train")


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_damaged_or_missing_are_named(tmp_path, kind):
    name = write_dataset(kind, tmp_path)
    file = sorted(tmp_path.glob("train-*"))[1]
    file.write_bytes(file.read_bytes()[:1600])  # within the second image
    with pytest.raises(InputError, match=rf"^{file} is damaged: [^\n]*; repair or remove it\.$"):
        open_source(name, "train")
    file.unlink()
    if kind == "parquet":
        with pytest.raises(InputError, match=f"{file.name} is missing; restore it"):
            open_source(name, "train")
    assert len(open_source(name, "test")) == 6


def test_images_that_are_missing_or_damaged_are_named_or_left_out(tmp_path, caplog):
    records = {f"{value}": {"png": png(value), "cls": b"%d" % (value % 2)} for value in range(12)}
    records["6"]["png"] = b"damaged"
    del records["9"]["png"]
    for split in ("train", "test"):
        write_records(tmp_path / f"{split}.tar", records)
    settings = DataSettings(name=f"webdataset:{tmp_path}", batch_size=4, validation=0.0)
    with pytest.raises(
        InputError, match=r"2 of 12 images cannot be read: .*train\.tar/6 .*train\.tar/9 .its row has no"
    ):
        open_data(settings)
    settings.on_error = "skip"
    assert len(open_data(settings).train) == 10
    assert "left out 2 of 12 images" in caplog.text


def test_bad_input_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    for kind in KINDS:
        for path in ("nowhere", "empty"):
            with pytest.raises(MissingError, match=path):
                open_source(f"{kind}:{tmp_path}/{path}", "train")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"has columns x; none has the type Image or is named image or"):
        open_source(f"parquet:{tmp_path}", "train")
    pq.write_table(pa.table({"image": [png(0)], "x": [1]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"has columns image, x; none has the type ClassLabel or is named label"):
        open_source(f"parquet:{tmp_path}", "train")
    write_records(tmp_path / "train.tar", {"a": {"png": png(1)}, "b": {"txt": b"x"}})
    with pytest.raises(InputError, match=r"cannot be read: The TAR archives .* should be in WebDataset format"):
        open_source(f"webdataset:{tmp_path}", "train")


def test_the_library_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    name = write_dataset("parquet", tmp_path)
    for module in ("datasets", "pyarrow.parquet"):  # the second comes with the first
        monkeypatch.setitem(sys.modules, module, None)
    for each, allowed in ((name, False), ("hfds/someone/something", True)):
        with pytest.raises(InputError, match=r"library; `pip install 'mixmo\[datasets\]'` installs it\.$"):
            open_source(each, "train", download=allowed)


def test_the_library_says_nothing_and_is_left_as_it_was(tmp_path, capfd):
    name = write_dataset("parquet", tmp_path)
    open_source(name, "train")
    (tmp_path / "train-00000-of-00005.parquet").write_bytes(b"damaged")
    with pytest.raises(InputError):
        open_source(name, "train")
    assert capfd.readouterr() == ("", "")
    assert not datasets.utils.are_progress_bars_disabled()
    assert logging.getLogger("datasets").level == datasets.logging.get_verbosity()


def test_files_that_are_replaced_are_read_anew(tmp_path):
    name = write_dataset("parquet", tmp_path)
    first = open_source(name, "test")
    write_parquet(tmp_path, "test", [7, 8, 9], [0, 1, 2], shard=3)
    (tmp_path / "test-00000-of-00002.parquet").unlink()
    (tmp_path / "test-00001-of-00002.parquet").unlink()
    again = open_source(name, "test")
    assert values_of(again) == [7, 8, 9] and again.fingerprint(times=False) != first.fingerprint(times=False)


def test_copies_of_files_have_the_fingerprint_of_the_files(tmp_path):
    one, other = (open_source(write_dataset("parquet", tmp_path / name), "train") for name in ("one", "other"))
    assert one.fingerprint(times=False) == other.fingerprint(times=False)
    assert one.fingerprint() != other.fingerprint()


def test_folders_are_opened_as_datasets_of_the_hub_are(tmp_path):
    write_dataset("parquet", tmp_path / "data")
    name = f"hfds/{tmp_path}/data"
    assert NamedDataset(name, DataSettings(download=True)).splits == {"train", "test"}
    source = open_source(name, "train", download=True)
    assert values_of(source) == list(range(23)) and source.classes == NAMES
    write_parquet(tmp_path / "one", "train", list(range(12)), [value % 3 for value in range(12)])
    assert NamedDataset(f"hfds/{tmp_path}/one", DataSettings(download=True)).splits == set()
    with pytest.raises(InputError, match=r"dataset 'hfds/.*nowhere' cannot be read: "):
        open_source(f"hfds/{tmp_path}/nowhere", "train", download=True)


def test_a_dataset_of_files_is_given_by_a_program_too(tmp_path):
    """As the library's builder for folders makes them: rows of paths."""
    folder = write_splits(tmp_path / "data")
    given = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    ours = open_source(f"folder:{folder}", "train")
    theirs = open_given(given, "train")
    assert theirs.classes == ours.classes and theirs.labels.tolist() == ours.labels.tolist()
    assert [theirs.read(index) for index in range(24)] == [ours.read(index) for index in range(24)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_share_an_epoch_without_duplicates(tmp_path, kind, workers):
    settings = DataSettings(name=write_dataset(kind, tmp_path / "data"), batch_size=4, image_size=8, workers=workers,
                            in_memory=False, validation=0)  # fmt: skip
    images = DataModule(settings, seed=0).train
    device = torch.device("cpu")
    whole = [batch.images[:, 0, 0, 0].tolist() for batch in build_train_loader(images, settings, 0, device)]
    assert len(whole) == 5 and len({value for batch in whole for value in batch}) == 20
    parts = [
        [b.images[:, 0, 0, 0].tolist() for b in build_train_loader(images, settings, 0, device, part=(rank, 2))]
        for rank in range(2)
    ]
    assert [one + other for one, other in zip(*parts, strict=True)] == whole
    begun = build_train_loader(images, settings, 0, device, start=3)
    assert [batch.images[:, 0, 0, 0].tolist() for batch in begun] == whole[3:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_shards_is_the_same_in_memory_and_streamed(tmp_path, kind):
    name = f"--data.name={write_dataset(kind, tmp_path / 'data', train=40)}"
    own = [name, "--data.image_size=8", "--trainer.max_epochs=2"]
    runs = [RunFolder(tmp_path / "streamed"), RunFolder(tmp_path / "kept")]
    fit(plan_of("", *own, "--data.in_memory=false", "--data.workers=1"), runs[0])
    fit(plan_of("", *own, "--data.in_memory=true"), runs[1])
    assert differences(*runs) == []


@pytest.mark.slow
def test_workers_may_be_started_by_a_server(tmp_path):
    """As in Python 3.14; data/test_orders.py has spawned workers, of a folder."""
    settings = DataSettings(name=write_dataset("parquet", tmp_path / "data"), batch_size=4, image_size=8, workers=1,
                            in_memory=False, validation=0)  # fmt: skip
    loader = build_train_loader(DataModule(settings, seed=0).train, settings, 0, torch.device("cpu"))
    loader.multiprocessing_context = "forkserver"
    assert sum(len(batch.labels) for batch in loader) == 20


@pytest.mark.parametrize(
    ("kind", "absent", "shown"), [("parquet", -1, "-1"), ("parquet", None, "empty"), ("webdataset", -1, "-1")]
)
def test_images_without_a_label_are_no_class(tmp_path, kind, absent, shown, caplog):
    """As in test sets of competitions, and unlabelled parts of training sets."""
    WRITERS[kind](tmp_path, "train", list(range(30)), [absent if value % 5 == 0 else value % 3 for value in range(30)])
    WRITERS[kind](tmp_path, "test", [0, 1], [0, 1])
    name = f"{kind}:{tmp_path}"
    with pytest.raises(InputError, match=rf"train: 6 of 30 labels are {shown} \(no label\).*data\.on_error: skip"):
        open_source(name, "train")
    source = open_source(name, "train", on_error="skip")
    wanted = [value for value in range(30) if value % 5]
    assert values_of(source) == wanted and source.labels.tolist() == [value % 3 for value in wanted]
    assert f"6 of 30 labels are {shown} (no label); these images are left out" in caplog.text
    assert source.classes == NAMES and sorted(open_source(name, "test").labels.tolist()) == [0, 1]


def test_nothing_is_left_without_labels(tmp_path):
    write_parquet(tmp_path, "train", [1, 2, 3], [-1, -1, -1])
    with pytest.raises(InputError, match="3 of 3 labels are -1"):
        open_source(f"parquet:{tmp_path}", "train", on_error="skip")


def test_lists_of_class_labels_are_several_labels():
    lists = datasets.Sequence(datasets.ClassLabel(names=NAMES))
    features = datasets.Features({"image": datasets.Image(), "tags": lists})
    rows = {"image": [{"bytes": png(value), "path": None} for value in range(3)], "tags": [[0, 2], [], [1]]}
    source = open_given(datasets.Dataset.from_dict(rows, features), "train")
    assert source.classes == NAMES and source.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def write_patients(folder, patients, column="patient"):
    """Write a Parquet file for each split, of images with a patient and a breed each."""
    folder.mkdir(exist_ok=True)
    for split, names in patients.items():
        images = [{"bytes": png(value), "path": None} for value in range(len(names))]
        breeds = [NAMES[value % 2] for value in range(len(names))]
        pq.write_table(pa.table({"image": images, "breed": breeds, column: names}), folder / f"{split}.parquet")
    return f"parquet:{folder}"


def test_columns_and_groups_of_parquet_files(tmp_path):
    name = write_patients(tmp_path, {"images": [f"p{value // 4}" for value in range(24)]})
    own = {"label": "breed", "group": "patient"}
    settings = DataSettings(name=name, columns=own, batch_size=4, validation=0.25, image_size=8)
    parts = {split: set(source.groups) for split, source in open_data(settings).sources.items()}
    assert sum(map(len, parts.values())) == 6 and set(parts) == {"train", "validation", "test"}
    with pytest.raises(InputError, match=r"names the column 'kin' for group, but .* has image, breed, patient"):
        open_source(name, "all", columns=own | {"group": "kin"})
    with pytest.raises(InputError, match=r"names a split, but the names of files determine the splits"):
        open_source(name, "all", columns=own | {"split": "breed"})


def test_groups_on_both_sides_of_parquet_files_are_refused(tmp_path):
    name = write_patients(tmp_path, {"train": [f"p{value // 2}" for value in range(8)], "test": ["p3"] * 4}, "group")
    settings = DataSettings(name=name, columns={"label": "breed"}, batch_size=4, validation=0.0, image_size=8)
    with pytest.raises(InputError, match=r"1 groups of .* have images in train and in test, such as .*image 6 and "):
        open_data(settings).require()
    name = write_patients(tmp_path / "gaps", {"train": ["p0", None, "p1", "p1"]}, "group")
    with pytest.raises(InputError, match=r"1 rows have no group, first row 1"):
        open_source(name, "train", columns={"label": "breed"})
