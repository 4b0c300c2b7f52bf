"""Tar files: limits before anything is read, and one sentence for whatever is wrong with them."""

import tarfile

import hypothesis
import pytest
from conftest import packed, tree
from hypothesis import strategies as st

from mixmo.data.datasets import open_source
from mixmo.data.sources import decode
from mixmo.errors import InputError


def test_large_members_are_refused_before_they_are_read(tmp_path):
    member = tarfile.TarInfo("cat/0.png")
    member.size = 2**28 + 512
    with open(tmp_path / "train.tar", "wb") as file:
        file.write(member.tobuf())
        file.truncate(2**29)  # sparse
    with pytest.raises(ValueError, match=r"train\.tar/cat/0\.png has 256 MiB, more than .* unpack the tar file"):
        open_source(f"folder:{tmp_path}", "train")


def test_large_compressed_tar_files_are_refused_before_they_are_read(image_folder, tmp_path, monkeypatch):
    packed(image_folder / "train", tmp_path / "packed" / "train.tar.gz", mode="w:gz")
    monkeypatch.setattr("mixmo.data.archives.MAX_TOTAL", 1000)
    with pytest.raises(ValueError, match=r"train\.tar\.gz brings compressed tar files to more than .*; unpack it"):
        open_source(f"folder:{tmp_path / 'packed'}", "train")


def test_a_bomb_of_a_header_is_refused(tmp_path):
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2**40
    (tmp_path / "train.tar").write_bytes(tarfile.TarInfo("a").tobuf() + member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(ValueError, match=r"train\.tar cannot be read as a tar file: it has a header of 1099511627776"):
        open_source(f"folder:{tmp_path}", "train")


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9])
def test_truncated_tar_files_are_one_sentence(image_folder, tmp_path, ending, share):
    archive = tmp_path / "packed" / f"train{ending}"
    packed(image_folder / "train", archive, mode="w:" + ending[5:])
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content.rstrip(b"\0")) * share)])
    with pytest.raises(ValueError, match=r"cannot be read as a tar file: [^\n]*\.$"):
        open_source(f"folder:{tmp_path / 'packed'}", "train")


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(
    places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=5), end=st.integers(0, 20000)
)
def test_damaged_tar_files_are_a_source_or_one_sentence(tmp_path_factory, places, end):
    folder = tmp_path_factory.mktemp("damaged")
    tree(folder / "x", "cat/a.png", "dog/a.png")
    packed(folder / "x", folder / "train.tar", "train")
    content = bytearray((folder / "train.tar").read_bytes())
    for place, value in places:
        content[place % len(content)] = value
    (folder / "train.tar").write_bytes(content[:end])
    try:
        source = open_source(f"folder:{folder}", "train")
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017 (an error is one of two answers)
    else:
        assert all(isinstance(source.read(index), bytes) for index in range(len(source)))


def test_a_wrong_checksum_is_one_sentence(image_folder, tmp_path):
    archive = tmp_path / "packed" / "train.tar.gz"
    packed(image_folder / "train", archive, mode="w:gz")
    content = bytearray(archive.read_bytes())
    content[-8] ^= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.tar\.gz cannot be read as a tar file: CRC check failed"):
        open_source(f"folder:{tmp_path / 'packed'}", "train")


def test_a_damaged_compressed_tar_is_read_once(image_folder, tmp_path, monkeypatch):
    archive = tmp_path / "packed" / "train.tar.gz"
    packed(image_folder / "train", archive, mode="w:gz")
    source = open_source(f"folder:{tmp_path / 'packed'}", "train")
    archive.write_bytes(archive.read_bytes()[:1000])
    read = []
    real = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *words, **options: read.append(words) or real(*words, **options))
    for index in range(3):
        with pytest.raises(ValueError, match="cannot be read as a tar file"):
            decode(source, index, None, 3)
    assert len(read) == 1


@pytest.mark.parametrize("shards", [1, 2])
def test_large_tar_files_that_are_not_compressed_are_read_at_random(image_folder, tmp_path, monkeypatch, shards):
    for shard in range(shards):
        packed(image_folder / "train", tmp_path / "packed" / f"train-{shard}.tar")
    monkeypatch.setattr("mixmo.data.archives.MAX_TOTAL", 1000)
    monkeypatch.setattr("mixmo.data.archives.TarImages._compressed", None)
    source = open_source(f"folder:{tmp_path / 'packed'}", "train")
    assert len(source) == 24 * shards and decode(source, 5, None, 3).shape == (8, 8, 3)


def test_a_tar_file_that_changed_is_one_sentence(image_folder, tmp_path):
    archive = tmp_path / "packed" / "train.tar.gz"
    packed(image_folder / "train", archive, mode="w:gz")
    source = open_source(f"folder:{tmp_path / 'packed'}", "train")
    packed(image_folder / "test", archive, mode="w:gz")
    with pytest.raises(
        ValueError, match=r"train\.tar\.gz cannot be read as a tar file: it changed since it was listed"
    ):
        decode(source, 0, None, 3)
