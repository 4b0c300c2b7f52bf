"""The model card of a shared network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixmo.config.recipes import method_name
from mixmo.deploy.export import is_known_to_timm
from mixmo.deploy.spec import Spec
from mixmo.escaping import markdown
from mixmo.evaluation.calibration import Calibration
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.intervals import image_intervals
from mixmo.evaluation.predictions import load_kept_predictions
from mixmo.metrics.catalogue import METRICS
from mixmo.reporting.headline import backbone_name

SHOWN = ("accuracy", "nll", "brier", "ece", "map", "f1_macro_tuned", "f1_micro_tuned", "bce_scaled", "temperature",
         "set_coverage_95", "set_size_95")  # fmt: skip
MOST_CLASSES = 50
FOLDER = "path/to/folder"


def model_card(run: TrainedRun, spec: Spec, fused: bool, name: str | None = None) -> str:
    """Return the card in Markdown, with the metadata that the Hub reads.

    Args:
        run: The run, for ``test.json`` and its saved predictions.
        spec: The network's description.
        fused: Whether the network was fused.
        name: Its name on the Hub, ``user/name``.
    """
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
