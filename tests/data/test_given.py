"""Datasets of users' own: labels, class names, groups, and errors, without training."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from mixmo.config.data_settings import DataSettings
from mixmo.data.given import infer_channels, open_given
from mixmo.data.image_sets import build_image_set, build_train_loader
from mixmo.data.module import DataModule
from mixmo.errors import InputError

COUNT = 20
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8), dtype=np.uint8)
LABELS = [number % 2 for number in range(COUNT)]


class Own(Dataset):
    """A Dataset whose images a function makes, with further attributes."""

    def __init__(self, image=lambda index: Image.fromarray(PIXELS[index]), labels=LABELS, **attributes):
        self.image, self.given_labels = image, labels
        vars(self).update(attributes)

    def __len__(self):
        return len(self.given_labels)

    def __getitem__(self, index):
        return self.image(index), self.given_labels[index]


def as_float(index):
    return torch.from_numpy(PIXELS[index])[None] / 255


def fail_at(make, at=6):
    """Return a function that makes images but fails for one, which is not among those sampled at first."""

    def image(index):
        if index == at:
            raise OSError("truncated file")
        return make(index)

    return image


def test_a_generator_of_its_own_leaves_the_pixels_out_of_the_fingerprint(caplog):
    rng = np.random.default_rng()
    own = Own(lambda index: as_float(index) + float(rng.random()), targets=LABELS)
    first, second = open_given(own, "train"), open_given(own, "train")
    assert first.fingerprint(times=False) == second.fingerprint(times=False)
    assert first.fingerprint() != second.fingerprint()  # cached results are not reused
    assert first.images.prepared and "cannot be repeated or resumed exactly" in caplog.text
    other = Own(own.image, targets=LABELS[1:], labels=LABELS[1:])
    assert open_given(other, "train").fingerprint(times=False) != first.fingerprint(times=False)
    caplog.clear()
    same = [open_given(Own(lambda index: as_float(index) + torch.rand(())), "train") for _ in range(2)]
    assert same[0].fingerprint() == same[1].fingerprint() and not caplog.text


@pytest.mark.parametrize("form", ["keeps", "replaces", "torch", "numpy", "subset"])
def test_a_table_with_transforms_keeps_its_class_names_and_groups(form):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["bat", "cow"]), "group": datasets.Value("int8")}
    )
    content = {"image": [*map(Image.fromarray, PIXELS)], "label": LABELS, "group": [i // 4 for i in range(COUNT)]}
    table = datasets.Dataset.from_dict(content, features)

    def transform(rows):
        rows["pixel_values"] = [torch.ones(1, 4, 4) for _ in rows["image"]]
        return rows if form == "keeps" else {key: rows[key] for key in ("pixel_values", "label")}

    given = table.with_format(form) if form in ("torch", "numpy") else table.with_transform(transform)
    source = open_given(Subset(given, range(4, COUNT)) if form == "subset" else given, "train")
    assert source.classes == ["bat", "cow"]
    assert source.groups.tolist() == open_given(table, "train").groups[-len(source) :].tolist()
    if form in ("keeps", "replaces"):
        assert source.images.sample(0).image.tolist() == torch.ones(1, 4, 4).tolist()


def test_groups_of_joined_tables_are_those_of_their_parts():
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = {"image": [*map(Image.fromarray, PIXELS)], "label": LABELS, "group": [n // 2 for n in range(COUNT)]}
    tables = [datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()) for _ in range(2)]
    groups = open_given(tables[0], "train").groups.tolist()
    assert open_given(ConcatDataset(tables), "train").groups.tolist() == groups * 2
    with pytest.raises(InputError, match="joins Datasets with and without groups"):
        open_given(ConcatDataset([tables[0], tables[1].remove_columns("group")]), "train")


def test_names_are_those_of_the_column_with_the_labels():
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = {"image": [*map(Image.fromarray, PIXELS)], "label": LABELS, "fine_label": [n % 4 for n in range(COUNT)]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table = table.cast_column("fine_label", datasets.ClassLabel(names=["a", "b", "c", "d"]))
    assert open_given(table.with_transform(dict), "train").classes == [*map(str, sorted(set(LABELS)))]


def test_rows_without_a_label_are_left_out_if_asked():
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    content = {"image": [*map(Image.fromarray, PIXELS)], "label": [-1, *LABELS[1:]]}
    table = datasets.Dataset.from_dict(content).cast_column("image", datasets.Image())
    assert len(open_given(table, "train", on_error="skip")) == COUNT - 1
    with pytest.raises(InputError, match="1 of 20 labels are -1"):
        open_given(table, "train")


def test_class_numbers_match_names_that_are_numbers():
    numbers = [number % 11 for number in range(COUNT)]
    train = open_given((PIXELS, [*map(str, numbers)]), "train")
    assert train.classes[:3] == ["0", "1", "10"]
    for given in ((PIXELS, numbers), Own(labels=numbers), (PIXELS, np.array(numbers))):
        assert open_given(given, "test", train.classes).labels.tolist() == train.labels.tolist()
    sets = open_given((PIXELS, [[number] for number in numbers]), "test", train.classes).labels
    assert sets.argmax(1).tolist() == train.labels.tolist()
    with pytest.raises(InputError, match="test image 0 has the label '11'; no class has that name"):
        open_given((PIXELS, [11] * COUNT), "test", train.classes)


@pytest.mark.parametrize("colour", range(8))
def test_one_image_in_colour_makes_all_of_them_so(colour):
    images = [Image.new("RGB" if number == colour else "L", (4, 4)) for number in range(8)]
    assert infer_channels(open_given(Own(images.__getitem__, LABELS[:8]), "train")) == 3


class WithMethod(Own):
    """Labels are found by a method."""

    def labels(self):
        """Return all labels."""
        return self.given_labels


@pytest.mark.parametrize("part", [range(COUNT), range(3, 15)])
@pytest.mark.parametrize(
    "own",
    [
        Own(labels=LABELS, targets=pd.Series(LABELS, index=range(100, 100 + COUNT))),
        Own(targets=np.array(LABELS)),
        Own(targets=dict(enumerate(LABELS))),
        Own(targets=LABELS[:3]),
        Own(targets=LABELS[::-1]),
        WithMethod(),
    ],
)
def test_labels_are_those_of_the_samples(own, part):
    found = open_given(Subset(own, part), "train")
    assert found.labels.tolist() == [LABELS[index] for index in part]


def test_bfloat16_is_passed_on_as_float32():
    own = Own(lambda index: as_float(index).bfloat16())
    source = open_given(own, "train")
    image = build_image_set(source, DataSettings(channels=1, own_transforms=True), (8, 8)).__getitems__([3]).images[0]
    assert image.dtype == torch.float32 and torch.equal(image, as_float(3).bfloat16().float())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Own(classes=["bat", "cow", "bat"]), "train has 2 classes named bat"),
        (Own(classes=["cat", "cat "]), "train has two classes that look alike"),
        ((PIXELS, ["caf\u00e9", "cafe\u0301"] * 10), "train has two classes that look alike"),
        (
            ConcatDataset([Own(classes=["bat", "cow"]), Own(classes=["ape", "bat"])]),
            "joins Datasets with different classes, bat, cow, and ape, bat; give all of them one list",
        ),
        ((PIXELS, np.array(LABELS)[:, None]), r"train labels have shape \(20, 1\); give class numbers as \(20,\)"),
        (TensorDataset(torch.from_numpy(PIXELS), torch.tensor(LABELS)[:, None]), r"give class numbers as \(20,\)"),
        (Own(fail_at(lambda index: Image.fromarray(PIXELS[index]))), "image 6 cannot be read from its Dataset: trunc"),
    ],
)
def test_labels_that_mislead_are_one_sentence(given, message):
    with pytest.raises(InputError, match=message):
        open_given(given, "train")


def test_parts_of_one_list_of_classes_are_joined():
    joined = ConcatDataset([Own(classes=["bat", "cow"]), Own(), Own(classes=["bat", "cow"])])
    assert open_given(joined, "train").classes == ["bat", "cow"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (fail_at(as_float), "train image 6 cannot be read from its Dataset: truncated file."),
        (lambda index: as_float(index)[:, : 8 - (index == 6)], "train image 6 has shape (1, 7, 8), but the first one"),
    ],
)
def test_errors_of_a_dataset_are_one_sentence_also_from_workers(image, message, workers):
    settings = DataSettings(channels=1, own_transforms=True, batch_size=4, workers=workers, validation=0.0)
    source = open_given(Own(image, targets=LABELS), "train")
    images = build_image_set(source, settings, (8, 8))
    with pytest.raises(InputError) as error:
        list(build_train_loader(images, settings, 0, torch.device("cpu")))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_damaged_image_is_left_out_if_labels_are_listed(caplog):
    source = open_given(Own(fail_at(lambda index: Image.fromarray(PIXELS[index])), targets=LABELS), "train")
    settings = DataSettings(name="given", channels=1, batch_size=4, validation=0.0, on_error="skip")
    assert len(DataModule(settings, 0, given={"train": source}).train) == COUNT - 1
    assert "left out 1 of 20 images, which cannot be read: train image 6 (truncated file)" in caplog.text
