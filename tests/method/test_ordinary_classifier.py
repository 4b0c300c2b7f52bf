"""Other libraries' loops, metrics and trainers with plain ``net(images)``: all give the ensemble's accuracy."""

import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sklearn.metrics import accuracy_score
from timm.utils import AverageMeter, accuracy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import mixmo


@pytest.fixture(scope="module")
def net():
    """A network whose members disagree, so that the ensemble's predictions are no single member's."""
    torch.manual_seed(0)
    net = mixmo.MixMo("wide_resnet10_1", num_members=3, num_classes=10)
    with torch.no_grad():
        for head in net.heads:
            head.weight.mul_(20)
    return net.eval()


@pytest.fixture(scope="module")
def loader(net):
    """Images of which the ensemble classifies about half correctly."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(60, 3, 16, 16, generator=generator), torch.randint(10, (60,), generator=generator)
    with torch.no_grad():
        labels[::2] = net.members(images[::2]).mean(1).argmax(1)
    return DataLoader(TensorDataset(images, labels), batch_size=25)


@pytest.fixture(scope="module")
def expected(net, loader):
    """The ensemble's accuracy by NumPy, which is no member's."""
    images, labels = loader.dataset.tensors
    with torch.no_grad():
        members = net.members(images).numpy()
    right = (members.mean(1).argmax(1) == labels.numpy()).mean()
    assert right not in (members.argmax(2) == labels.numpy()[:, None]).mean(0) and 0.5 <= right < 0.8
    return right


def test_argmax_gives_classes(net, loader, expected):
    with torch.inference_mode():
        predicted = torch.cat([net(images).argmax(1) for images, _ in loader])
    assert accuracy_score(loader.dataset.tensors[1], predicted) == pytest.approx(expected)


def test_timms_validation_loop(net, loader, expected):
    """As timm's ``validate.py`` does it: loss, top-1 and top-5 by its meters."""
    losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    with torch.no_grad():
        for images, target in loader:
            output = net(images)
            loss = F.cross_entropy(output, target)
            acc1, acc5 = accuracy(output.detach(), target, topk=(1, 5))
            losses.update(loss.item(), images.size(0))
            top1.update(acc1.item(), images.size(0))
            top5.update(acc5.item(), images.size(0))
        images, labels = loader.dataset.tensors
        metrics = mixmo.evaluate(net.members(images), labels)
    assert top1.avg == pytest.approx(100 * expected)
    assert top5.avg == pytest.approx(100 * metrics["accuracy_top5"])
    assert losses.avg == pytest.approx(metrics["nll"], rel=1e-5)


class Classifier(LightningModule):
    """A LightningModule as for any classifier."""

    def __init__(self, net):
        super().__init__()
        self.net, self.accuracy = net, MulticlassAccuracy(num_classes=10, average="micro")

    def validation_step(self, batch, batch_idx):
        """Score a batch."""
        images, labels = batch
        logits = self.net(images)
        self.accuracy(logits, labels)
        self.log_dict({"loss": F.cross_entropy(logits, labels), "accuracy": self.accuracy})


def test_lightnings_validation_loop(net, loader, expected):
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    (found,) = trainer.validate(Classifier(net), loader, verbose=False)
    assert found["accuracy"] == pytest.approx(expected)
