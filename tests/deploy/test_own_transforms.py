"""Predictions and exports of runs whose images a program's Dataset prepared."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms import v2

import mixmo
from mixmo.cli.main import main
from mixmo.errors import InputError

FAST = {"batch_size": 16, "lr": 0.1, "epochs": 1, "progress": False, "workers": 0, "validation": 0.25}
PIXELS = np.random.default_rng(0).integers(256, size=(40, 8, 8), dtype=np.uint8)


class Own(Dataset):
    """Random crops of images: PIL, or float tensors."""

    def __init__(self, floats):
        parts = [v2.RandomCrop(8, padding=1)]
        self.transform = v2.Compose([*parts, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)] if floats else parts)

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(PIXELS[index])), index % 2


@pytest.fixture(scope="module")
def images():
    return mixmo.fit("wide_resnet10_1", Own(floats=False), mean=[0.4], std=[0.3], **FAST)


@pytest.fixture(scope="module")
def floats():
    return mixmo.fit("wide_resnet10_1", Own(floats=True), **FAST)


def test_images_are_prepared_as_in_training(images):
    """Integers are normalised; floats may be normalised or not, so they are refused, as in tests."""
    prepared = (torch.from_numpy(PIXELS[:5])[:, None].float() / 255 - 0.4) / 0.3
    expected = F.normalize(images.network.cpu()(prepared).flatten(), dim=0)  # up to the temperature
    for given in (list(map(Image.fromarray, PIXELS[:5])), list(PIXELS[:5]), torch.from_numpy(PIXELS[:5])[:, None]):
        logits = F.normalize(images.predict(given).logits.float().flatten(), dim=0)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    for given, kind in ((["a.png"], "str"), (prepared, "Tensor"), (PIXELS[:2, None] / 255, "ndarray")):
        with pytest.raises(InputError, match=rf"is a {kind}, but .* give the images or tensors of integers that these"):
            images.predict(given)


def test_networks_whose_images_are_normalised_differently_are_not_ensembled(images):
    other = mixmo.fit("wide_resnet10_1", Own(floats=False), mean=[0.5], std=[0.3], **FAST)
    with pytest.raises(InputError, match=r"cannot be ensembled: mean of one is \[0.4\], of another \[0.5\]"):
        mixmo.Predictor([images, other])


def test_images_for_a_network_of_floats_are_refused(floats, caplog):
    with pytest.raises(InputError, match=r"is a ndarray, but .* give the floating-point tensors"):
        floats.predict(list(PIXELS[:2]))
    for shape in ((8, 8), (3, 8, 8), (1, 1, 8, 8)):
        with pytest.raises(InputError, match=r"the network takes \(1, H, W\)"):
            floats.predict([torch.zeros(shape)])
    floats.export("timm")
    assert "the network was trained on what the Dataset's own transforms return" in caplog.text
    with pytest.raises(InputError, match="normalize is for pixels from 0 to 255, but a Dataset prepared the images"):
        floats.export("onnx", normalize=True)


def test_files_are_refused_before_anything_is_printed(tmp_path, capsys):
    run = mixmo.fit("wide_resnet10_1", Own(floats=True), out=tmp_path / "run", **FAST)
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    capsys.readouterr()
    assert main(["predict", str(run.path), str(tmp_path / "a.png")]) == 2
    printed = capsys.readouterr()
    assert not printed.out and "trained on a Dataset with its own transforms, which files lack" in printed.err


def test_validation_images_with_random_transforms_are_warned_of(caplog):
    plain = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    for warned, options in ((True, {}), (False, {"validation": 0.0}), (False, {"val": (PIXELS[:9], np.arange(9) % 2)})):
        caplog.clear()
        train = Own(floats=False)
        mixmo.fit("wide_resnet10_1", train, **FAST | options)
        assert ("validation images are held out of train, whose random transforms" in caplog.text) == warned
    caplog.clear()
    train = Own(floats=True)
    train.transform = plain
    mixmo.fit("wide_resnet10_1", train, **FAST)
    assert "held out of train" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it is a whole number of at least 1"),
        ({"workers": "2"}, "workers is '2'; it is a whole number of at least 0"),
    ],
)
def test_wrong_batches_are_one_sentence(floats, options, message):
    with pytest.raises(InputError, match=message):
        mixmo.Predictor(floats)([torch.zeros(1, 8, 8)], **options)


def test_a_runs_other_checkpoint_is_opened(images):
    zeros = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    best = mixmo.Predictor(images.path, checkpoint="best")(list(zeros))
    assert torch.equal(images.predict(list(zeros), checkpoint="best").logits, best.logits)
    opened = mixmo.Predictor(images, checkpoint="best").models[0].run
    assert opened.checkpoint == "best" and mixmo.Predictor(images).models[0].run.checkpoint == "last"
    for options in ({"checkpoint": "bset"}, {"coverage": "0.9"}):
        with pytest.raises(InputError, match=r"checkpoint 'bset'|coverage is '0.9'; it is a share"):
            images.predict(list(zeros), **options)
