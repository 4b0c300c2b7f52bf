"""Sharing on the Hugging Face Hub, or as a folder in the same layout."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch

from mixmo.config.recipes import method_name
from mixmo.data.messages import list_some
from mixmo.deploy.export import copy_weights, export, is_known_to_timm
from mixmo.deploy.load import MEMBERS
from mixmo.deploy.spec import Spec, describe_run, write_description
from mixmo.errors import InputError, explain_errors
from mixmo.escaping import markdown, printable
from mixmo.evaluation.calibration import ClassCalibration
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.intervals import image_intervals
from mixmo.evaluation.predictions import load_cached_predictions
from mixmo.files import assemble, make_folder, write_bytes, write_text
from mixmo.fusing import can_fuse
from mixmo.loading import MODULE
from mixmo.metrics.catalogue import METRICS
from mixmo.reporting.headline import backbone_name
from mixmo.runs import RunFolder

CARD_METRICS = ("accuracy", "nll", "brier", "ece", "map", "f1_macro_tuned", "f1_micro_tuned", "bce_scaled",
                "temperature", "set_coverage_95", "set_size_95")  # fmt: skip
MOST_CLASSES = 50
FOLDER = "path/to/folder"


def save_pretrained(
    run: str | Path | TrainedRun, folder: str | Path, checkpoint: str | None = None, name: str | None = None
) -> Path:
    """Write the folder that :func:`push_to_hub` uploads: members' weights, fused network for timm, and model card.

    Args:
        run: The run, or its folder; if it has been evaluated by ``mixmo test``, the model card has its metrics.
        folder: A new or empty folder.
        checkpoint: ``last`` or ``best``; ``None`` is the run's own, by default ``last``.
        name: Name of the network on the Hub, ``user/name``, for the model card; ``None`` if it stays a folder.

    Returns:
        The folder.

    Raises:
        MissingError: if there is no such run.
        InputError: if the run is damaged, or the folder is in use or cannot be written.
    """
    trained = (run if isinstance(run, TrainedRun) else TrainedRun(RunFolder(run))).reopen(checkpoint)
    out = Path(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{printable(str(out))} exists already; choose another folder.")
    spec, net = describe_run(trained), trained.net
    make_folder(out.parent)
    with assemble(out) as made:
        fused = can_fuse(net) and trained.module is None
        if fused:
            export(trained, "timm", made)
        else:  # without a network for timm
            made.mkdir()
        write_bytes(made / MEMBERS, safetensors.torch.save(copy_weights(net)))
        write_description(made, spec)
        write_text(made / "README.md", _model_card(trained, spec, fused, name))
    return out


def push_to_hub(run: str | Path | TrainedRun, repository: str, private: bool = False, **options: Any) -> str:
    """Upload a run's network to the Hugging Face Hub.

    Args:
        run: The run, or its folder.
        repository: ``user/name``; created if it does not exist.
        private: Whether a new repository is private.
        **options: Further keywords of ``huggingface_hub.HfApi.upload_folder``, such as ``commit_message`` or ``token``.

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
        with explain_errors(f"{repository!r} cannot be uploaded"):
            api = HfApi(token=options.pop("token", None))
            api.create_repo(repository, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=made, **options))


def _model_card(run: TrainedRun, spec: Spec, fused: bool, name: str | None = None) -> str:
    """Return the model card in Markdown, with metadata for the Hub, where the network is ``name``."""
    has_config = run.folder.config_file.is_file()
    method = method_name(run.folder.trained_config(run.checkpoint)) if has_config else "a network"
    names = markdown(list_some(spec.classes, MOST_CLASSES))
    height, width = spec.input_size
    members = spec.num_members
    kind = (
        "A single network." if members == 1 else f"{members} subnetworks in one backbone, averaged at the cost of one."
    )
    calibration = (
        "Its confidence is not calibrated, for lack of validation images."
        if spec.calibration is None
        else f"Confidence is calibrated on {len(spec.calibration.correct)} validation images."
        if isinstance(spec.calibration, ClassCalibration)
        else "Temperature and thresholds were fitted on validation images."
    )
    several = ", any number of which may apply to an image" if spec.multi_label else ""
    unreliable = "probabilities are not" if spec.multi_label else "confidence is not"
    advice = "" if spec.multi_label else ":\ncheck the epistemic uncertainty, and use `mixmo test --ood`"
    return f"""---
pipeline_tag: image-classification
library_name: mixmo
tags: [image-classification, mixmo, timm]
---

# {method[:1].upper()}{method[1:]} on {backbone_name(spec.backbone)}

An image classifier of {len(spec.classes)} classes{several}: {names}. Input: {height}×{width} pixels. {kind}
Trained with mixmo (MixMo: [arXiv 2103.06132](https://arxiv.org/abs/2103.06132)).

## Evaluation

{_results_table(run)}

## Usage

{_usage(spec, fused, name)}
## Limits

The metrics apply to images like those of the test set. For others, the {unreliable} reliable{advice}. {calibration}
"""


def _results_table(run: TrainedRun) -> str:
    """Return the metrics of ``test.json`` as a table, with intervals from the cached predictions."""
    try:
        results: Mapping[str, Any] = run.folder.read_json("test.json")
        about = results["about"]
        count, dataset = int(about["images"]), markdown(str(about["dataset"]).rpartition("/")[2])
    except (OSError, ValueError, KeyError, TypeError):
        return "Not evaluated yet: `mixmo test` had not been run when this card was written."
    if about.get("digest") != run.digest:
        return "Not evaluated yet: `mixmo test` was run on another checkpoint."
    tta = about.get("tta", "none")
    predictions = load_cached_predictions(run, "test", about["precision"], tta)
    if predictions is not None and predictions.images != about.get("test_images"):
        predictions = None  # test.json is of images passed later
    intervals = {} if predictions is None else image_intervals(predictions)
    rows = ["| metric | value | 95 % interval |", "| --- | --- | --- |"]
    for key in CARD_METRICS:
        if isinstance(results.get(key), int | float):
            metric = METRICS[key]
            interval = metric.interval(*intervals[key]) if key in intervals else ""
            rows.append(f"| {metric.heading} | {metric.number(results[key])} | {interval} |")
    note = (
        f"{count} test images of {dataset}, {about['checkpoint']} checkpoint after {about['epochs']} epochs, one run"
        f"{'.' if tta == 'none' else f', test-time augmentation: {tta}.'}"
    )
    return "\n".join([*rows, "", note + " Intervals are over test images."])


def _usage(spec: Spec, fused: bool, name: str | None) -> str:
    """Return how to open the network with mixmo and, if possible, with timm alone."""
    outputs = "the labels above their thresholds" if spec.multi_label else "classes, confidence, uncertainty"
    load = f'from_pretrained("{name or FOLDER}")'
    predict = f'predictions = mixmo.Predictor("{FOLDER}")(["a.jpg"])  # a downloaded folder; returns {outputs}\n'
    timm = _timm_usage(fused, spec.backbone, name)
    if spec.backbone.startswith(MODULE):
        load = f'from_pretrained("{name or FOLDER}", model=net)  # net: a new {spec.backbone.removeprefix(MODULE)}'
        predict = timm = ""
    return f"""```python
import mixmo

net = mixmo.{load}
# net(images): the ensemble's logits (B, K); net.members(images): each member's (B, M, K)
{predict}```
{timm}"""


def _timm_usage(fused: bool, backbone: str, name: str | None) -> str:
    """Return how to open the network with timm alone."""
    if not fused:
        return "\nIts members are not fused into one plain network (`mixmo.fuse` says why).\n"
    if not is_known_to_timm(backbone.split(".")[0]):
        return "\nThe backbone is the paper's, which timm knows after `import mixmo`.\n"
    where = f"local-dir:{FOLDER}" if name is None else f"hf-hub:{name}"
    return f"""
Without mixmo, as a plain timm network (exactly the members' average):

```python
import timm

net = timm.create_model("{where}", pretrained=True)
```
"""
