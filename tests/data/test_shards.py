"""Datasets in shards: what the webdataset library and pyarrow write, every image once, in any number of processes."""

import http.server
import io
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from conftest import plan_of, write_splits
from killing import differences
from PIL import Image

from mixmo.config.data_settings import DataSettings
from mixmo.data import sets
from mixmo.data.datasets import find_splits, open_source
from mixmo.data.module import DataModule
from mixmo.data.orders import EpochOrder
from mixmo.data.sources import decode
from mixmo.errors import InputError, MissingError
from mixmo.runs import RunFolder
from mixmo.training.fit import fit

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
KINDS = ("webdataset", "parquet")


def png(value, size=8):
    content = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(content, "PNG")
    return content.getvalue()


def write_tars(folder, split, values, shard=5, classes=3):
    """Write images of one value each, whose class is the value modulo ``classes``, as the library does."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = str(folder / f"{split}-%03d.tar")
    with webdataset.ShardWriter(pattern, maxcount=shard, verbose=0) as shards:
        for value in values:
            shards.write({"__key__": f"{split}/{value:04}", "png": png(value), "cls": value % classes})


def write_parquet(folder, split, values, shard=5, classes=3, noted=True):
    """Likewise in row groups of two, noted as the datasets library does."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [values[start : start + shard] for start in range(0, len(values), shard)]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["ape", "bee", "cow"]}}
    for number, part in enumerate(parts):
        images = [{"bytes": png(value), "path": None} for value in part]
        table = pa.table({"image": images, "label": [value % classes for value in part]})
        if noted:
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, folder / f"{split}-{number:05}-of-{len(parts):05}.parquet", row_group_size=2)


WRITERS = {"webdataset": write_tars, "parquet": write_parquet}


def written(kind, folder, train=23, test=6):
    WRITERS[kind](folder, "train", list(range(train)))
    WRITERS[kind](folder, "test", list(range(100, 100 + test)))
    return f"{kind}:{folder}"


def values_of(source):
    return [int(decode(source, index, None, 3)[0, 0, 0]) for index in range(len(source))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_is_found_with_its_label(tmp_path, kind):
    name = written(kind, tmp_path / "data")
    assert find_splits(name) == {"train", "test"}
    source = open_source(name, "train")
    assert values_of(source) == list(range(23))
    assert source.labels.tolist() == [value % 3 for value in range(23)]
    assert source.classes == (["ape", "bee", "cow"] if kind == "parquet" else ["0", "1", "2"])
    assert len(open_source(name, "test")) == 6
    assert "train-00" in source.name(7)
    groups = source.shards()
    assert np.bincount(groups).tolist() == ([2, 2, 1] * 4 + [2, 1] if kind == "parquet" else [5, 5, 5, 5, 3])
    assert values_of(pickle.loads(pickle.dumps(source))) == list(range(23))  # as workers get it
    assert source.subset(np.array([3, 11])).shards().tolist() == groups[[3, 11]].tolist()


def test_tar_shards_hold_what_the_library_reads(tmp_path):
    written("webdataset", tmp_path / "data")
    files = sorted(str(file) for file in (tmp_path / "data").glob("train-*.tar"))
    expected = [(sample["png"], int(sample["cls"])) for sample in webdataset.WebDataset(files, shardshuffle=False)]
    source = open_source(f"webdataset:{tmp_path}/data", "train")
    assert [(source.read(index), int(source.labels[index])) for index in range(len(source))] == expected
    assert source.name(0).endswith("train-000.tar/train/0000.png")


def test_labels_may_be_names_or_stand_in_json_and_numbers_have_names_in_a_file(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "train.tar")) as tar:
        tar.write({"__key__": "a", "jpg": png(1), "json": {"label": "owl"}})
        tar.write({"__key__": "b", "png": png(2), "cls": b"bat"})
    assert open_source(f"webdataset:{folder}", "train").classes == ["bat", "owl"]
    write_tars(tmp_path / "named", "train", list(range(6)))
    (tmp_path / "named" / "classes.txt").write_text("ape\nbee\ncow\ndoe\n")
    source = open_source(f"webdataset:{tmp_path}/named", "train")
    assert source.classes == ["ape", "bee", "cow", "doe"] and source.labels.max() == 2
    (tmp_path / "named" / "classes.txt").write_text("ape\nbee\n")
    with pytest.raises(InputError, match="class number 2, but there are 2 class names"):
        open_source(f"webdataset:{tmp_path}/named", "train")


def test_listing_is_done_once(tmp_path, cache, monkeypatch):
    name = written("webdataset", tmp_path / "data")
    first = open_source(name, "train")
    kept = list((cache / "mixmo" / "shards").iterdir())
    assert len(kept) == 5
    monkeypatch.setattr("mixmo.data.webdataset._list_records", None)
    again = open_source(name, "train")
    assert again.fingerprint() == first.fingerprint() and values_of(again) == values_of(first)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    kept[0].write_bytes(b"damaged")
    assert open_source(name, "train").fingerprint() == first.fingerprint()


def damage(kind, file):
    content = bytearray(file.read_bytes())
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_or_damaged_is_named_or_left_out_and_counted(tmp_path, caplog, kind):
    name = written(kind, tmp_path / "data")
    files = sorted((tmp_path / "data").glob("train-*"))
    damage(kind, files[0])
    files[2].unlink()
    with pytest.raises(InputError, match=rf"{files[2].name} is missing.*{files[0].name}.*--data\.on_error skip"):
        open_source(name, "train")
    with caplog.at_level(logging.WARNING, "mixmo"):
        source = open_source(name, "train", on_error="skip")
    assert "left out 2 shard(s) or record(s)" in caplog.text and files[2].name in caplog.text
    found = values_of(source)
    assert set(range(5, 10)) | set(range(15, 23)) <= set(found) and not set(found) & set(range(10, 15))
    assert len(found) == (13 if kind == "parquet" else 13 + len([value for value in found if value < 5]))


def test_records_without_image_or_label_are_named(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "train.tar")) as tar:
        for value in range(4):
            tar.write({"__key__": f"good{value}", "png": png(value), "cls": value % 2})
        tar.write({"__key__": "noimage", "cls": 1})
        tar.write({"__key__": "nolabel", "png": png(5)})
        tar.write({"__key__": "nojson", "png": png(6), "json": b"{"})
    with pytest.raises(InputError, match=r"noimage has no image.*nolabel has no label.*nojson has a label that cannot"):
        open_source(f"webdataset:{folder}", "train")
    assert values_of(open_source(f"webdataset:{folder}", "train", on_error="skip")) == [0, 1, 2, 3]


def test_bad_input_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    for kind in KINDS:
        for path in ("nowhere", "empty"):
            with pytest.raises(MissingError, match=path):
                open_source(f"{kind}:{tmp_path}/{path}", "train")
    with tarfile.open(tmp_path / "train-0.tar.gz", "w:gz"):
        pass
    with pytest.raises(InputError, match=r"train-0\.tar\.gz is compressed.*decompress it"):
        open_source(f"webdataset:{tmp_path}", "train")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"has columns x; none is noted as Image"):
        open_source(f"parquet:{tmp_path}", "train")
    with pytest.raises(InputError, match=r"elsewhere; allow the network to be asked with --data\.download true"):
        open_source("parquet:hf://datasets/someone/something", "train")
    with pytest.raises(InputError, match="shuffle_shards is 0"):
        DataSettings(shuffle_shards=0)


def test_parquet_files_are_read_through_fsspec(tmp_path):
    """From a file system that is no disk's."""
    import fsspec

    write_parquet(tmp_path / "data", "train", list(range(12)), noted=False)
    memory = fsspec.filesystem("memory")
    for file in (tmp_path / "data").iterdir():
        memory.pipe(f"/set/data/{file.name}", file.read_bytes())
    source = open_source("parquet:memory://set", "train", download=True)
    assert values_of(source) == list(range(12)) and source.classes == ["0", "1", "2"]


@pytest.mark.parametrize("window", [1, 2, 100])
def test_an_epoch_shows_every_image_once_a_window_of_shards_at_a_time(window):
    shards = np.repeat(np.arange(20), np.random.default_rng(0).integers(1, 30, 20))
    order = EpochOrder(len(shards), 7, 3, shards=shards, window=window)
    shown = list(order)
    assert sorted(shown) == list(range(len(shards))) and shown == list(order)
    first_seen = list(dict.fromkeys(shards[shown].tolist()))
    last = {shard: place for place, shard in enumerate(shards[shown].tolist())}
    for start in range(0, 20, window):
        inside = set(first_seen[start : start + window])
        bounds = [last[shard] for shard in inside]
        count = sum((shards == shard).sum() for each in range(0, start + window, window)
                    for shard in first_seen[each : each + window])  # fmt: skip
        assert max(bounds) < count  # all of a window is shown before the next begins
    order.set_epoch(4)
    assert list(order) != shown


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_share_an_epoch_without_duplicates(tmp_path, kind, workers):
    settings = DataSettings(name=written(kind, tmp_path / "data"), batch_size=4, image_size=8, workers=workers,
                            in_memory=False, validation=0, shuffle_shards=2)  # fmt: skip
    images = DataModule(settings, seed=0).train
    device = torch.device("cpu")
    whole = [batch.images[:, 0, 0, 0].tolist() for batch in sets.build_train_loader(images, settings, 0, device)]
    assert len(whole) == 5 and len({value for batch in whole for value in batch}) == 20
    parts = [
        [b.images[:, 0, 0, 0].tolist() for b in sets.build_train_loader(images, settings, 0, device, part=(rank, 2))]
        for rank in range(2)
    ]
    assert [one + other for one, other in zip(*parts, strict=True)] == whole
    begun = sets.build_train_loader(images, settings, 0, device, start=3)
    assert [batch.images[:, 0, 0, 0].tolist() for batch in begun] == whole[3:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_shards_is_the_same_in_memory_and_streamed(tmp_path, kind):
    name = f"--data.name={written(kind, tmp_path / 'data', train=40)}"
    own = [name, "--data.image_size=8", "--trainer.max_epochs=2", "--data.shuffle_shards=3"]
    runs = [RunFolder(tmp_path / "streamed"), RunFolder(tmp_path / "kept")]
    fit(plan_of("", *own, "--data.in_memory=false", "--data.workers=1"), runs[0])
    fit(plan_of("", *own, "--data.in_memory=true"), runs[1])
    assert differences(*runs) == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method"), [("folder", "spawn"), ("webdataset", "forkserver")])
def test_workers_may_be_started_in_any_way(tmp_path, kind, method):
    """As on macOS and Windows, and in Python 3.14."""
    if kind == "folder":
        name = f"folder:{write_splits(tmp_path / 'data', train=6, test=2)}"
    else:
        name = written(kind, tmp_path / "data")
    code = f"""
import multiprocessing, torch
from mixmo.config.data_settings import DataSettings
from mixmo.data.module import DataModule
from mixmo.data.sets import build_train_loader
if __name__ == "__main__":
    multiprocessing.set_start_method({method!r})
    settings = DataSettings(name={name!r}, batch_size=4, image_size=8, workers=2, in_memory=False, validation=0)
    images = DataModule(settings, seed=0).train
    loader = build_train_loader(images, settings, 0, torch.device("cpu"))
    print(sum(len(batch.labels) for batch in loader), loader.num_workers)
    del loader  # and its workers
"""
    (tmp_path / "program.py").write_text(code)
    done = subprocess.run([sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == (["16", "2"] if kind == "folder" else ["20", "2"]), done.stderr


def test_datasets_of_hugging_face_may_be_folders(tmp_path):
    """Through timm, whose reader keeps them in memory-mapped Arrow files."""
    pytest.importorskip("datasets")
    write_parquet(tmp_path / "data", "train", list(range(12)))
    source = open_source(f"hfds/{tmp_path}/data", "train", str(tmp_path / "root"), download=True)
    assert values_of(source) == list(range(12)) and source.classes == ["ape", "bee", "cow"]


def write_labels(kind, folder, labels, names=None):
    """Write images of one value each with these labels, and a test set of two classes."""
    folder.mkdir()
    for split, own in (("train", labels), ("test", [0, 1])):
        if kind == "parquet":
            table = pa.table(
                {"image": [{"bytes": png(value), "path": None} for value in range(len(own))], "label": own}
            )
            features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
            noted = {"huggingface": json.dumps({"info": {"features": features}})}
            pq.write_table(table.replace_schema_metadata(noted), folder / f"{split}.parquet", row_group_size=4)
        elif kind == "webdataset":
            with webdataset.TarWriter(str(folder / f"{split}.tar")) as tar:
                for value, label in enumerate(own):
                    tar.write({"__key__": f"{value:03}", "png": png(value), "cls": str(label).encode()})
            (folder / "classes.txt").write_text("\n".join(names))
        else:
            for value in range(len(own)):
                (folder / f"{split}{value}.png").write_bytes(png(value))
    if kind != "csv":
        return f"{kind}:{folder}"
    rows = [f"{split}{value}.png,{label},{split}" for split, own in (("train", labels), ("test", [0, 1]))
            for value, label in enumerate(own)]  # fmt: skip
    (folder / "data.csv").write_text("\n".join(["path,label,split", *rows]))
    return f"csv:{folder}/data.csv"


@pytest.mark.parametrize(
    ("kind", "absent", "shown"),
    [("parquet", -1, "-1"), ("parquet", None, "empty"), ("webdataset", -1, "-1"), ("webdataset", None, "None"),
     ("csv", -1, "-1"), ("csv", "nan", "nan")],
)  # fmt: skip
def test_images_without_a_label_are_no_class(tmp_path, kind, absent, shown, caplog):
    """As test sets of competitions, and unlabelled parts of training sets, have them."""
    labels = [absent if value % 5 == 0 else value % 2 for value in range(30)]
    name = write_labels(kind, tmp_path / "data", labels, ["cat", "dog"])
    with pytest.raises(InputError, match=rf"data.*: 6 of 30 labels are {shown} \(no label\).*--data\.on_error skip"):
        open_source(name, "train")
    source = open_source(name, "train", on_error="skip")
    assert source.classes == (["0", "1"] if kind == "csv" else ["cat", "dog"])
    wanted = [value for value in range(30) if value % 5]
    assert values_of(source) == wanted and source.labels.tolist() == [value % 2 for value in wanted]
    assert f"6 of 30 labels are {shown} (no label); these images are left out" in caplog.text
    assert sorted(open_source(name, "test").labels.tolist()) == [0, 1]


def test_a_class_may_be_called_none(tmp_path):
    name = write_labels("csv", tmp_path / "data", ["cat", "none", "nan", "cat"])
    assert open_source(name, "train").classes == ["cat", "nan", "none"]


def test_nothing_is_left_without_labels(tmp_path):
    for kind in ("parquet", "webdataset"):
        name = write_labels(kind, tmp_path / kind, [-1, -1, -1], ["cat", "dog"])
        with pytest.raises(MissingError, match="holds no labelled images"):
            open_source(name, "train", on_error="skip")


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A server of files that gives parts of them, as stores of objects do."""

    def do_GET(self):
        file, wanted = self.translate_path(self.path), self.headers.get("Range")
        if wanted is None or not os.path.isfile(file):
            super().do_GET()
            return
        content = Path(file).read_bytes()
        first, last = (int(text) for text in re.fullmatch(r"bytes=(\d+)-(\d+)", wanted).groups())
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)

    def end_headers(self):
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_):
        pass


def test_workers_ask_file_systems_of_their_own(tmp_path):
    """Those of fsspec that are asynchronous do not survive a fork."""
    write_parquet(tmp_path / "data", "train", list(range(24)))
    write_parquet(tmp_path / "data", "test", list(range(4)))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(tmp_path / "data")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        name = f"parquet:http://127.0.0.1:{server.server_port}/"
        own = DataSettings(
            name=name, download=True, batch_size=8, validation=0.0, image_size=8, in_memory=False, workers=2
        )
        data = DataModule(own, 0)
        assert decode(data.train.source, 0, None, 3)[0, 0, 0] == 0  # the main process has asked before
        found = [batch for batch in sets.build_evaluation_loader(data.train, own, torch.device("cpu"))]
    finally:
        server.shutdown()
        server.server_close()
    assert torch.cat([batch.images[:, 0, 0, 0] for batch in found]).tolist() == list(range(24))


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_flipped_bit_is_found_where_pages_have_checksums(tmp_path, column):
    folder = tmp_path / "data"
    folder.mkdir()
    table = pa.table({"image": [{"bytes": png(value), "path": None} for value in range(12)], "label": [0, 1] * 6})
    for split in ("train", "test"):
        pq.write_table(table, folder / f"{split}.parquet", compression="none", use_dictionary=False,
                       write_page_checksum=True)  # fmt: skip
    file = folder / "train.parquet"
    chunk = next(
        each
        for each in map(pq.ParquetFile(file).metadata.row_group(0).column, range(3))
        if each.path_in_schema.startswith(column) and not each.path_in_schema.endswith("path")
    )
    content = bytearray(file.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="CRC checksum"):
        values_of(open_source(f"parquet:{folder}", "train"))
