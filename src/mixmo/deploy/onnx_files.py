"""ONNX files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixmo.deploy.spec import Spec
from mixmo.digests import DIGEST, SPEC, placeholder, write_digest
from mixmo.errors import InputError, reason

OPSET = 18
"""Version of ONNX's operators, the one that torch's exporter is written for."""


def write_onnx(file: Path, net: nn.Module, example: Tensor, spec: Spec, computes: str) -> None:
    """Write a network for any number of images, with its description, what it computes, and the digest of all of it.

    Args:
        file: The file.
        net: In evaluation mode.
        example: Images of the size it takes.
        spec: Its description, for the file's metadata.
        computes: What the file computes, as JSON.

    Raises:
        InputError: if a library is missing, or torch cannot write the network.
    """
    onnx = _import_onnx()
    outputs = len(found) if isinstance(found := net(example), tuple) else 1
    try:
        with _quiet():
            program = torch.onnx.export(
                net, (example,), dynamo=True, opset_version=OPSET, verbose=False,
                input_names=["images"], output_names=["answers", "members", "mutual_information"][:outputs],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )  # fmt: skip
        written = program.model_proto  # type: ignore[union-attr]
    except Exception as error:  # torch may raise anything for the network
        raise InputError(f"the network cannot be written as ONNX: {reason(error)}.") from error
    placed = placeholder()
    onnx.helper.set_model_props(written, {"options": computes, SPEC: spec.to_json(**{DIGEST: placed})})
    file.write_bytes(written.SerializeToString())
    write_digest(file, placed)


def _import_onnx() -> Any:
    try:
        onnx, *_ = (import_module(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    except ImportError as error:
        raise InputError(f"ONNX needs {error.name}; `pip install 'mixmo[onnx]'` installs it.") from error
    return onnx


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch and onnxruntime log for every export."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
