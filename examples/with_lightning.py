"""Cut-MixMo in Lightning's Trainer: MixMoModule around a loader of scikit-learn's digits.

python examples/with_lightning.py
"""

from functools import partial

import lightning
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset

import mixmo
from mixmo.integrations.lightning import MixMoModule

EPOCHS, REPETITION = 20, 2
torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.images[:, None] / 8 - 1, dtype=torch.float32), torch.tensor(digits.target)
train, test, train_labels, test_labels = train_test_split(
    images, labels, train_size=600, stratify=labels, random_state=0
)
loader = DataLoader(TensorDataset(train, train_labels), 32 // REPETITION, shuffle=True, drop_last=True)
validation = DataLoader(TensorDataset(test, test_labels), 256)

net = mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=10, in_chans=1)
mixer = mixmo.BatchMixer(net, "cut", batch_repetition=REPETITION, input_repetition=0.5)
optimizer = partial(torch.optim.SGD, lr=0.1 / REPETITION, momentum=0.9, weight_decay=1e-3, nesterov=True)
schedule = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=EPOCHS * len(loader))
trainer = lightning.Trainer(max_epochs=EPOCHS, logger=False, enable_checkpointing=False)
trainer.fit(MixMoModule(net, mixer, optimizer, schedule), loader, validation)
print({key: round(float(value), 4) for key, value in trainer.callback_metrics.items()})
