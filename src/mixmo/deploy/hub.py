"""Sharing on the Hugging Face Hub, or as a folder of the same form."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch

from mixmo.config.recipes import method_name
from mixmo.deploy.export import export, is_known_to_timm
from mixmo.deploy.load import MEMBERS
from mixmo.deploy.spec import Spec, describe_run, write_description
from mixmo.errors import InputError, reason
from mixmo.escaping import markdown, printable, timm_scheme
from mixmo.evaluation.calibration import Calibration
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.intervals import image_intervals
from mixmo.evaluation.predictions import load_kept_predictions
from mixmo.files import assemble, make_folder, write_bytes, write_text
from mixmo.fusing import can_fuse
from mixmo.metrics.catalogue import METRICS
from mixmo.reporting.headline import backbone_name
from mixmo.runs import RunFolder

SHOWN = ("accuracy", "nll", "brier", "ece", "map", "f1_macro_tuned", "f1_micro_tuned", "bce_scaled", "temperature",
         "set_coverage_95", "set_size_95")  # fmt: skip
MOST_CLASSES = 50
FOLDER = "path/to/folder"


def save_pretrained(run: str | Path, folder: str | Path, checkpoint: str = "last", name: str | None = None) -> Path:
    """Write what :func:`push_to_hub` uploads: the members' weights, the fused network for timm, and a model card.

    Args:
        run: The run's folder, evaluated by ``mixmo test``, for the figures of the model card.
        folder: A folder that does not exist yet, or is empty.
        checkpoint: ``last`` or ``best``.
        name: Its name in the model card, ``user/name`` on the Hub; ``None`` is the folder.

    Returns:
        The folder.

    Raises:
        MissingError: if there is no such run.
        InputError: if the run is damaged, or the folder is in use or cannot be written.
    """
    trained, out = TrainedRun(RunFolder(run), checkpoint), Path(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{printable(str(out))} exists already; choose another folder.")
    spec, net = describe_run(trained), trained.network
    make_folder(out.parent)
    with assemble(out) as made:
        fused = can_fuse(net)
        if fused:
            export(trained, "timm", made)
        else:  # its members still load
            made.mkdir()
        weights = {name: tensor.cpu().contiguous() for name, tensor in net.state_dict().items()}
        write_bytes(made / MEMBERS, safetensors.torch.save(weights))
        write_description(made, replace(spec, backbone=_without_path(spec.backbone)))
        write_text(made / "README.md", _model_card(trained, spec, fused, name))
    return out


def _without_path(backbone: str) -> str:
    """Return a backbone's name without the machine's folders: of a path only the last part."""
    if timm_scheme(backbone) == "hf-hub":
        return backbone
    kind, colon, path = backbone.rpartition(":")
    return f"{kind}{colon}{Path(path).name}"


def push_to_hub(run: str | Path, repository: str, private: bool = False, **options: Any) -> str:
    """Upload a run's network to the Hugging Face Hub.

    Args:
        run: The run's folder.
        repository: ``user/name``; made if it does not exist.
        private: Whether a new one is private.
        **options: More keywords of ``huggingface_hub.HfApi.upload_folder``, such as ``commit_message`` or ``token``.

    Returns:
        The address of the upload.

    Raises:
        MissingError: if there is no such run.
        InputError: if it is damaged, or the Hub refuses.

    Example:
        >>> push_to_hub("runs/nowhere", "user/photos", private=True)
        Traceback (most recent call last):
        mixmo.errors.MissingError: there is no run folder runs/nowhere...
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        made = save_pretrained(run, Path(folder) / "network", name=repository)
        try:
            api = HfApi(token=options.pop("token", None))
            api.create_repo(repository, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=made, **options))
        except Exception as error:  # the network and the Hub raise many kinds of errors
            raise InputError(f"{repository!r} cannot be uploaded: {reason(error)}.") from error


def _model_card(run: TrainedRun, spec: Spec, fused: bool, name: str | None = None) -> str:
    """Return the card in Markdown, with the metadata that the Hub reads; ``name`` is ``user/name`` there."""
    known = run.folder.config_file.is_file()
    method = method_name(run.folder.trained_config(run.checkpoint)) if known else "a network"
    names = ", ".join(markdown(name) for name in spec.classes[:MOST_CLASSES])
    more = f" and {len(spec.classes) - MOST_CLASSES} more" if len(spec.classes) > MOST_CLASSES else ""
    height, width = spec.input_size
    members = spec.num_members
    kind = (
        "A single network." if members == 1 else f"{members} subnetworks in one backbone, averaged at the cost of one."
    )
    calibration = (
        "It had no validation images, so its confidence is not calibrated."
        if spec.calibration is None
        else f"The calibration is based on {len(spec.calibration.correct)} validation images."
        if isinstance(spec.calibration, Calibration)
        else "Temperature and thresholds were chosen on validation images."
    )
    found = "the labels above their thresholds" if spec.multi_label else "classes, confidence, uncertainty"
    several = ", any number of which may apply to an image" if spec.multi_label else ""
    others = "probabilities say" if spec.multi_label else "confidence says"
    advice = "" if spec.multi_label else "; look at the\nepistemic uncertainty, and at `mixmo test --ood`"
    return f"""---
pipeline_tag: image-classification
library_name: mixmo
tags: [image-classification, mixmo, timm]
---

# {method[:1].upper()}{method[1:]} on {backbone_name(spec.backbone)}

An image classifier of {len(spec.classes)} classes{several}: {names}{more}. It sees {height}×{width} pixels. {kind}
Trained with mixmo (MixMo: [arXiv 2103.06132](https://arxiv.org/abs/2103.06132)).

## How good

{_figures(run)}

## How to use it

```python
import mixmo

net = mixmo.from_pretrained("{name or FOLDER}")
# net(images): the ensemble's logits (B, K); net.members(images): each member's (B, M, K)
predictions = mixmo.Predictor("{FOLDER}")(["a.jpg"])  # once downloaded: {found}
```
{_plainly(fused, spec.backbone, name)}
## Limits

The figures hold for images like those of the test set. For others, the {others} little{advice}. {calibration}
"""


def _figures(run: TrainedRun) -> str:
    """Return the figures of ``test.json`` as a table, with intervals from the saved predictions."""
    try:
        found: Mapping[str, Any] = run.folder.read_json("test.json")
        about = found["about"]
        count, dataset = int(about["images"]), markdown(str(about["dataset"]).rpartition("/")[2])
    except (OSError, ValueError, KeyError, TypeError):
        return "Not evaluated yet: `mixmo test` had not been run when this card was written."
    if about.get("digest") != run.digest:
        return "Not evaluated yet: `mixmo test` was run on another checkpoint than this one."
    tta = about.get("tta", "none")
    kept = load_kept_predictions(run, "test", about["precision"], tta)
    ranges = {} if kept is None else image_intervals(kept)
    rows = ["| metric | value | 95 % interval |", "| --- | --- | --- |"]
    for key in SHOWN:
        if isinstance(found.get(key), int | float):
            metric = METRICS[key]
            shown = metric.interval(*ranges[key]) if key in ranges else ""
            rows.append(f"| {metric.heading} | {metric.number(found[key])} | {shown} |")
    note = (
        f"{count} test images of {dataset}, {about['checkpoint']} checkpoint after {about['epochs']} epochs, one run"
        f"{'.' if tta == 'none' else f', test-time augmentation: {tta}.'}"
    )
    return "\n".join([*rows, "", note + " Intervals are over test images."])


def _plainly(fused: bool, backbone: str, name: str | None) -> str:
    """Return how timm opens the network without mixmo."""
    if not fused:
        return "\nIts members are not fused into one plain network (`mixmo.fuse` says why).\n"
    if not is_known_to_timm(backbone.split(".")[0]):
        return "\nThe backbone is the paper's, which timm knows after `import mixmo`.\n"
    where = f"local-dir:{FOLDER}" if name is None else f"hf-hub:{name}"
    return f"""
Without mixmo, as a plain network of timm's (the members' average, exactly):

```python
import timm

net = timm.create_model("{where}", pretrained=True)
```
"""
