"""``mixmo.fit`` on modules, networks, Datasets and DataLoaders of a program's own: nothing is changed or left out."""

import lightning as L
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torchvision.transforms import v2

import mixmo
from mixmo.data.given import open_given
from mixmo.errors import InputError

NET = "wide_resnet10_1"
FAST = {"batch_size": 10, "lr": 0.1, "epochs": 1, "progress": False}
IMAGES, LABELS = np.random.default_rng(0).integers(256, size=(60, 8, 8), dtype=np.uint8), np.arange(60) % 3


def states_equal(one, other):
    return all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_a_network_is_copied_so_that_folds_and_seeds_start_alike():
    net = mixmo.MixMo(NET, num_classes=3, in_chans=1)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    losses = [mixmo.fit(net, (IMAGES, LABELS), **FAST).metrics[0]["train_loss"] for _ in range(2)]
    assert losses[0] == losses[1] and states_equal(before, net.state_dict())


def test_a_networks_members_and_place_of_mixing_are_recorded():
    net = mixmo.MixMo(NET, num_members=3, num_classes=3, in_chans=1, mix_at="stages.0")
    run = mixmo.fit(net, (IMAGES, LABELS), **FAST)
    assert (run.header.num_members, run.header.mix_at) == (3, "stages.0")
    plain = timm.create_model(NET, num_classes=3, in_chans=1)
    assert states_equal(mixmo.load(run.path, model=plain).state_dict(), run.network.cpu().state_dict())


def test_a_trained_module_starts_as_itself(tmp_path):
    """Its encoders are the trained stem / M, plus noise that cancels in the sum."""
    module = timm.create_model(NET, num_classes=3, in_chans=1)
    first = {}

    class First(L.Callback):
        def on_train_start(self, trainer, training):
            first.update({key: tensor.clone() for key, tensor in training.net.state_dict().items()})
            first["encoders"] = sum(encoder.weight.detach().clone() for encoder in training.net.encoders)

    mixmo.fit(module, (IMAGES, LABELS), pretrained=True, member_noise=1.0, callbacks=[First()], **FAST)
    stem = module.get_submodule(module.pretrained_cfg["first_conv"]).weight
    torch.testing.assert_close(first["encoders"], stem.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "loader",
    [
        lambda images: DataLoader(images, batch_sampler=BatchSampler(SubsetRandomSampler(range(20)), 4, False)),
        lambda images: DataLoader(images, sampler=SubsetRandomSampler(range(20))),
    ],
)
def test_a_loaders_images_are_those_of_its_sampler(loader):
    images = TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS))
    assert len(open_given(loader(images), "train")) == 20
    for other in (RandomSampler(range(20)), WeightedRandomSampler(torch.ones(60), 60)):
        for own in ({"sampler": other}, {"batch_sampler": BatchSampler(other, 4, False)}):
            with pytest.raises(InputError, match="Sampler, but mixmo draws its own batches"):
                open_given(DataLoader(images, **own), "train")


def test_one_dataset_in_two_loaders_is_not_two_splits():
    images = TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS))
    with pytest.raises(InputError, match="validation is the same object as train"):
        mixmo.fit(NET, DataLoader(images, 4), DataLoader(images, 8), **FAST)


def test_changes_of_a_runs_network_are_not_results_of_the_run(tmp_path):
    run = mixmo.fit(NET, (IMAGES, LABELS), test=(IMAGES[:20], LABELS[:20]), out=tmp_path / "run", **FAST)
    expected = run.predict(list(IMAGES[:3])).probabilities
    with torch.no_grad():
        for parameter in run.network.train().parameters():
            parameter.zero_()
    assert torch.equal(run.predict(list(IMAGES[:3])).probabilities, expected)
    assert run.test()["nll"] == mixmo.Run(tmp_path / "run", model=None).test()["nll"] > 0
    images = torch.from_numpy(IMAGES[:20])[:, None].float()
    logits = mixmo.load(tmp_path / "run")((images / 255 - run.header.data.mean[0]) / run.header.data.std[0])
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS[:20])).item()
    assert run.test()["nll"] == pytest.approx(loss, rel=1e-4)


def test_images_that_are_seldom_random_are_refused():
    class Rare(Dataset):
        targets = [0] * 100 + [1] * 8 + [2] * 100

        def __len__(self):
            return 208

        def __getitem__(self, index):
            image = IMAGES[index % 60]
            image = image[:, ::-1] if self.targets[index] == 1 and torch.rand(()) < 0.5 else image
            return Image.fromarray(np.ascontiguousarray(image)), self.targets[index]

    with pytest.raises(InputError, match=r"train image 100 draws random numbers, .* set own_transforms=True"):
        mixmo.fit(NET, Rare(), **FAST)
    assert mixmo.fit(NET, Rare(), own_transforms=True, **FAST).header.data.own_transforms


def test_what_a_program_gets_wrong_is_said_before_training(tmp_path):
    floats = torch.rand(60, 1, 8, 8)
    floats[5, 0, 0, 0] = float("nan")
    net = mixmo.MixMo(NET, num_classes=3, in_chans=1)
    for changes, message in (
        ({"callbacks": None}, "callbacks is None; give a list"),
        ({"model": nn.DataParallel(net)}, "model is a DataParallel of a MixMo; pass the MixMo itself"),
        ({"model": mixmo.MixMo(NET, num_classes=3, in_chans=1).double()}, "weights that are not float32"),
        ({"train": (floats, LABELS)}, "train image 5 has values that are not finite"),
        ({"train": {"image": IMAGES, "label": LABELS}}, "train is a dict of image, label; give one of its parts"),
    ):
        with pytest.raises(InputError, match=message):
            mixmo.fit(**{"model": NET, "train": (IMAGES, LABELS), "out": tmp_path / "run", **FAST, **changes})
    with torch.no_grad(), pytest.raises(InputError, match="gradients are switched off here"):
        mixmo.fit(NET, (IMAGES, LABELS), **FAST)
    assert not (tmp_path / "run").exists()
    assert mixmo.fit(NET, ([*IMAGES], LABELS), momentum=0, **FAST).header.size == (8, 8)


def test_several_grey_images_are_not_one_in_colour():
    run = mixmo.fit(NET, (IMAGES, LABELS), **FAST)
    expected = run.predict(list(IMAGES[:5])).probabilities
    assert torch.equal(run.predict(IMAGES[:5]).probabilities, expected) and len(run.predict(IMAGES[:1])) == 1
    with pytest.raises(InputError, match=r"\(3, 8, 8\) may be one image in colour or 3 grey ones"):
        run.predict(IMAGES[:3])


def test_other_validation_images_are_not_resumed_with(tmp_path):
    splits = {"val": (IMAGES[:12], LABELS[:12]), "out": tmp_path / "run"}
    mixmo.fit(NET, (IMAGES, LABELS), **splits, **FAST)
    splits["val"] = (255 - IMAGES[:12], LABELS[:12])
    with pytest.raises(InputError, match="the training data has changed"):
        mixmo.fit(NET, (IMAGES, LABELS), resume=True, **splits, **FAST | {"epochs": 2})
    with pytest.raises(InputError, match=r"exists already; mixmo\.fit\(.* or choose another folder \(out\)"):
        mixmo.fit(NET, (IMAGES, LABELS), **splits, **FAST)


def test_several_loaders_of_a_datamodule_are_refused():
    class Two(L.LightningDataModule):
        def __init__(self, count):
            super().__init__()
            self.count = count

        def train_dataloader(self):
            return [DataLoader(TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)))] * self.count

    with pytest.raises(InputError, match="train_dataloader of Two returns 2 loaders in a list; return one"):
        mixmo.fit(NET, Two(2), **FAST)
    assert mixmo.fit(NET, Two(1), **FAST).folder.training_images() == 54


def test_arrays_test_a_network_that_was_trained_on_random_transforms(tmp_path, caplog):
    class Cropped(Dataset):
        crop = v2.RandomCrop(8, padding=1)

        def __len__(self):
            return len(IMAGES)

        def __getitem__(self, index):
            return self.crop(Image.fromarray(IMAGES[index])), int(LABELS[index])

    run = mixmo.fit(NET, Cropped(), test=(IMAGES[:30], LABELS[:30]), out=tmp_path / "run", num_members=2, **FAST)
    assert run.data.batch([0, 3]).shape == (2, 8, 8, 1) and run.data.image(3).tolist() == IMAGES[3][:, :, None].tolist()
    run.test()
    assert "could not be drawn" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_members": 2}, "num_members is 2, but that of the MixMo is 3; leave it out"),
        ({"mix_at": "stages.0"}, "mix_at is 'stages.0', but that of the MixMo is None"),
        ({"pretrained": True}, "model.pretrained is True, but the model is a MixMo"),
        ({"model_options": {"drop_rate": 0.1}}, "but the model is a module; build it with these options"),
    ],
)
def test_what_a_network_decides_is_not_set(settings, message):
    net = mixmo.MixMo(NET, num_members=3, num_classes=3, in_chans=1)
    with pytest.raises(InputError, match=message):
        mixmo.fit(net, (IMAGES, LABELS), **FAST, **settings)
    if settings == {"pretrained": True}:
        module = timm.create_model(NET, num_classes=3, in_chans=1)
        with pytest.raises(InputError, match="load the weights into it, and set pretrained=True"):
            mixmo.fit(module, (IMAGES, LABELS), **FAST, pretrained="weights.pt")


def test_a_samplers_images_are_those_of_the_split():
    tensors = TensorDataset(torch.from_numpy(IMAGES)[:, None], torch.from_numpy(LABELS))

    class Module(L.LightningDataModule):
        def loader(self, part):
            return DataLoader(tensors, 8, sampler=SubsetRandomSampler(range(20 * part, 20 * part + 20)))

        def train_dataloader(self):
            return self.loader(0)

        def val_dataloader(self):
            return self.loader(1)

        def test_dataloader(self):
            return self.loader(2)

    run = mixmo.fit(NET, Module(), **FAST)
    shown = [run.data.train, run.data.validation, run.data.test]
    for images, expected in zip(shown, np.split(IMAGES, 3), strict=True):
        assert np.array_equal(images.images.squeeze(-1).numpy(), expected)
    weighted = DataLoader(tensors, 8, sampler=WeightedRandomSampler([1.0] * 60, 60))
    with pytest.raises(InputError, match="train is a DataLoader with a WeightedRandomSampler, but mixmo draws its own"):
        mixmo.fit(NET, weighted, **FAST)


class Transformed(Dataset):
    """PIL images through a transform, with raw targets."""

    targets = LABELS

    def __init__(self, transform, target_transform=None):
        self.transform, self.target_transform = transform, target_transform

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(IMAGES[index])), int(LABELS[index])


@pytest.mark.parametrize("probability", [0.02, 0.2, 0.49, 0.8, 0.98])
def test_transforms_of_any_probability_are_random(probability):
    source = open_given(Transformed(v2.RandomApply([v2.RandomInvert(1.0)], p=probability)), "train")
    assert source.images.prepared
    with_numpy = Transformed(lambda image: image.rotate(90) if np.random.rand() < probability else image)  # noqa: NPY002  (as users do)
    assert open_given(with_numpy, "train").images.prepared
    assert not open_given(Transformed(v2.Resize(8)), "train").images.prepared


def test_transforms_of_labels_are_applied():
    """Even where they change only one image, which a look at a few samples misses."""

    class Rare(Transformed):
        targets = np.where(np.arange(60) == 31, 2, np.arange(60) % 2)

        def __getitem__(self, index):
            return Image.fromarray(IMAGES[index]), self.target_transform(int(self.targets[index]))

    source = open_given(Rare(None, lambda label: min(label, 1)), "train")
    assert source.labels.tolist() == np.minimum(Rare.targets, 1).tolist()
