"""What several test files share: small pictures on disk, and few threads."""

import atexit
import base64
import html
import json
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
from concurrent.futures import Future
from functools import partial

import hypothesis
import matplotlib.font_manager  # noqa: F401  it keeps a list of fonts in the real cache
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from mixmo import checkpoints
from mixmo.batch_mixing import BatchMixer
from mixmo.cli.main import main
from mixmo.config.data_settings import DataSettings
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.data.datasets import NamedDataset
from mixmo.data.module import DataModule
from mixmo.deploy.export import FORMATS, export
from mixmo.deploy.hub import save_pretrained
from mixmo.evaluation import predictions
from mixmo.evaluation.inference import TrainedRun
from mixmo.network import MixMo
from mixmo.runs import RunFolder
from mixmo.training.fit import fit

torch.set_num_threads(1)
hypothesis.settings.register_profile("mixmo", deadline=None)  # a busy machine takes longer than any
hypothesis.settings.load_profile("mixmo")
if "HF_DATASETS_CACHE" not in os.environ:  # which the datasets library reads once
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


class Stopping(Callback):
    """Stops training before an epoch (from 0) with a dedicated error."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        """Stop if it is time."""
        if trainer.current_epoch == self.epoch:
            raise ZeroDivisionError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A temporary user cache, so that tests neither touch the real one nor share results."""
    folder = tmp_path_factory.getbasetemp() / f"cache-{uuid.uuid4().hex}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(os, "fsync", lambda _: None)  # which is slow, and nothing here has to outlive the power
    return folder


def open_data(settings, seed=0, check=True):
    """Open a dataset with everything that training needs."""
    return DataModule(settings, seed, check).require()


def open_source(name, split, **settings):
    """Open a split of a dataset by name."""
    return NamedDataset(name, DataSettings(**settings)).open(split)


def write_images(folder, classes=("cat", "dog", "emu"), count=8, size=8, seed=0, suffix="png"):
    """Write ``count`` random pictures for each class."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03}.{suffix}")


def write_splits(folder, train=8, test=4, **options):
    """Write random training and test pictures of each class; return the folder."""
    write_images(folder / "train", count=train, **options)
    write_images(folder / "test", count=test, seed=1, **options)
    return folder


def plan_of(folder, *words, recipe="digits-cut"):
    """Return the plan of a run on a folder's pictures without augmentation, a quarter of them for validation."""
    own = [f"--data.name=folder:{folder}", "--data.batch_size=8", "--data.padding=1", "--data.channels=3"]
    return make_plan(load_recipe(recipe), [*own, "--data.image_size=null", "--data.validation=0.25", *words])


def write_tree(folder, *paths):
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
    """A folder of pictures that several runs share without changing it."""
    return write_splits(tmp_path_factory.mktemp("pictures"))


class InThisProcess:
    """Replaces a process pool: calls immediately, pickling arguments and results as a pool would."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, *call):
        """Return the future of a completed call."""
        future = Future()
        function, *given = pickle.loads(pickle.dumps(call))
        try:
            future.set_result(pickle.loads(pickle.dumps(function(*given))))
        except Exception as error:
            future.set_exception(pickle.loads(pickle.dumps(error)))
        return future


@pytest.fixture
def run_here(tmp_path, monkeypatch, capsys):
    """Runs a program in this process, to save imports, in the test's folder; returns its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", InThisProcess)

    def called(file, *words):
        monkeypatch.setattr(sys, "argv", [str(file), *map(str, words)])
        runpy.run_path(str(file), run_name="__main__")
        return capsys.readouterr().out

    return called


@pytest.fixture
def few_masks(monkeypatch):
    """Limits previews to two kinds of masks, since all take seconds."""
    monkeypatch.setattr("mixmo.reporting.preview.KINDS", ["cut", "voronoi"])


@pytest.fixture
def traced(monkeypatch):
    """Makes ``torch.compile`` trace graphs and run them eagerly, since code generation takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


class Plain(nn.Module):
    """A user's own classifier."""

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
        """Record for each batch whether any mask varies over positions or channels."""
        flat = masks.flatten(2)
        self.shaped.append(bool((flat.amax(2) > flat.amin(2)).any()))


@pytest.fixture
def observed(monkeypatch):
    """Records the masks of every training batch, and the dtype of computations."""
    seen = Observed()
    mix, forward = BatchMixer.mix, MixMo.forward

    def mix_and_note(self, *arguments, **options):
        mixed = mix(self, *arguments, **options)
        if torch.is_grad_enabled():  # not those that batch-norm statistics are estimated from
            seen.masks(mixed.masks)
        return mixed

    def passed(self, *arguments):
        if self.training:
            seen.types.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return forward(self, *arguments)

    monkeypatch.setattr(BatchMixer, "mix", mix_and_note)
    monkeypatch.setattr(MixMo, "forward", passed)
    return seen


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Two runs on the same pictures, with two members and with one, and a dataset of another image size."""
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
def exported(gone, tmp_path_factory):
    """The network of ``gone`` in every export format."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder, run = tmp_path_factory.mktemp("exported"), TrainedRun(RunFolder(gone))
    umask = os.umask(0o027)
    try:
        found = {form: export(run, form, folder / name).path for form, name in FORMATS.items()}
        return found | {"shared": save_pretrained(gone, folder / "shared")}
    finally:
        os.umask(umask)


@pytest.fixture(scope="session")
def new_images(tmp_path_factory):
    """Twelve images of 14×14 to predict."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, classes=("new",), count=12, size=14, seed=5)
    return folder / "new"


FRAME = '<iframe style="border: 0; width: {width}px; height: 30000px" srcdoc="{page}"></iframe>'
PROBE = """<!doctype html>
<meta charset="utf-8"><meta name="color-scheme" content="light dark">
{frames}
<pre id="probe"></pre>
<script>
const measured = (frame) => {{
  const inside = frame.contentWindow, page = inside.document;
  const all = (selector) => [...page.querySelectorAll(selector)];
  const wide = () => page.documentElement.scrollWidth;
  const closed = wide();
  all("details").forEach((each) => {{ each.open = true; }});
  const ids = all("[id]").map((each) => each.id);
  return {{
    inner: inside.innerWidth, closed: closed, opened: wide(), text: page.body.innerText,
    outside: all("body *").filter((each) => each.getBoundingClientRect().right > inside.innerWidth + 1
      && !each.closest(".scroll > *, pre, svg *")).map((each) => each.outerHTML.slice(0, 100)),
    unnamed: all("img:not([alt]), img[alt=''], svg:not([role=img][aria-label])").length,
    repeated: ids.filter((id, place) => ids.indexOf(id) !== place),
    background: inside.getComputedStyle(page.body).backgroundColor,
  }};
}};
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(measured);
  document.querySelector("#probe").textContent = btoa(unescape(encodeURIComponent(JSON.stringify(found))));
}});
</script>
"""
"""Measures a page in frames of any widths (windows are never narrower than 500 pixels)."""


@pytest.fixture
def computed(monkeypatch):
    """The datasets for which a network predicted."""
    honest, asked = predictions._compute, []

    def counted(run, dataset, *rest):
        asked.append(dataset)
        return honest(run, dataset, *rest)

    monkeypatch.setattr(predictions, "_compute", counted)
    return asked


@pytest.fixture
def chromium(tmp_path):
    """Opens a page in headless Chromium; returns measurements at each width and the browser's log."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")

    def opened(page, *widths, dark=False):
        probe, content = tmp_path / "probe.html", html.escape(page.read_text())
        probe.write_text(PROBE.format(frames="".join(FRAME.format(width=width, page=content) for width in widths)))
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        words += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--dump-dom"]
        words += ["--force-dark-mode"] if dark else []
        words += ["--window-size=1400,900", f"--user-data-dir={tmp_path}/profile", f"file://{probe}"]
        done = subprocess.run([browser, *words], capture_output=True, text=True, timeout=120)
        line = re.findall(r'<pre id="probe">(.*?)</pre>', done.stdout)[-1]
        return json.loads(base64.b64decode(line)), done.stderr

    return opened


def copy_run(run, folder, to):
    """Copy a run as training left it, and its pictures to ``to / "data"``."""
    shutil.copytree(folder / "data", to / "data")
    evaluated = shutil.ignore_patterns("predictions", "calibration-*", "test.json", "*.html")
    shutil.copytree(run.path, to / run.path.name, ignore=evaluated)
    copy = RunFolder(to / run.path.name)
    copy.config_file.write_text(copy.config_file.read_text().replace(f"{folder}/data", f"{to}/data"))
    return copy


def describe_otherwise(run, **model):
    """Make the header of a run's last checkpoint describe a different network."""
    content = checkpoints.load(run.checkpoint_file())
    checkpoints.save(run.checkpoint_file(), content | {"header": content["header"] | model})


@pytest.fixture(scope="session")
def another_seed(trained):
    """The run of two members with another seed."""
    folder, two, _ = trained
    run = RunFolder(folder / "another")
    fit(make_plan(two.config() | {"seed": 1}), run)
    return run


@pytest.fixture(scope="module")
def digits():
    """400 digits to train on, 200 to test on: images (N, 8, 8) uint8 and labels."""
    found = load_digits()
    pixels = (found.images * (255 / 16)).round().astype(np.uint8)
    train, test = train_test_split(np.arange(600), train_size=400, stratify=found.target[:600], random_state=0)
    return {name: (pixels[part], found.target[part]) for name, part in {"train": train, "test": test}.items()}
