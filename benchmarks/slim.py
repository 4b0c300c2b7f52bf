"""A training state small enough to be handed from one short-lived machine to the next.

Weights of two and more axes are rounded to bfloat16 and split into a plane of exponents, which compresses to less
than half, and a plane of signs and mantissas, which does not compress. Everything else (batch norms, biases, buffers)
is kept exactly. Momentum, as large as the weights again, is optional. The whole is cut into parts.

What the rounding loses is at most 1 / 256 of each weight; ``gpu.py`` measures what that does to the test figures.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

PART_BYTES = 15_000_000


def save(folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], part_bytes: int = PART_BYTES) -> int:
    """Write the parts and, last, the manifest that makes them valid; return the bytes written.

    Args:
        folder: Made if it is missing; an older state in it is replaced, and stays valid until the manifest is.
        tensors: Anything of a ``state_dict``, on any device.
        about: Plain values kept beside them: step, seed, curve, ….
        part_bytes: The largest part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored: dict[str, Tensor] = {}
    shapes = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point() and tensor.dim() > 1:
            shapes[name] = list(tensor.shape)
            exponents, rest = _planes(tensor)
            stored[f"exponents/{name}"] = torch.frombuffer(bytearray(zlib.compress(exponents, 6)), dtype=torch.uint8)
            stored[f"rest/{name}"] = torch.from_numpy(rest)
        else:
            stored[f"exact/{name}"] = tensor.contiguous()
    content = safetensors.torch.save(stored)
    parts = []
    for number, start in enumerate(range(0, len(content), part_bytes)):
        part = content[start : start + part_bytes]
        digest = hashlib.sha256(part).hexdigest()
        name = f"state-{digest[:8]}-{number:02}.part"  # never the name of another content
        (folder / name).write_bytes(part)
        parts.append({"name": name, "sha256": digest})
    manifest = {"about": dict(about), "shapes": shapes, "parts": parts}
    partial = folder / "state.json.partial"
    partial.write_text(json.dumps(manifest), encoding="utf-8")
    os.replace(partial, folder / "state.json")
    for old in set(folder.glob("state-*.part")) - {folder / part["name"] for part in parts}:
        old.unlink()
    return len(content)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, in float32 where they were rounded, and what was kept beside them.

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
    tensors = {key.removeprefix("exact/"): value for key, value in stored.items() if key.startswith("exact/")}
    for name, shape in manifest["shapes"].items():
        exponents = zlib.decompress(stored[f"exponents/{name}"].numpy().tobytes())
        tensors[name] = _joined(exponents, stored[f"rest/{name}"].numpy()).view(shape)
    return tensors, manifest["about"]


def _planes(tensor: Tensor) -> tuple[bytes, np.ndarray]:
    """Return the exponents, and the signs and mantissas, of a tensor rounded to bfloat16: a byte each."""
    bits = tensor.bfloat16().contiguous().view(torch.int16).numpy().view(np.uint16).reshape(-1)
    exponents = ((bits >> 7) & 0xFF).astype(np.uint8)
    return exponents.tobytes(), ((bits >> 8) & 0x80 | bits & 0x7F).astype(np.uint8)


def _joined(exponents: bytes, rest: np.ndarray) -> Tensor:
    high, low = np.frombuffer(exponents, np.uint8).astype(np.uint16), rest.astype(np.uint16)
    bits = (low & 0x80) << 8 | high << 7 | low & 0x7F
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float()
