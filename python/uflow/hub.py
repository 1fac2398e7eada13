"""A detector to Hugging Face's hub and back, with a card of what the model knows of itself."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .conformal import supported_alpha
from .files import atomic_write
from .published_weights import describe_licence
from .threshold import CalibratedThreshold

if TYPE_CHECKING:
    from .detector import Detector

__all__ = ["CARD", "MODEL", "find_model", "model_card", "push_to_hub", "save_pretrained"]

MODEL, CARD = "model.uflow", "README.md"  # the files of a repository


def save_pretrained(detector: Detector, folder: Path, name: str) -> None:
    """Write the model file and its card into a folder, which is made where it is missing.

    Args:
        detector: what is written.
        folder: as the hub holds it.
        name: how the card calls the model, and how `from_pretrained` finds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    detector.save(folder / MODEL)
    with atomic_write(folder / CARD) as temporary:
        temporary.write_text(model_card(detector, name), encoding="utf-8")


def push_to_hub(detector: Detector, repo_id: str, private: bool, token: str | None, message: str) -> str:
    """Upload the model file and its card; gives the address of the commit. See `Detector.push_to_hub`."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="uflow-hub-") as folder:
        save_pretrained(detector, Path(folder), repo_id)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))


def find_model(name: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The model file of a folder, or of a repository of the hub, which is downloaded where it is not there yet.

    Raises:
        FileNotFoundError: a folder without a model file, or a repository that cannot be reached or does not exist.
    """
    if Path(name).is_dir():
        path = Path(name) / MODEL
        if not path.is_file():
            raise FileNotFoundError(f"{name} holds no {MODEL}: give a folder that Detector.save_pretrained wrote")
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(str(name), MODEL, revision=revision, token=token))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(f"{name} is no folder, and no model that the hub gives: {reason}") from None


def model_card(detector: Detector, name: str) -> str:
    """The card of a model, in Markdown: what it is, what it learnt from, what it promises, how to use it."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(library_name="uflow", tags=["anomaly-detection", "anomaly-segmentation", "uflow"])
    rows = "\n".join(f"| {key} | {value} |" for key, value in _facts(detector))
    return CARD_TEXT.format(data=data.to_yaml(), name=name, rows=rows, promise=_promise(detector))


CARD_TEXT = """---
{data}
---

# {name}

A [U-Flow](https://doi.org/10.1007/s10851-024-01193-y) anomaly detector. It has learnt what good parts of one kind look
like, and marks what is not like them. It knows nothing of other parts or cameras.

```python
import uflow

detector = uflow.Detector.from_pretrained("{name}")
result = detector.predict("part.png")
print(result.verdict, result.p_value, result.regions)
```

| | |
| --- | --- |
{rows}

{promise}

Nothing in the model file is run when it is loaded. The frozen backbone's weights are not in it: its SHA-256 says which
they are.
"""


def _facts(detector: Detector) -> Sequence[tuple[str, str]]:
    """What the model knows of itself."""
    backbone, record, predictor = detector.network.backbone, detector.record, detector.predictor
    height, width = backbone.image_size
    facts = [
        ("backbone", backbone.name),
        ("its weights", f"{backbone.weights_source}, SHA-256 {backbone.weights_sha256[:16]}"),
        ("licence of its weights", describe_licence(backbone.name, backbone.weights_source)),
        ("input", f"{height} x {width} pixels (height x width){', in tiles' if predictor.tile else ''}"),
        ("cells", f"of {', '.join(map(str, backbone.strides))} pixels"),
    ]
    count, _, digest = str(record.get("images", "")).partition(" ")
    learnt = f"{count} good images, SHA-256 of them {digest[:16]}" if count else "not recorded"
    facts.append(("learnt from", learnt))
    if record.keys() >= {"hold_out", "held_out"}:
        facts.append(("held out", f"{record['held_out']:.0%} of them, chosen by {record['hold_out']!r}"))
    if detector.history:
        facts.append(("training", _training(detector.history)))
    facts.append(("memory of good images", "none" if detector.network.memory is None else "yes"))
    return [*facts, *_calibration(detector)]


def _training(history: Sequence[Mapping[str, Any]]) -> str:
    seconds = sum(epoch["seconds"] for epoch in history)
    nll = [epoch["held_out_nll"] for epoch in history if epoch.get("held_out_nll") is not None]
    best = f", {min(nll):.3f} nats a dimension on held-out images" if nll else ""
    return f"{len(history)} epochs, {seconds:.0f} s{best}"


def _calibration(detector: Detector) -> list[tuple[str, str]]:
    threshold = detector.threshold
    if not isinstance(threshold, CalibratedThreshold):
        return [("alpha", "none: the paper's test, not calibrated")]
    facts = [("alpha", f"{threshold.alpha:g}")]
    if threshold.look_alpha is not None:
        facts.append(("alpha, to look at", f"{threshold.look_alpha:g}"))
    count = len(threshold.minima)
    facts.append(("calibrated on", f"{count} good images, which support alpha >= {supported_alpha(count):.3g}"))
    if threshold.added:
        facts.append(("added as good", f"{len(threshold.added)} flagged images"))
    return facts


def _promise(detector: Detector) -> str:
    threshold = detector.threshold
    if isinstance(threshold, CalibratedThreshold):
        kept = max(threshold.alpha, supported_alpha(len(threshold.minima)))
        text = (
            f"Of new good parts like those it was calibrated on, at most a share of {kept:.3g} is flagged. "
            "How many defects are found is not promised: measure it on your own."
        )
    else:
        text = "How often a good part is flagged is not promised: calibrate it on good images first."
    if detector.predictor.selected_on_test:
        text += "\n\n**Its epoch was chosen on the test set: figures measured there are not fair.**"
    return text
