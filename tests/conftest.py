"""What several test files share: small pictures on disk, and few threads."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from mixmo.fitting import fit
from mixmo.plans import make_plan
from mixmo.recipes import load_recipe
from mixmo.runs import Run

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


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Two runs on the same pictures, of two members and of one, and a folder of strangers of another size."""
    folder = tmp_path_factory.mktemp("trained")
    write_images(folder / "data" / "train", count=12)
    write_images(folder / "data" / "test", count=4, seed=1)
    write_images(folder / "strangers" / "train", classes=("x", "y"), size=20)
    write_images(folder / "strangers" / "test", classes=("x", "y"), size=20, seed=2)
    runs = []
    for name, members in (("two", 2), ("one", 1)):
        words = [f"--data.name=folder:{folder}/data", "--data.batch_size=8", "--data.padding=1", "--data.channels=3"]
        words += ["--data.image_size=null", "--data.validation=0.25", "--trainer.max_epochs=2"]
        run = Run(folder / name)
        fit(make_plan(load_recipe("quickstart"), [*words, f"--model.num_members={members}"]), run)
        runs.append(run)
    return folder, *runs


@pytest.fixture
def chromium(tmp_path):
    """Opens a page in headless Chromium; returns its content and what the browser said about it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")

    def opened(page):
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        words += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--dump-dom"]
        words += [f"--user-data-dir={tmp_path}/profile", f"file://{page}"]
        done = subprocess.run([browser, *words], capture_output=True, text=True, timeout=120)
        return done.stdout, done.stderr

    return opened
