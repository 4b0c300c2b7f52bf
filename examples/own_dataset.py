"""Train on your own Dataset in one call: 400 of scikit-learn's digits, validated and tested on the others.

    python examples/own_dataset.py

Each copy of an image in a batch gets a new random transform. The run is saved in runs/own-dataset.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset
from torchvision.transforms import v2

import mixmo


class Digits(Dataset):
    """Images as floats from -1 to 1, shifted at random in training."""

    def __init__(self, index, train=False):
        digits = load_digits()
        self.images, self.targets = digits.images[index].astype(np.float32), digits.target[index]
        tensor = v2.Compose([v2.ToImage(), v2.Normalize([8], [8])])
        self.transform = v2.Compose([tensor, v2.RandomCrop(8, padding=1, fill=-1)]) if train else tensor

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index][..., None]).as_subclass(torch.Tensor), self.targets[index]


train, test = train_test_split(np.arange(1797), train_size=400, stratify=load_digits().target, random_state=0)
val, test = test[:200], test[200:]
run = mixmo.fit(
    "wide_resnet10_2",
    Digits(train, train=True),
    val=Digits(val),
    test=Digits(test),
    num_members=2,
    epochs=40,
    out="runs/own-dataset",
    batch_size=50,
    batch_repetition=2,
    input_repetition=0.5,
    base_lr=0.1,
    schedule_kind="cosine",
    workers=0,
)
found = run.test()
print(f"accuracy {found['accuracy']:.4f}, nll {found['nll']:.4f}; the page: {run.report}")
print("exported:", run.export("onnx").path)
