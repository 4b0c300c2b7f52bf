"""Split a backbone in two, to mix after a later module than its stem."""

from __future__ import annotations

from torch import Tensor, fx, nn

from mixmo.errors import InputError, explain_errors, one_of
from mixmo.models.copying import copy_module


class SplitBackbone(nn.Module):
    """A backbone in two parts: ``stem`` maps images to features, and ``core`` these to logits."""

    def __init__(self, stem: nn.Module, core: nn.Module) -> None:
        super().__init__()
        self.stem, self.core = stem, core

    def forward(self, x: Tensor) -> Tensor:
        """Map the stem's input to logits."""
        logits: Tensor = self.core(self.stem(x))
        return logits


def split_at(backbone: nn.Module, name: str) -> SplitBackbone:
    """Split a backbone after the module ``name``, such as the first stage; the result shares its modules.

    Raises:
        InputError: if there is no such module, it is not called exactly once, torch.fx cannot trace the backbone, its
            code depends on training mode, or later modules need more than the module's output.

    Example:
        >>> import torch
        >>> from mixmo.network import create_backbone
        >>> backbone = create_backbone("wide_resnet10_1", num_classes=5).eval()
        >>> images = torch.randn(2, 3, 32, 32)
        >>> bool(torch.equal(split_at(backbone, "stages.0")(images), backbone(images)))
        True
    """
    kind = type(backbone).__name__
    nodes, place = _trace_path(backbone, name, kind)
    before, cut, after = nodes[:place], nodes[place], nodes[place + 1 :]

    first, second = fx.Graph(), fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in [*before, cut]:
        copied[node] = first.node_copy(node, copied.__getitem__)
    first.output(copied[cut])

    copied = {cut: second.placeholder("features")}

    def in_second(node: fx.Node) -> fx.Node:
        if node not in copied:
            if node.op != "get_attr":
                raise InputError(
                    f"{kind} cannot be split after {name!r}: later modules also need {node.name!r}, which comes "
                    "before; choose a module between stages."
                )
            copied[node] = second.node_copy(node)
        return copied[node]

    for node in after:
        copied[node] = second.node_copy(node, in_second)
    return SplitBackbone(fx.GraphModule(backbone, first, kind), fx.GraphModule(backbone, second, kind))


def _trace_path(backbone: nn.Module, name: str, kind: str) -> tuple[list[fx.Node], int]:
    """Return the nodes of a backbone's forward, and the index of the module's call."""
    one_of(name, [known for known, _ in backbone.named_modules() if known], f"module to mix at in {kind}")
    with explain_errors(f"{kind} cannot be split after {name!r}: tracing fails"):
        nodes = list(_Tracer(name).trace(backbone).nodes)
        modes = [str(_Tracer(name).trace(copy_module(backbone).train(mode))) for mode in (True, False)]
    calls = [index for index, node in enumerate(nodes) if node.op == "call_module" and node.target == name]
    if len(calls) != 1:
        raise InputError(f"{kind} cannot be split after {name!r}: it calls that module {len(calls)} times, not once.")
    if modes[0] != modes[1]:
        raise InputError(
            f"{kind} cannot be split after {name!r}: its code depends on training mode, which tracing would fix; leave "
            "out drop_rate, or move that code into a module."
        )
    return nodes, calls[0]


class _Tracer(fx.Tracer):
    """Traces into the modules that contain the one called ``name``; others stay modules, which keep their modes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.name.startswith(f"{module_qualified_name}.")
