"""``mixmo.compare``: accepted inputs, and the same results as on the command's page."""

import csv
import math
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import Dataset

import mixmo
from mixmo.cli.main import main
from mixmo.errors import InputError, MissingError
from mixmo.metrics.catalogue import METRICS

FAST = {"batch_size": 16, "lr": 0.1, "epochs": 1, "progress": False, "workers": 0}


class Shifted(Dataset):
    """Float images whose brightness depends on the class, with noise in training."""

    def __init__(self, count, noise):
        self.count, self.noise = count, noise

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        image = torch.full((1, 8, 8), index % 3 - 1.0)
        return image + (self.noise * torch.randn(1, 8, 8) if self.noise else 0), index % 3


class Tiny(nn.Module):
    """A user's own module."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, images):
        return self.last(self.first(images).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Two runs on a Dataset with its own transforms: with a timm name, and with a module."""
    folder, data = tmp_path_factory.mktemp("own"), {"val": Shifted(30, 0), "test": Shifted(60, 0)}
    net = mixmo.MixMo(Tiny(), num_members=3, stem="first", head="last")
    first = mixmo.fit("wide_resnet10_1", Shifted(60, 0.1), **data, out=folder / "named", **FAST)
    return first, mixmo.fit(net, Shifted(60, 0.1), **data, out=folder / "module", **FAST)


def test_a_programs_own_data_and_module_are_compared(own, tmp_path):
    named, module = own
    found = mixmo.compare(named, {"the module": module, "both": [named, module]}, out=tmp_path / "out")
    assert found.names == ["named", "the module", "both"] == [row["group"] for row in found.table]
    for run, row in zip(own, found.table, strict=False):
        assert {key: row[key] for key in ("accuracy", "nll")} == pytest.approx(
            {key: run.test()[key] for key in ("accuracy", "nll")}
        )
    both = mixmo.evaluate(torch.cat([run.network.cpu().members(torch.stack([image for image, _ in Shifted(60, 0)]))
                                     for run in own], 1).detach(), torch.arange(60) % 3)  # fmt: skip
    assert found.table[2]["nll"] == pytest.approx(both["nll"], rel=1e-4)
    assert found.table[2]["macs"] == found.table[0]["macs"] + found.table[1]["macs"]
    page = found.page.read_text()
    assert "<h2>Images</h2>" in page and "the module" in page
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "comparison.html", "comparison.csv", "comparison.md",
    }  # fmt: skip
    with pytest.raises(MissingError, match=r"mixmo.Run\(…\).test"):
        mixmo.compare(mixmo.Run(named.path), refresh=True)


def test_it_is_what_the_command_writes(trained, tmp_path, capsys):
    _, two, one = trained
    words = [f"single={one.path}", str(two.path), f"{one.path}+{two.path}"]
    found = mixmo.compare(*words, out=tmp_path / "called")
    assert main(["compare", *words, "--out", str(tmp_path / "typed")]) == 0
    printed = capsys.readouterr().out
    tables = []
    for way in ("called", "typed"):
        with (tmp_path / way / "comparison.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    for called, typed, row in zip(*tables, found.table, strict=True):
        assert list(called) == list(typed) == list(row)
        for key in ("group", "run", "accuracy", "nll", "macs", "images"):
            assert called[key] == typed[key] == str(row[key])
    gain, low, high = found.differences["two"]["accuracy"]
    assert gain == pytest.approx(found.table[1]["accuracy"] - found.table[0]["accuracy"]) and low < gain < high
    assert found.sentence.startswith("single classifies") and found.sentence in str(found)
    assert found.tables[0].title.split(",")[0] in printed
    interval = METRICS["accuracy"].interval(low, high, sign=True)
    assert interval in printed and max(map(len, printed.splitlines()[:-1])) <= 100  # the last line is a path
    assert mixmo.compare(*words, names=["a", "b", "c"]).names == ["a", "b", "c"]


def test_runs_paths_seeds_and_files_are_taken(trained, tmp_path):
    _, two, one = trained
    for seed in (0, 1):
        shutil.copytree(one.path, tmp_path / "seeds" / str(seed))
        config = tmp_path / "seeds" / str(seed) / "config.yaml"
        config.write_text(config.read_text().replace("seed: 0", f"seed: {seed}"))
    targets = np.arange(3).repeat(4)
    np.savez(tmp_path / "theirs.npz", logits=np.eye(3)[targets], targets=targets)
    given = [mixmo.Run(two.path), tmp_path / "seeds", str(tmp_path / "theirs.npz"), [one.path, mixmo.Run(two.path)]]
    found = mixmo.compare(*given)
    assert found.names == ["two", "seeds", "theirs.npz", "one + two"] and found.page is None
    assert [row["group"] for row in found.table] == ["two", "seeds", "seeds", "theirs.npz", "one + two"]
    assert math.isnan(found.table[3]["macs"]) and found.table[3]["accuracy"] == 1
    assert len({tuple(row) for row in found.table}) == 1
    some = found.only("theirs.npz", "two")
    assert some.names == ["theirs.npz", "two"] and some.sentence.startswith("theirs.npz classifies")
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(some.show("accuracy", "macs", title="Two"))
    assert "theirs.npz" in (text := console.export_text()) and "MACs" in text and "NLL" not in text


def test_a_runs_own_checkpoint_holds(trained):
    _, two, _ = trained
    with pytest.raises(InputError, match="is named twice"):
        mixmo.compare(two.path, mixmo.Run(two.path))
    found = mixmo.compare({"last": mixmo.Run(two.path), "best": mixmo.Run(two.path, checkpoint="best")})
    asked = mixmo.compare(mixmo.Run(two.path), checkpoint="best").table[0]
    assert [row["nll"] for row in found.table] == [mixmo.Run(two.path).test()["nll"], asked["nll"]]
    assert asked["nll"] == pytest.approx(mixmo.Run(two.path, checkpoint="best").test()["nll"])


@pytest.mark.parametrize(
    ("networks", "names", "message"),
    [
        ([], (), "there is nothing to compare"),
        ([{}], (), "there is nothing to compare"),
        ([7], (), "int cannot be compared; give a mixmo.Run"),
        ([["a", None]], (), "NoneType cannot be compared|there is no run folder a"),
        ([[]], (), "an ensemble has no runs"),
        (["a", "b"], ["one"], r"names is \['one'\]; give one name for each of the 2 networks"),
        (["a", "b"], "ab", "names is 'ab'"),
        (["nowhere"], (), "there is no run folder nowhere"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(networks, names, message):
    with pytest.raises(InputError, match=message):
        mixmo.compare(*networks, names=names)


def test_missing_intervals_are_explained(tmp_path):
    targets = np.arange(2).repeat(40)
    for name, wrong in (("few", 3), ("many", 30)):
        logits = 4 * np.eye(2)[np.where(np.arange(80) < wrong, 1 - targets, targets)]
        np.savez(tmp_path / f"{name}.npz", logits=logits, targets=targets)
    for name in ("few", "many"):
        text = str(mixmo.compare(tmp_path / f"{name}.npz"))
        assert ("fewer than 20 mistakes have no intervals of NLL and Brier score" in text) == (name == "few")


def test_files_with_other_class_names_are_not_compared(tmp_path):
    targets = np.arange(2).repeat(4)
    for name, classes in (("ab", ["a", "b"]), ("ba", ["b", "a"]), ("unnamed", None)):
        more = {} if classes is None else {"classes": classes}
        np.savez(tmp_path / f"{name}.npz", logits=4 * np.eye(2)[targets], targets=targets, **more)
    with pytest.raises(InputError, match="were tested on different images or classes"):
        mixmo.compare(tmp_path / "ab.npz", tmp_path / "ba.npz")
    assert mixmo.compare(tmp_path / "ab.npz", tmp_path / "unnamed.npz").images == 8
