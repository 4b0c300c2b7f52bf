"""Parity with the paper's reference implementation (tests/golden/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mixmo
from mixmo.deploy.reference import _translate, network_from_reference
from mixmo.pixel_mixing import keep_majority, visible_share

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as content:
        arrays = {key: content[key] for key in content.files}
    meta = json.loads(str(arrays.pop("meta"))) if "meta" in arrays else {}
    return meta, {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}


def weights(arrays, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in arrays.items() if name.startswith(prefix)}


def weights_by_rule(meta):
    """Weights of golden files that contain none: standard normal draws in the order of names."""
    rng, state = np.random.default_rng(meta["seed"]), {}
    for name, shape in sorted(meta["shapes"].items()):
        if name.endswith("num_batches_tracked"):
            continue
        z = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("running_var"):
            z = np.abs(z) * 0.2 + 0.5
        elif z.ndim == 1:
            z = z * 0.1 + float("bn" in name and name.endswith("weight"))
        else:
            z = z * np.sqrt(2 / np.prod(shape[1:]))
        state[name] = torch.from_numpy(z.astype(np.float32))
    return state | {name: torch.tensor(0) for name in meta["shapes"] if name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", ["wrn10-1_m2", "wrn16-1_m2_c100"])
def test_evaluation_matches_the_reference(name):
    _, golden = load(name)
    net = network_from_reference(weights(golden, "before/"))
    with torch.no_grad():
        mixed = net(golden["inputs"], golden["masks"])
        members = net.members(golden["inputs"][:, 0])
    torch.testing.assert_close(mixed, golden["eval_mixed_logits"], **TOLERANCE)
    torch.testing.assert_close(members, golden["inference_member_logits"], **TOLERANCE)
    torch.testing.assert_close(net(golden["inputs"][:, 0].float()), golden["inference_logits"], **TOLERANCE)
    torch.testing.assert_close(mixmo.fuse(net)(golden["inputs"][:, 0]), golden["inference_logits"], **TOLERANCE)


@pytest.mark.parametrize("name", ["wrn10-1_m2", "wrn16-1_m2_c100"])
def test_training_step_matches_the_reference(name):
    meta, golden = load(name)
    net = network_from_reference(weights(golden, "before/")).train()
    loss_weights = mixmo.loss_weights(golden["ratios"], root=meta["root"])
    torch.testing.assert_close(loss_weights, golden["weights"], **TOLERANCE)
    loss = mixmo.mixed_cross_entropy(net(golden["inputs"], golden["masks"]), golden["targets"], loss_weights)
    assert loss.item() == pytest.approx(golden["loss_cross_entropy"].item(), rel=1e-5)
    penalty = meta["l2_reg"] * sum(parameter.double().square().sum() for parameter in net.parameters())
    assert penalty.item() == pytest.approx(golden["loss_l2"].item(), rel=1e-5)

    from mixmo.config.settings import OptimizerSettings
    from mixmo.training.optimizers import build_optimizer  # what training uses: decay 2 * l2_reg on all parameters

    own = OptimizerSettings(weight_decay=2 * meta["l2_reg"], momentum=meta["momentum"])
    optimizer = build_optimizer(net, own, lr=meta["lr"])
    loss.backward()
    optimizer.step()
    after = {_translate(key): tensor for key, tensor in weights(golden, "after/").items()}
    state = net.state_dict()
    assert after.keys() == state.keys()
    for key, tensor in after.items():
        torch.testing.assert_close(state[key], tensor, **TOLERANCE, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["preact18-1_m2", "wrn10-1_m1"])
def test_weights_by_rule_match_the_reference(name):
    meta, golden = load(name)
    net = network_from_reference(weights_by_rule(meta))
    assert net.num_members == meta["M"]
    inputs = golden["inputs"].float()
    with torch.no_grad():
        members = net.members(inputs[:, 0])
        if "masks" in golden:  # without a last batch norm logits are in the tens: 1e-5 of their scale
            scale = golden["eval_mixed_logits"].abs().max()
            mixed = net(inputs, golden["masks"])
            torch.testing.assert_close(mixed / scale, golden["eval_mixed_logits"] / scale, **TOLERANCE)
            torch.testing.assert_close(members / scale, golden["inference_member_logits"] / scale, **TOLERANCE)
        else:
            torch.testing.assert_close(net(golden["inputs"][:, 0].float()), golden["inference_logits"], **TOLERANCE)


def test_checkpoint_is_read_with_sizes_inferred():
    _, golden = load("wrn10-1_m2")
    net = mixmo.load_reference_checkpoint(GOLDEN / "wrn10-1_m2.ckpt")
    assert (net.num_members, net.num_classes, net.in_chans, net.training) == (2, 10, 3, False)
    torch.testing.assert_close(net(golden["inputs"][:, 0]), golden["inference_logits"], **TOLERANCE)


def test_truncated_and_foreign_checkpoints_are_refused(tmp_path):
    truncated = tmp_path / "truncated.ckpt"
    truncated.write_bytes((GOLDEN / "wrn10-1_m2.ckpt").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"is damaged, or was not written by torch\.save"):
        mixmo.load_reference_checkpoint(truncated)
    torch.save({"weights": 1}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="classifier_state_dict"):
        mixmo.load_reference_checkpoint(tmp_path / "foreign.ckpt")
    torch.save({"classifier_state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="holds no network"):
        mixmo.load_reference_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        mixmo.load_reference_checkpoint(tmp_path / "nowhere.ckpt")


def test_visible_share_matches_the_reference():
    _, golden = load("visible_share")
    for i in range(64):
        keep = golden[f"final_pixel_mask_{i}"][None, None, None]
        mask = golden["member_mask"][i][None, None, None]
        mask = mask if golden["swap"][i] else torch.ones_like(mask)  # a single network sees all of its input
        share = visible_share(keep, mask).item()
        assert share == pytest.approx(golden["share_indexed"][i].item(), abs=5e-4)
        if golden["swap"][i]:
            # The recorded mask is the one after the swap: swapping the other way round gives it back.
            torch.testing.assert_close(keep_majority(1 - keep, mask), keep if share > 0.5 else 1 - keep)
