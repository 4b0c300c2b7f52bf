"""Backbones cut in two, to mix behind a later module."""

from __future__ import annotations

from torch import Tensor, fx, nn

from mixmo.errors import InputError, one_of, reason


class SplitBackbone(nn.Module):
    """A backbone in two parts: ``stem`` maps images to features, which are all that passes to ``core``, to logits."""

    def __init__(self, stem: nn.Module, core: nn.Module) -> None:
        super().__init__()
        self.stem, self.core = stem, core

    def forward(self, x: Tensor) -> Tensor:
        """Map what the stem takes to logits."""
        logits: Tensor = self.core(self.stem(x))
        return logits


def split_at(backbone: nn.Module, name: str) -> SplitBackbone:
    """Cut a backbone behind the module ``name``, such as the first stage; the result shares its modules.

    Raises:
        InputError: if there is no such module, it is not called exactly once, the backbone's own code cannot be
            followed (torch.fx) or distinguishes training from evaluation, or the cut passes more than the output.

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
                    f"{kind} cannot be cut at {name!r}: what follows also needs {node.name!r}, which comes before it; "
                    "take a module between stages."
                )
            copied[node] = second.node_copy(node)
        return copied[node]

    for node in after:
        copied[node] = second.node_copy(node, in_second)
    return SplitBackbone(fx.GraphModule(backbone, first, kind), fx.GraphModule(backbone, second, kind))


def _trace_path(backbone: nn.Module, name: str, kind: str) -> tuple[list[fx.Node], int]:
    """Return the steps of a backbone's forward, and which of them is the module to cut behind."""
    one_of(name, [known for known, _ in backbone.named_modules() if known], f"module to mix at in {kind}")
    try:
        nodes = list(_Tracer(name).trace(backbone).nodes)
    except Exception as error:  # the backbone's own code may raise anything for proxies
        raise InputError(f"{kind} cannot be cut at {name!r}: its code cannot be followed ({reason(error)}).") from error
    calls = [index for index, node in enumerate(nodes) if node.op == "call_module" and node.target == name]
    if len(calls) != 1:
        raise InputError(f"{kind} cannot be cut at {name!r}: it calls that module {len(calls)} times, not once.")
    frozen = [node.name for node in nodes if "training" in node.kwargs]
    if frozen:
        raise InputError(
            f"{kind} cannot be cut at {name!r}: its code checks for training in {frozen[0]!r}, which would be "
            "frozen; leave out drop_rate."
        )
    return nodes, calls[0]


class _Tracer(fx.Tracer):
    """Follows only the modules that contain the cut; all others stay modules, with training and evaluation modes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.name.startswith(f"{module_qualified_name}.")
