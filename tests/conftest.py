"""What several test files share: small pictures on disk, and few threads."""

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)


def write_images(folder, classes=("cat", "dog", "emu"), count=8, size=8, seed=0, suffix="png"):
    """Write ``count`` random pictures for each class."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03}.{suffix}")


@pytest.fixture
def image_folder(tmp_path):
    """A dataset folder: three classes, 24 training and 12 test pictures of 8×8."""
    folder = tmp_path / "images"
    write_images(folder / "train")
    write_images(folder / "test", count=4, seed=1)
    return folder


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
