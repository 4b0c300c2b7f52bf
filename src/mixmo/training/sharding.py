"""Fully sharded data parallelism (FSDP): devices hold a part of every weight each, and gather it when it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

LEAST = 50_000
"""Parameters of a block that is gathered by itself; smaller ones are gathered with what is around them."""


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Share a network's weights among devices, block by block (torch's ``fully_shard``); once shared it stays so.

    Blocks are the parts of every ``nn.Sequential``: of a ViT its layers, of a ResNet those of its stages. Few of them
    are whole on a device at a time, in the forward pass and in the backward pass.

    Args:
        net: In any memory format; FSDP takes the contiguous one only.
        mesh: The devices.
    """
    if isinstance(net, FSDPModule):
        return
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for module in reversed(list(net.modules())):  # what is inside comes first
        for block in module if isinstance(module, nn.Sequential) else ():
            if not isinstance(block, FSDPModule) and sum(each.numel() for each in block.parameters()) >= LEAST:
                fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    register_fsdp_forward_method(net, "members")  # gathers weights as a forward does


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for shared weights, with the checkpoints of a run that shares none: any run resumes them.

    Args:
        devices: How many share the weights.
    """

    def __init__(self, devices: int) -> None:
        super().__init__(devices, 1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether :meth:`load_optimizer_state_dict` is called."""
        return True

    def optimizer_state(self, optimizer: torch.optim.Optimizer | LightningOptimizer) -> dict[str, Any]:
        """Return an optimiser's state as one device would have it; every rank has to call this."""
        own = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        found: dict[str, Any] = own.state_dict()
        kept = {number: {key: _whole(value) for key, value in each.items()} for number, each in found["state"].items()}
        groups = [{**group, **({"fused": True} if "fused" in group else {})} for group in found["param_groups"]]
        return {**found, "state": kept, "param_groups": groups}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, on every rank."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take each rank's part of the weights."""
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.model, dict(checkpoint["state_dict"]), options=options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take each rank's part of what optimisers keep for each weight."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            kept = {
                number: {key: _part(value, weight) for key, value in state["state"].get(number, {}).items()}
                for number, weight in zip(numbers, weights, strict=True)
            }
            fused = [group.get("fused") for group in optimizer.param_groups]
            optimizer.load_state_dict({**state, "state": {number: own for number, own in kept.items() if own}})
            for group, own_way in zip(optimizer.param_groups, fused, strict=True):
                group |= {"fused": own_way} if "fused" in group else {}


def _whole(value: Any) -> Any:
    """Return all of a tensor of which each rank has a part, on the CPU; anything else as it is."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _part(value: Any, weight: Tensor) -> Any:
    """Return the rank's part of a tensor that is kept for a weight; counters and the like as they are."""
    if isinstance(value, Tensor) and isinstance(weight, DTensor) and value.shape == weight.shape:
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
    return value
