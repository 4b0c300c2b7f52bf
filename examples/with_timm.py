"""Cut-MixMo in timm's training loop: a ``MixMoTask``, with timm's optimiser, schedule, EMA and accuracy.

python examples/with_timm.py
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import accuracy
from torch.utils.data import DataLoader, TensorDataset

import mixmo
from mixmo.integrations.timm import MixMoTask

EPOCHS, REPETITION = 20, 2
torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.images[:, None] / 8 - 1, dtype=torch.float32), torch.tensor(digits.target)
train, test, train_labels, test_labels = train_test_split(
    images, labels, train_size=600, stratify=labels, random_state=0
)
loader = DataLoader(TensorDataset(train, train_labels), 32 // REPETITION, shuffle=True, drop_last=True)

net = mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=10, in_chans=1)
mixer = mixmo.BatchMixer(net, "cut", batch_repetition=REPETITION, input_repetition=0.5)
task = MixMoTask(net, mixer, steps=EPOCHS * len(loader))
task.setup_ema(decay=0.95)
optimizer = create_optimizer_v2(net, "sgd", lr=0.1 / REPETITION, momentum=0.9, weight_decay=1e-3)
schedule = CosineLRScheduler(optimizer, t_initial=EPOCHS)
for epoch in range(EPOCHS):
    task.train()
    for x, y in loader:
        loss = task(x, y)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.update_ema()
    schedule.step(epoch + 1)

model = task.get_eval_model(ema=True).eval()
with torch.no_grad():
    (top1,) = accuracy(model(test), test_labels)
print(f"top-1 of the averaged weights: {top1.item():.2f} %")
