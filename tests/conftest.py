"""What several test files share: small pictures on disk, and few threads."""

import atexit
import base64
import html
import json
import logging
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor

import matplotlib.font_manager  # noqa: F401  it keeps a list of fonts in the real cache
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import nn

from mixmo import checkpoints
from mixmo.cli.main import main
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.data.batches import BatchMaker
from mixmo.data.module import DataModule
from mixmo.deploy.predictor import Predictor
from mixmo.evaluation import predictions
from mixmo.network import MixMo
from mixmo.runs import RunFolder
from mixmo.training.fit import fit

torch.set_num_threads(1)
if "HF_DATASETS_CACHE" not in os.environ:  # which the datasets library reads once
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


class Stopping(Callback):
    """Stops training before an epoch, counted from 0, with an error of its own."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        """Stop if it is time."""
        if trainer.current_epoch == self.epoch:
            raise ZeroDivisionError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The user's cache: no test leaves anything in the real one, or finds there what another test has kept."""
    folder = tmp_path_factory.getbasetemp() / f"cache-{uuid.uuid4().hex}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def data_of(settings, seed=0, check=True):
    """Open all that training needs."""
    return DataModule(settings, seed, check).require()


def write_images(folder, classes=("cat", "dog", "emu"), count=8, size=8, seed=0, suffix="png"):
    """Write ``count`` random pictures for each class."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03}.{suffix}")


def write_splits(folder, train=8, test=4, **options):
    """Write so many random pictures for training and for testing of each class; return the folder."""
    write_images(folder / "train", count=train, **options)
    write_images(folder / "test", count=test, seed=1, **options)
    return folder


def plan_of(folder, *words, recipe="digits-cut"):
    """Return the plan of a run on a folder's pictures as they are, a quarter of them for validation."""
    own = [f"--data.name=folder:{folder}", "--data.batch_size=8", "--data.padding=1", "--data.channels=3"]
    return make_plan(load_recipe(recipe), [*own, "--data.image_size=null", "--data.validation=0.25", *words])


def tree(folder, *paths):
    """Write one small picture to each of the paths; return the pictures' first values by path."""
    values = {}
    for number, path in enumerate(paths):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(file, "PNG")
        values[path] = number
    return values


def packed(folder, archive, arcname=".", mode="w", **options):
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, mode) as tar:
        tar.add(folder, arcname, **options)


@pytest.fixture
def image_folder(tmp_path):
    """A dataset folder: three classes, 24 training and 12 test pictures of 8×8."""
    return write_splits(tmp_path / "images")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures for several runs, which change none of them."""
    return write_splits(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


class Plain(nn.Module):
    """A classifier of somebody's own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Linear(8, 7)

    def forward(self, x):
        return self.last(self.first(x).relu().mean((2, 3)))


class Observed:
    """What training drew and computed with."""

    def __init__(self):
        self.shaped, self.types = [], set()

    def masks(self, masks):
        """Note for a batch whether any mask differs from place to place, or from channel to channel."""
        flat = masks.flatten(2)
        self.shaped.append(bool((flat.amax(2) > flat.amin(2)).any()))


@pytest.fixture
def observed(monkeypatch):
    """Notes the masks of every training batch, and the type that networks compute in."""
    seen = Observed()
    make, forward = BatchMaker.__call__, MixMo.forward

    def made(self, *arguments, **options):
        mixed = make(self, *arguments, **options)
        if torch.is_grad_enabled():  # not those that batch-norm statistics are estimated from
            seen.masks(mixed.masks)
        return mixed

    def passed(self, *arguments):
        if self.training:
            seen.types.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return forward(self, *arguments)

    monkeypatch.setattr(BatchMaker, "__call__", made)
    monkeypatch.setattr(MixMo, "forward", passed)
    return seen


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Two runs on the same pictures, of two members and of one, and a folder of another dataset of another size."""
    folder = tmp_path_factory.mktemp("trained")
    write_splits(folder / "data", train=12)
    write_images(folder / "other" / "train", classes=("x", "y"), size=20)
    write_images(folder / "other" / "test", classes=("x", "y"), size=20, seed=2)
    runs = []
    for name, members in (("two", 2), ("one", 1)):
        run = RunFolder(folder / name)
        fit(plan_of(folder / "data", "--trainer.max_epochs=2", f"--model.num_members={members}"), run)
        runs.append(run)
    return folder, *runs


@pytest.fixture(scope="session")
def gone(tmp_path_factory):
    """A run of photos of 10×10 in three classes, with a validation set, whose photos are deleted."""
    folder = tmp_path_factory.mktemp("gone")
    write_images(folder / "photos", count=20, size=10)
    words = [f"--data.name=folder:{folder}/photos", "--data.channels=3", "--data.crop_size=12", "--data.padding=0"]
    words += ["--data.batch_size=8", "--data.validation=0.4", "--trainer.max_epochs=2", f"--run={folder}/run"]
    assert main(["fit", "digits-cut", *words]) == 0
    shutil.rmtree(folder / "photos")
    return folder / "run"


@pytest.fixture(scope="session")
def new_images(tmp_path_factory):
    """Twelve images of 14×14 to predict."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, classes=("new",), count=12, size=14, seed=5)
    return folder / "new"


PROBE = """<!doctype html>
<meta charset="utf-8"><meta name="color-scheme" content="light dark">
<iframe style="border: 0; width: {width}px; height: 30000px" srcdoc="{page}"></iframe>
<pre id="probe"></pre>
<script>
addEventListener("load", () => {{
  const inside = document.querySelector("iframe").contentWindow, page = inside.document;
  const all = (selector) => [...page.querySelectorAll(selector)];
  const wide = () => page.documentElement.scrollWidth;
  const closed = wide();
  all("details").forEach((each) => {{ each.open = true; }});
  const ids = all("[id]").map((each) => each.id);
  const found = {{
    inner: inside.innerWidth, closed: closed, opened: wide(), text: page.body.innerText,
    outside: all("body *").filter((each) => each.getBoundingClientRect().right > inside.innerWidth + 1
      && !each.closest(".scroll > *, pre, svg *")).map((each) => each.outerHTML.slice(0, 100)),
    unnamed: all("img:not([alt]), img[alt=''], svg:not([role=img][aria-label])").length,
    repeated: ids.filter((id, place) => ids.indexOf(id) !== place),
    background: inside.getComputedStyle(page.body).backgroundColor,
  }};
  document.querySelector("#probe").textContent = btoa(unescape(encodeURIComponent(JSON.stringify(found))));
}});
</script>
"""
"""Measures a page in a frame of any width (windows are never narrower than 500 pixels)."""


@pytest.fixture
def computed(monkeypatch):
    """The datasets for which a network predicted."""
    honest, asked = predictions._computed, []

    def counted(run, dataset, *rest):
        asked.append(dataset)
        return honest(run, dataset, *rest)

    monkeypatch.setattr(predictions, "_computed", counted)
    return asked


def answers_of_threads(net, size, calls):
    """Eight threads ask one network for images and for mixtures with masks of their own, eight cases in turn.

    Returns how many of the calls answer as one thread alone does.
    """
    _, height, width = net.encoder_shape(size, size)
    cases = []
    for count in range(1, 9):
        mask = (torch.arange(width) < count * width // 9).float().expand(count, 1, 1, height, width)
        cases.append((torch.randn(count, 2, 3, size, size), torch.cat([mask, 1 - mask], 1)))
    with torch.inference_mode():
        expected = [(net(inputs[:, 0]), net(inputs, masks)) for inputs, masks in cases]

    def ask(number):
        (inputs, masks), (images_logits, logits) = cases[number % 8], expected[number % 8]
        with torch.inference_mode():
            return torch.equal(net(inputs[:, 0]), images_logits) and torch.equal(net(inputs, masks), logits)

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(ask, range(calls)))


@pytest.fixture
def chromium(tmp_path):
    """Opens a page in headless Chromium; returns what was measured in it and what the browser logged."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")

    def opened(page, width=1280, dark=False):
        probe = tmp_path / "probe.html"
        probe.write_text(PROBE.format(width=width, page=html.escape(page.read_text())))
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        words += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--dump-dom"]
        words += ["--force-dark-mode"] if dark else []
        words += ["--window-size=1400,900", f"--user-data-dir={tmp_path}/profile", f"file://{probe}"]
        done = subprocess.run([browser, *words], capture_output=True, text=True, timeout=120)
        line = re.findall(r'<pre id="probe">(.*?)</pre>', done.stdout)[-1]
        return json.loads(base64.b64decode(line)), done.stderr

    return opened


def moved(run, folder, to):
    """Return a copy of a run as training left it, on a copy of its pictures, which lie in ``to / "data"``."""
    shutil.copytree(folder / "data", to / "data")
    evaluated = shutil.ignore_patterns("predictions", "calibration-*", "test.json", "*.html")
    shutil.copytree(run.path, to / run.path.name, ignore=evaluated)
    copy = RunFolder(to / run.path.name)
    copy.config_file.write_text(copy.config_file.read_text().replace(f"{folder}/data", f"{to}/data"))
    return copy


def describe_otherwise(run, **model):
    """Have a run's last checkpoint describe another network than it holds."""
    content = checkpoints.load(run.checkpoint_file())
    checkpoints.save(run.checkpoint_file(), content | {"header": content["header"] | model})


@pytest.fixture(scope="session")
def another_seed(trained):
    """The run of two members with another seed."""
    folder, two, _ = trained
    run = RunFolder(folder / "another")
    fit(make_plan(two.config() | {"seed": 1}), run)
    return run


def shared_state():
    """Return what belongs to the whole process: draws, filters of warnings, and levels of logs."""
    return torch.get_rng_state().tolist(), list(warnings.filters), logging.getLogger("PIL").level, logging.root.level


def predictions_of_threads(path, images, seconds=None, calls=200):
    """Eight threads ask one predictor for images, and open predictors of their own now and then.

    Returns how many answers were right, how many were wrong, and whether the process is as it was.
    """
    predictor = Predictor(path)
    expected = {number: predictor(images[:number]).probabilities for number in range(1, 9)}
    before, end = shared_state(), None if seconds is None else time.monotonic() + seconds

    def ask(thread):
        right = wrong = 0
        while time.monotonic() < end if end else right + wrong < calls // 8:
            number = (thread + right + wrong) % 8 + 1
            own = Predictor(path) if (right + wrong) % 20 == 0 else predictor
            same = torch.equal(own(images[:number]).probabilities, expected[number])
            right, wrong = right + same, wrong + (not same)
        return right, wrong

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    return sum(right for right, _ in found), sum(wrong for _, wrong in found), shared_state() == before
