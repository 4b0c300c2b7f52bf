"""``mixmo.fit`` on modules, networks, Datasets and DataLoaders of a program's own: nothing is changed or left out."""

import lightning as L
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler
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
