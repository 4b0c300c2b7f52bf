"""Order of loaders: a function of (seed, epoch), for any number of workers and any point of resuming."""

import numpy as np
import pytest
import torch
from conftest import open_data
from PIL import Image

from mixmo.config.data_settings import DataSettings
from mixmo.data.given import open_given
from mixmo.data.image_sets import StreamedImages, build_train_loader
from mixmo.data.module import DataModule
from mixmo.data.orders import EpochOrder
from mixmo.seeding import STREAMS, generator_for, seed_for

CPU = torch.device("cpu")
COUNT = 12


@pytest.fixture
def numbered(tmp_path):
    """Settings of 12 numbered training images, streamed by two workers."""
    for split in ("train", "test"):
        for number in range(COUNT):
            folder = tmp_path / split / ("even" if number < COUNT // 2 else "odd")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), number, np.uint8)).save(folder / f"{number:02}.png")
    name = f"folder:{tmp_path}"
    return DataSettings(
        name=name, batch_size=2, validation=0.0, image_size=4, channels=1, in_memory=False, workers=2, padding=0
    )


def shown(batches):
    """Return the numbers of the images of some batches."""
    return [number for batch in batches for number in batch.images[batch.chosen, 0, 0, 0].tolist()]


def order(seed, epoch, stream="order"):
    return torch.randperm(COUNT, generator=generator_for(seed, epoch, stream)).tolist()


@pytest.mark.slow
def test_spawned_workers_show_the_order(numbered):
    """As on macOS and Windows, and by forkserver from Python 3.14 on: workers are pickled."""
    numbered.workers = 1  # they start slowly
    loader = build_train_loader(open_data(numbered).train, numbered, 3, CPU)
    loader.multiprocessing_context = "spawn"
    assert shown(loader) == order(3, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_begins_at_any_epoch(numbered, workers):
    numbered.workers = workers
    loader = build_train_loader(open_data(numbered).train, numbered, 3, CPU, epoch=5)
    assert shown(loader) == order(3, 5)
    loader.batch_sampler.sampler.set_epoch(6)
    assert shown(loader) == order(3, 6)


def test_a_balanced_epoch_shows_each_class_as_often():
    """Images of a class differ in frequency by one at most; epochs leave out different images, reproducibly."""
    labels = torch.tensor([0] * 90 + [3] * 4 + [1] * 6)
    epochs = [list(EpochOrder(100, 5, epoch, labels=labels)) for epoch in range(4)]
    assert epochs[1] == list(EpochOrder(100, 5, 1, labels=labels)) != list(EpochOrder(100, 6, 1, labels=labels))
    for epoch in epochs:
        counts = np.bincount(epoch, minlength=100)
        assert sorted([counts[:90].sum(), counts[90:94].sum(), counts[94:].sum()]) == [33, 33, 34]
        for own in (counts[:90], counts[90:94], counts[94:]):
            assert own.max() - own.min() <= 1
        assert (labels[epoch[:50]] == 3).sum() in range(8, 26)  # mixed
    assert len(set().union(*epochs)) > 80 and len(set(epochs[0])) < 50
    assert len({index for epoch in epochs for index in epoch if labels[index] == 0}) > 60


def test_copies_of_an_image_that_is_shown_twice_are_others():
    """Also within a batch; other ranks and resumed runs see the same copies."""
    dataset = Numbers(torch.arange(9), torch.tensor([0] * 8 + [1]))
    own = DataSettings(
        name="given", own_transforms=True, channels=1, validation=0.0, batch_size=4, sampler="balanced", workers=0
    )
    images = DataModule(own, 0, given={"train": open_given(dataset, "train")}).train

    def batches(**options):
        return list(build_train_loader(images, own, 3, CPU, epoch=2, copies=3, **options))

    whole = batches()
    order = list(EpochOrder(9, 3, 2, labels=dataset.targets))
    assert [index for batch in whole for index in batch.images[::3, 0, 0, 0].int().tolist()] == order[:8]
    assert [number for batch in whole for number in batch.labels.tolist()] == dataset.targets[order[:8]].tolist()
    values = torch.cat([batch.images for batch in whole]).flatten(1)[:, 0]
    assert order.count(8) >= 4 and len(values.unique()) == 24
    parts = zip(batches(part=(0, 2)), batches(part=(1, 2)), strict=True)
    assert torch.equal(torch.cat([each.images for pair in parts for each in pair]).flatten(1)[:, 0], values)
    (rest,) = batches(start=1)
    assert torch.equal(rest.images, whole[1].images)


class Numbers(torch.utils.data.Dataset):
    """Images of noise, different each time."""

    def __init__(self, numbers, targets):
        self.numbers, self.targets = numbers, targets

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return self.numbers[index] + torch.rand(1, 4, 4), int(self.targets[index])


def test_a_few_batches_of_another_stream(numbered, monkeypatch):
    """Workers read no more than requested, and end."""
    images = open_data(numbered).train
    loader = build_train_loader(images, numbered, 1, CPU, epoch=2, stream="statistics", batches=2)
    assert len(loader) == 2 and not loader.persistent_workers
    assert build_train_loader(images, numbered, 1, CPU).persistent_workers
    assert shown(loader) == order(1, 2, "statistics")[:4] != order(1, 2)[:4]
    assert len(build_train_loader(images, numbered, 1, CPU, batches=100)) == 6
    read = []
    real = StreamedImages.__getitems__
    monkeypatch.setattr(
        StreamedImages, "__getitems__", lambda self, indices: read.extend(indices) or real(self, indices)
    )
    numbered.workers = 0
    list(build_train_loader(images, numbered, 1, CPU, batches=2))
    assert len(read) == 4


def test_seeds_stay_what_they_are():
    """A run resumed by a later version continues with the same draws."""
    assert {stream: seed_for(3, 5, stream) % 10**9 for stream in STREAMS} == {
        "step": 159112019,
        "order": 519293219,
        "split": 105321250,
        "init": 212258522,
        "global": 109471427,
        "read": 89097185,
        "corruption": 612077635,
        "statistics": 974703868,
        "estimate": 249911909,
        "subset": 561736766,
        "test": 532052848,
        "copy": 744562354,
    }


def test_streams_never_share_a_seed():
    assert len(set(STREAMS)) == len(STREAMS)
    orders = [list(EpochOrder(50, 0, 0, stream)) for stream in STREAMS]
    assert len({tuple(each) for each in orders}) == len(STREAMS)
