"""A checkpoint small enough to be handed from one short-lived machine to the next.

Tensors of two and more axes are rounded to bfloat16 and split into a plane of exponents, which compresses to less
than half, and a plane of signs and mantissas, which does not compress. Everything else (batch norms, biases, counters)
is kept exactly. Momentum, as large as the weights again, is optional: without it, it starts from zero. The whole is
cut into parts.

What the rounding loses is at most 1 / 256 of each weight; ``gpu.py`` measures what that does to the test figures.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

PART_BYTES = 15_000_000
MOMENTUM = ("momentum_buffer", "exp_avg", "exp_avg_sq")


def save(
    folder: Path,
    checkpoint: Mapping[str, Any],
    about: Mapping[str, Any],
    momentum: bool = False,
    part_bytes: int = PART_BYTES,
) -> int:
    """Write the parts and, last, the manifest that makes them valid; return the bytes written.

    Args:
        folder: Made if it is missing; an older state in it is replaced, and stays valid until the manifest is.
        checkpoint: Nested dicts, lists and tuples of tensors and plain values, as ``torch.load`` gives them.
        about: Plain values kept beside it.
        momentum: Keep the optimiser's running means.
        part_bytes: The largest part.
    """
    stored: dict[str, Tensor] = {}
    tensors: dict[str, dict[str, Any]] = {}

    def take_out(path: str, tensor: Tensor) -> str:
        kind = "exact"
        if tensor.is_floating_point() and tensor.dim() > 1:
            kind = "rounded"
        if not momentum and path.rsplit("/", 1)[-1] in MOMENTUM:
            kind = "zero"
        tensors[path] = {"kind": kind, "shape": list(tensor.shape), "stride": list(tensor.stride())}
        if kind == "rounded":
            exponents, rest = _planes(tensor)
            stored[f"{path}/exponents"] = torch.frombuffer(bytearray(zlib.compress(exponents, 6)), dtype=torch.uint8)
            stored[f"{path}/rest"] = torch.from_numpy(rest)
        elif kind == "exact":
            stored[path] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)  # none share memory
        return f"tensor:{path}"

    buffer = io.BytesIO()
    torch.save(_replaced(checkpoint, Tensor, take_out), buffer)
    stored["plain"] = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    return _write(folder, safetensors.torch.save(stored), {"about": dict(about), "tensors": tensors}, part_bytes)


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the checkpoint, tensors in the memory layout they had, and what was kept beside it.

    Raises:
        FileNotFoundError: if there is no manifest or a part is missing.
        ValueError: if a part is damaged.
    """
    manifest = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    content = bytearray()
    for part in manifest["parts"]:
        piece = (folder / part["name"]).read_bytes()
        if hashlib.sha256(piece).hexdigest() != part["sha256"]:
            raise ValueError(f"{folder / part['name']} is damaged; take the state from an earlier machine.")
        content += piece
    stored = safetensors.torch.load(bytes(content))

    def put_back(_: str, marker: str) -> Any:
        path = marker.removeprefix("tensor:")
        if path == marker:
            return marker
        own = manifest["tensors"][path]
        if own["kind"] == "exact":
            return stored[path]
        tensor = torch.zeros(own["shape"])
        if own["kind"] == "rounded":
            exponents = zlib.decompress(stored[f"{path}/exponents"].numpy().tobytes())
            tensor = _joined(exponents, stored[f"{path}/rest"].numpy()).view(own["shape"])
        return torch.empty_strided(own["shape"], own["stride"]).copy_(tensor)  # fused optimisers need the layout

    plain = torch.load(io.BytesIO(stored["plain"].numpy().tobytes()), weights_only=True)
    return _replaced(plain, str, put_back), manifest["about"]


def _replaced(value: Any, kind: type, function: Callable[[str, Any], Any], path: str = "") -> Any:
    """Return nested containers in which each value of a type is what a function makes of its path and itself."""
    if isinstance(value, kind):
        return function(path, value)
    if isinstance(value, Mapping):
        return {key: _replaced(each, kind, function, f"{path}/{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replaced(each, kind, function, f"{path}/{index}") for index, each in enumerate(value))
    return value


def _write(folder: Path, content: bytes, manifest: dict[str, Any], part_bytes: int) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, start in enumerate(range(0, len(content), part_bytes)):
        part = content[start : start + part_bytes]
        digest = hashlib.sha256(part).hexdigest()
        name = f"state-{digest[:8]}-{number:02}.part"  # never the name of another content
        (folder / name).write_bytes(part)
        parts.append({"name": name, "sha256": digest})
    partial = folder / "state.json.partial"
    partial.write_text(json.dumps(manifest | {"parts": parts}), encoding="utf-8")
    os.replace(partial, folder / "state.json")
    for old in set(folder.glob("state-*.part")) - {folder / part["name"] for part in parts}:
        old.unlink()
    return len(content)


def _planes(tensor: Tensor) -> tuple[bytes, np.ndarray]:
    """Return the exponents, and the signs and mantissas, of a tensor rounded to bfloat16: a byte each."""
    bits = tensor.detach().cpu().bfloat16().contiguous().view(torch.int16).numpy().view(np.uint16).reshape(-1)
    exponents = ((bits >> 7) & 0xFF).astype(np.uint8)
    return exponents.tobytes(), ((bits >> 8) & 0x80 | bits & 0x7F).astype(np.uint8)


def _joined(exponents: bytes, rest: np.ndarray) -> Tensor:
    high, low = np.frombuffer(exponents, np.uint8).astype(np.uint16), rest.astype(np.uint16)
    bits = (low & 0x80) << 8 | high << 7 | low & 0x7F
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float()
