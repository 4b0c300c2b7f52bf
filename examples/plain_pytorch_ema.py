"""The loop of plain_pytorch.py with averaged weights (EMA), warm-up, cosine and validation; saves digits-ema.pt."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.v2 import RandomCrop

import mixmo

EPOCHS, REPETITION = 80, 2  # each image occurs twice in an epoch
torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.images[:, None] / 8 - 1, dtype=torch.float32), torch.tensor(digits.target)
train, rest, train_labels, other = train_test_split(images, labels, train_size=200, stratify=labels, random_state=0)
val, test, val_labels, test_labels = train_test_split(rest, other, train_size=200, stratify=other, random_state=0)
loader = DataLoader(TensorDataset(train, train_labels), batch_size=50 // REPETITION, shuffle=True)
crop = RandomCrop(8, padding=1, fill=-1)


class Average(AveragedModel):
    """Averaged weights whose batch norms ``update_bn`` re-estimates on mixtures, like the network's."""

    def forward(self, batch):
        """Return the logits of a batch of mixtures."""
        return self.module(batch["inputs"], batch["masks"])


def mixtures(progress):
    """Yield the mixtures of an epoch."""
    for x, y in loader:
        yield mixer(torch.stack([crop(image) for image in x]), y, progress)


net = mixmo.MixMo("wide_resnet10_2", num_members=2, num_classes=10, in_chans=1)
mixer = mixmo.BatchMixer(net, "cut", batch_repetition=REPETITION, input_repetition=0.5)
optimizer = torch.optim.SGD(net.parameters(), 0.1 / REPETITION, momentum=0.9, weight_decay=6e-4, nesterov=True)
ramps = [LinearLR(optimizer, 0.1, total_iters=4), CosineAnnealingLR(optimizer, EPOCHS - 4)]
schedule = SequentialLR(optimizer, ramps, [4])
average, least = Average(net, multi_avg_fn=get_ema_multi_avg_fn(0.98)), float("inf")
for epoch in range(EPOCHS):
    for batch in mixtures(epoch / EPOCHS):
        optimizer.zero_grad()
        batch.loss(net(batch.inputs, batch.masks)).backward()
        optimizer.step()
        average.update_parameters(net)
    schedule.step()
    update_bn((batch._asdict() for batch in mixtures(epoch / EPOCHS)), average)
    with torch.no_grad():
        nll = torch.nn.functional.cross_entropy(average.module.eval()(val), val_labels)
    if nll < least:
        least = nll
        torch.save(average.module.state_dict(), "digits-ema.pt")
net.load_state_dict(torch.load("digits-ema.pt", weights_only=True))
with torch.no_grad():
    found = mixmo.evaluate(net.eval().members(test), test_labels)
print(f"validation nll {least:.4f}; test: accuracy {found['accuracy']:.4f}, nll {found['nll']:.4f}")
