"""Bands, windows and rectangles go with a network, from the arrays it learns from to the files it is exported to."""

import json

import numpy as np
import pytest
import timm
import torch

import mixmo
from mixmo.cli.main import main
from mixmo.config.data_settings import DataSettings
from mixmo.config.parsing import parse_arguments
from mixmo.config.preprocessing import inherit_settings
from mixmo.config.settings import known_settings
from mixmo.data.batches import Augmentation, CenterCrop
from mixmo.deploy.images import InputFormat, decode_image
from mixmo.deploy.spec import Spec
from mixmo.errors import InputError
from mixmo.header import Header, Preparation

RNG = np.random.default_rng(0)
SHAPED = {"image_size": [10, 18], "crop_size": [8, 16], "padding": 1}
VIT = {"img_size": [8, 16], "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3}
CASES = {
    "13 bands": ("wide_resnet10_1", RNG.integers(0, 4096, (24, 12, 20, 13), dtype=np.uint16),
                 {"window": [0, 4095], "channels": 13, **SHAPED, "mean": [0.4] * 13, "std": [0.3] * 13}),
    "vit": ("vit_tiny_patch16_224", RNG.integers(0, 256, (24, 12, 20, 3), dtype=np.uint8),
            {"model_options": VIT, **SHAPED}),
    "two bands": ("resnet18", RNG.integers(0, 256, (24, 12, 12, 2), dtype=np.uint8),
                  {"image_size": [32, 64], "augmentation": "photo", "color_jitter": 0.0, "erasing": 0.5}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_images_of_sensors_from_training_to_exports(case, tmp_path, caplog):
    model, images, settings = CASES[case]
    labels = np.arange(24) % 3
    test = (images[:9].copy(), labels[:9])
    run = mixmo.fit(model, (images, labels), test=test, num_members=2, epochs=1, batch_size=8, out=tmp_path / "run",
                    progress=False, accelerator="cpu", validation=0.25, **settings)  # fmt: skip
    run.test()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "could not be drawn" not in page and "data:image/png" in page
    expected = run.predict(list(images[:5]))
    height, width = run.header.input_size
    assert (height, width) == tuple(settings.get("crop_size", settings["image_size"]))
    for format in ("onnx", "timm", "safetensors"):
        found = mixmo.Predictor(run.export(format).path)(list(images[:5]))
        torch.testing.assert_close(found.probabilities, expected.probabilities, atol=1e-5, rtol=1e-4)
    assert ("timm's own transform scales these images differently" in caplog.text) == ("crop_size" in settings)
    graph = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "run" / "model.onnx")
    assert graph.get_inputs()[0].shape[1:] == [images.shape[3], height, width]
    content = json.loads((tmp_path / "run" / "timm" / "config.json").read_text())
    assert content["pretrained_cfg"]["input_size"] == [images.shape[3], height, width]
    assert ("first_conv" in content["pretrained_cfg"]) == (images.shape[3] == 3)  # else timm would adapt it
    assert mixmo.load(tmp_path / "run" / "timm").in_chans == images.shape[3]


def test_a_rectangle_is_cropped_alike_in_training_and_after():
    settings = DataSettings(
        channels=1, image_size=[10, 18], crop_size=[8, 16], padding=0, flip=False, mean=[0], std=[1]
    )
    images = torch.arange(10 * 18, dtype=torch.uint8).view(1, 10, 18, 1)
    middle = images[0, 1:9, 1:17, 0].float() / 255
    torch.testing.assert_close(CenterCrop(settings).center(images)[0, 0], middle)
    augment, index = Augmentation(settings), torch.zeros(64, dtype=torch.long)
    crops = augment.random(images, index, torch.Generator().manual_seed(0))
    assert crops.shape == (64, 1, 8, 16)
    corners = {(int(value) // 18, int(value) % 18) for value in (crops[:, 0, 0, 0] * 255).round()}
    assert corners == {(row, column) for row in range(3) for column in range(3)}


def test_a_header_says_bands_and_rectangles():
    data = Preparation.of(DataSettings(channels=13, image_size=(10, 18), crop_size=[8, 16], mean=[0.5] * 13))
    header = Header(["a", "b"], (10, 18), data)
    assert Header.from_dict(json.loads(json.dumps(header.to_dict()))) == header
    assert header.input_size == (8, 16)
    spec = Spec(["a", "b"], (10, 18), data)
    assert Spec.from_json(spec.to_json()) == spec
    assert spec.views(torch.zeros(2, 10, 18, 13, dtype=torch.uint8))[0].shape == (2, 13, 8, 16)


@pytest.mark.parametrize("size", [[8], [8, 8, 8], [8, 0], [8, 8193], "8", [8, "x"], 0])
def test_sizes_that_are_none_are_refused(size):
    with pytest.raises(InputError, match=r"data\.crop_size"):
        DataSettings(crop_size=size)


def test_rectangles_on_the_command_line():
    for words in (["--data.image_size", "[10, 18]"], ["--data.image_size=[10,18]"]):
        assert parse_arguments(["run", *words], known_settings(), "fit") == (["run"], {"data.image_size": [10, 18]})
    assert parse_arguments(["--data.image_size", "10", "run"], known_settings(), "fit") == (
        ["run"],
        {"data.image_size": 10},
    )


def test_weights_for_rectangles_bring_their_size():
    values = {"model.pretrained": True, "model.backbone": "resnet18", "data.crop_size": [96, 192]}
    found = inherit_settings(values)
    assert found["data.image_size"] == [101, 202] and "data.crop_size" not in found
    if timm.get_pretrained_cfg(tall := "vit_base_patch16_sapiens2.fb") is not None:  # later versions of timm
        found = inherit_settings({"model.pretrained": True, "model.backbone": tall})
        assert found["data.crop_size"] == [1024, 768]


def test_a_rectangle_larger_than_the_image_is_refused(tmp_path, capsys):
    words = ["--data.crop_size=[8, 99]", "--trainer.max_epochs=1", "--run", str(tmp_path / "run")]
    assert main(["fit", "digits-cut", *words]) != 0
    assert "data.crop_size is [8, 99], larger than images of" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, ">u2"])
def test_arrays_and_tensors_are_predicted_in_any_order(kind):
    values = RNG.integers(0, 256, (10, 12, 3)).astype(kind)
    format = InputFormat((10, 12), 3, "bicubic")
    wanted = decode_image(values.astype(np.dtype(kind).newbyteorder("=")), format)
    assert wanted.shape == (10, 12, 3)
    images = [values, np.moveaxis(values, 2, 0)]
    if kind != ">u2":  # which torch lacks
        images += [torch.from_numpy(np.ascontiguousarray(each)) for each in images]
    for image in images:
        assert np.array_equal(decode_image(image, format), wanted)
