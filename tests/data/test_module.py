"""A run's data: its splits, what is refused, and when images are decoded."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import open_data, open_source, write_images, write_tree
from PIL import Image
from sklearn.model_selection import train_test_split

from mixmo.config.data_settings import DataSettings
from mixmo.data import module
from mixmo.data.datasets import NamedDataset
from mixmo.data.image_sets import InMemoryImages, build_evaluation_loader, build_train_loader
from mixmo.data.module import DataModule
from mixmo.errors import InputError
from mixmo.seeding import seed_for

CPU = torch.device("cpu")


def settings(folder, **changes):
    return DataSettings(**({"name": f"folder:{folder}", "batch_size": 8, "validation": 0.0, "padding": 1} | changes))


def test_streamed_images_are_the_in_memory_ones(image_folder):
    in_memory = open_data(settings(image_folder, image_size=8))
    streamed = open_data(settings(image_folder, image_size=8, in_memory=False, workers=2))
    for kind in (build_train_loader,):
        pairs = zip(
            kind(in_memory.train, settings(image_folder), 0, CPU),
            kind(streamed.train, settings(image_folder, workers=2), 0, CPU),
            strict=True,
        )
        for a, b in pairs:
            assert torch.equal(a.images[a.chosen], b.images[b.chosen])
            assert torch.equal(a.labels[a.chosen], b.labels[b.chosen])


def test_evaluation_shows_every_image_once_in_order(image_folder):
    data = open_data(settings(image_folder, eval_batch_size=5))
    seen = torch.cat(
        [batch.chosen for batch in build_evaluation_loader(data.test, settings(image_folder, eval_batch_size=5), CPU)]
    )
    assert seen.tolist() == list(range(12))


@pytest.mark.parametrize(("repetition", "steps"), [(1, 3), (2, 6), (4, 12), (8, 24)])
def test_an_epoch_is_b_times_longer(image_folder, repetition, steps):
    own = settings(image_folder, batch_repetition=repetition)
    loader = build_train_loader(open_data(own).train, own, 0, CPU)
    batches = list(loader)
    assert len(batches) == len(loader) == steps
    assert sorted(torch.cat([batch.chosen for batch in batches]).tolist()) == list(range(24))


def test_published_epoch_lengths():
    """781 / 1562 / 3125 steps for b = 1 / 2 / 4 on CIFAR at batch 64: the incomplete last batch is left out."""
    images = InMemoryImages(torch.zeros(50_000, 1, 1, 1, dtype=torch.uint8), torch.zeros(50_000, dtype=torch.long))
    for repetition, steps in {1: 781, 2: 1562, 4: 3125}.items():
        own = DataSettings(batch_size=64, batch_repetition=repetition)
        assert len(build_train_loader(images, own, 0, CPU)) == steps


def test_epochs_differ_and_seeds_repeat(image_folder):
    own = settings(image_folder)
    train = open_data(own).train

    def order(seed, epoch):
        loader = build_train_loader(train, own, seed, CPU)
        loader.batch_sampler.sampler.set_epoch(epoch)
        return torch.cat([batch.chosen for batch in loader]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 1)


def test_validation_is_stratified_seeded_and_disjoint():
    parts = {seed: open_data(DataSettings(name="digits", channels=1, validation=0.1), seed) for seed in (0, 1)}
    again = open_data(DataSettings(name="digits", channels=1, validation=0.1), 0)
    data = parts[0]
    assert len(data.train) + len(data.validation) == 1437
    assert len(data.validation) == 144
    assert torch.bincount(data.validation.labels).min() >= 14
    assert torch.equal(data.validation.images, again.validation.images)
    assert not torch.equal(data.validation.images, parts[1].validation.images)
    everything = open_data(DataSettings(name="digits", channels=1, validation=0.0)).train.images
    together = torch.cat([data.train.images, data.validation.images]).flatten(1)
    assert torch.equal(together.unique(dim=0), everything.flatten(1).unique(dim=0))


def few(count, seed=0, **changes):
    changes = {"name": "digits", "channels": 1, "validation": 0.1, "batch_size": 8} | changes
    return open_data(DataSettings(images_per_class=count, **changes), seed)


def rows(images):
    return {tuple(row) for row in images.flatten(1).tolist()}


def test_few_images_of_each_class_are_drawn_from_the_seed():
    """The same for every run with that seed; a smaller count draws a subset of a larger one."""
    data, larger, other = few(20), few(50), few(20, seed=1)
    assert torch.bincount(data.train.labels).tolist() == [20] * 10
    assert torch.equal(few(20).train.images, data.train.images)
    assert torch.equal(few(20, seed=1, split_seed=0).train.images, data.train.images)
    assert torch.equal(few(20, seed=1, split_seed=0).validation.images, data.validation.images)
    assert rows(data.train.images) < rows(larger.train.images)
    assert not torch.equal(data.train.images, other.train.images)
    assert torch.equal(data.validation.images, few(None).validation.images)


def test_unused_digits_join_the_test_set():
    data, everything = few(20), few(None)
    assert (len(data.train), len(data.validation), len(data.test)) == (200, 144, 1797 - 200 - 144)
    assert torch.equal(data.test.images[:360], everything.test.images)
    assert torch.equal(data.test.labels[:360], everything.test.labels)
    parts = [rows(each.images) for each in (data.train, data.validation, data.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) > 1780  # a few digits are alike
    assert (data.image(1000) == data.test.images[1000].numpy()).all()
    assert len(few(20, validation=0.0).test) == 1597
    assert data.fingerprint("test") != everything.fingerprint("test")
    assert data.fingerprint("test") != few(20, seed=1).fingerprint("test")


def test_unused_images_of_other_datasets_are_left_out(image_folder):
    data = open_data(settings(image_folder, images_per_class=3))
    assert torch.bincount(data.train.labels).tolist() == [3, 3, 3]
    assert len(data.test) == 12


def test_more_images_of_a_class_than_there_are_is_refused(image_folder):
    (image_folder / "train" / "emu" / "003.png").unlink()
    with pytest.raises(InputError, match=r"^data\.images_per_class is 8, but class emu has 7 images to train on"):
        open_data(settings(image_folder, images_per_class=8))


def test_odd_sizes_without_a_canvas_are_refused(image_folder):
    Image.new("RGB", (9, 8)).save(image_folder / "train" / "dog" / "wide.png")
    with pytest.raises(ValueError, match=r"wide\.png is 8×9, but the first one is 8×8; .*data\.image_size"):
        open_data(settings(image_folder))
    assert open_data(settings(image_folder, image_size=10)).train.images.shape == (25, 10, 10, 3)


def test_the_test_set_is_decoded_once(image_folder):
    data = open_data(settings(image_folder))
    assert data.test is data.test and len(data.test) == 12


def test_too_few_images_for_a_batch(image_folder):
    with pytest.raises(ValueError, match="24 training images, fewer than the 32 distinct images"):
        open_data(settings(image_folder, batch_size=32))


@pytest.mark.parametrize("counts", [[8] * 20, [12] * 5 + [2], [3, 40]])
def test_small_classes_are_shared_out_too(tmp_path, counts, caplog):
    """Each class has an image for training and one for testing, and one for validation if there are enough."""
    for number, count in enumerate(counts):
        write_images(tmp_path / "data", classes=(f"kind{number:02}",), count=count, seed=number)
    own = settings(tmp_path / "data", validation=0.1, batch_size=4, test=0.2)
    data, again, other = open_data(own), open_data(own), open_data(own, seed=1)
    parts = {part: [] for part in ("train", "validation", "test")}
    for name, _, part in data.split_rows():
        parts[part].append(name)
    assert len({name for names in parts.values() for name in names}) == sum(map(len, parts.values())) == sum(counts)
    assert torch.bincount(data.train.labels).min() >= 1 and torch.bincount(data.test.labels).min() >= 1
    held_out = torch.bincount(data.validation.labels, minlength=len(counts))
    assert (held_out >= 1).tolist() == [count > 3 for count in counts]
    assert list(data.split_rows()) == list(again.split_rows()) != list(other.split_rows())
    without = {2: "kind05", 3: "kind00"}.get(min(counts))
    said = [text for text in caplog.messages if "too few images of a class for every split" in text]
    assert len(said) == (without is not None) and all(
        f"validation has no image of {without}; add" in text for text in said
    )
    assert "populated" not in caplog.text and "train_size" not in caplog.text


def test_even_shares_are_drawn_as_before(image_folder):
    """As scikit-learn draws them, so that existing runs keep their validation images."""
    source = open_source(f"folder:{image_folder}", "train")
    for seed in range(3):
        data = open_data(settings(image_folder, validation=0.25), seed)
        rest, held_out = train_test_split(
            np.arange(24), test_size=0.25, stratify=source.labels, random_state=seed_for(seed, 0, "split") % 2**32
        )
        for part, places in (("train", rest), ("validation", held_out)):
            names = [name for name, _, split in data.split_rows() if split == part]
            assert names == [source.name(int(place)) for place in np.sort(places)]


def test_folds_are_test_sets_and_hold_each_image_once(image_folder, caplog):
    """In a dataset with splits only the training images are divided; its test images are not used."""
    own = settings(image_folder, validation=0.25, batch_size=4)
    data = [open_data(replace(own, folds=4, fold=fold)) for fold in range(4)]
    tested = [name for each in data for name, _, split in each.split_rows() if split == "test"]
    assert len(tested) == len(set(tested)) == 24 and not any("/test/" in name for name in tested)
    for each in data:
        parts = [{source.name(place) for place in range(len(source))} for source in each.sources.values()]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 24
        assert torch.bincount(each.test.labels).tolist() == [2, 2, 2]
    assert list(data[0].split_rows()) == list(open_data(replace(own, folds=4)).split_rows())
    again = open_data(replace(own, folds=4, split_seed=1))
    same = open_data(data[0].settings, 1)
    assert again.fingerprint("test") != data[0].fingerprint("test") == same.fingerprint("test")
    assert data[0].is_drawn("test") and not open_data(own).is_drawn("test")
    with pytest.raises(InputError, match=r"data\.fold is 4, but data\.folds is 4"):
        replace(own, folds=4, fold=4)
    with pytest.raises(InputError, match=r"data\.folds is 9, but there are 8 images of the largest class"):
        open_data(replace(own, folds=9))


GROUPED = [f"{kind}/{patient}-{number}.png,{kind},{patient}" for kind, patients in
           {"ill": "abcdef", "well": "ghijkl"}.items() for patient in patients for number in range(3)]  # fmt: skip


def test_groups_of_a_table_are_never_divided(tmp_path, caplog):
    write_tree(tmp_path, *(row.partition(",")[0] for row in GROUPED))
    (tmp_path / "table.csv").write_text("path,label,Group\n" + "\n".join(GROUPED))
    own = DataSettings(name=f"csv:{tmp_path}/table.csv", batch_size=4, validation=0.25, channels=1, padding=1)
    for changes in ({}, {"folds": 3, "fold": 1}, {"split_seed": 5}, {"test": 0.5}):
        parts = {}
        data = open_data(replace(own, **changes))
        for name, _, split in data.split_rows():
            parts.setdefault(split, set()).add(name.rpartition("/")[2][0])
        assert set(parts) == {"train", "validation", "test"} and sum(map(len, parts.values())) == 12
        assert {len(set("abcdef") & part) > 0 for part in parts.values()} == {True}
    plain = tmp_path / "plain.csv"
    plain.write_text("path,label\n" + "\n".join(row.rpartition(",")[0] for row in GROUPED))
    assert open_source(f"csv:{plain}", "all").fingerprint() != open_source(own.name, "all").fingerprint()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a.png,x,train,p", "b.png,y,test,p"], r"line 3, has group p in test, but an earlier line has it in train"),
        (["a.png,x,train,p", "b.png,y,test,"], r"line 3, has no group\."),
    ],
)
def test_groups_on_both_sides_of_a_tables_own_split_are_refused(tmp_path, rows, message):
    (tmp_path / "table.csv").write_text("path,label,split,group\n" + "\n".join(rows))
    with pytest.raises(InputError, match=message):
        NamedDataset(f"csv:{tmp_path}/table.csv")


def test_nothing_to_hold_out_is_one_sentence(tmp_path):
    write_images(tmp_path / "data" / "train", count=1)
    write_images(tmp_path / "data" / "test", count=1)
    with pytest.raises(
        InputError,
        match=r"no class of .* has two images, one to .* for validation; set data\.validation to 0\.",
    ):
        open_data(settings(tmp_path / "data", validation=0.1, batch_size=2))
    assert len(open_data(settings(tmp_path / "data", batch_size=2)).train) == 3


def test_another_dataset_is_listed_once(image_folder, monkeypatch):
    opened = []

    class Counted(NamedDataset):
        def __init__(self, name, *how):
            opened.append(name)
            super().__init__(name, *how)

    monkeypatch.setattr(module, "NamedDataset", Counted)
    data = DataModule(DataSettings(name="digits", channels=1), 0)
    other = f"folder:{image_folder}"
    assert data.fingerprint(other) == data.fingerprint(other)
    assert len(data.other(other)[0])
    assert opened.count(other) == 1
