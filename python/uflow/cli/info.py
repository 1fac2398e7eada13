"""`uflow info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .app import app
from .common import say
from .options import JsonOption


@app.command(epilog="Example: uflow info tile.uflow")
def info(
    model: Annotated[Path, typer.Argument(help="model file, or exported folder")],
    json: JsonOption = False,
) -> None:
    """What a model is: backbone and licence of its weights, sizes, images learnt from, alpha, calibration, SHA-256."""
    from json import dumps

    from ..deploy.describe import describe_model

    about = describe_model(model)
    if json:
        say(dumps(about))
        return
    lines = _lines(about)
    width = max(map(len, lines))
    say("\n".join(f"{title:{width}}  {text}" for title, text in lines.items()))


def _lines(about: dict[str, Any]) -> dict[str, str]:
    """Titles and texts, in the order of the table."""
    height, width = about["image_size"]
    images = "how many is not recorded" if about["images"] is None else f"{about['images']} images"
    how, share = about["hold_out"], about["held_out"]
    kept = "" if how is None else f", held out: {how} (asked for: {share:g} of them)"
    calibration = about["calibration"]
    kind = about["kind"] if about["format"] is None else f"{about['kind']}, {about['format']}"
    lines = {
        "model": f"{about['path']} ({kind}{', 8 bits' if about['int8'] else ''}, {about['bytes'] / 1e6:.1f} MB)",
        "backbone": about["backbone"],
        "weights": about["weights_source"] or "source not recorded",
        "licence of weights": about["weights_licence"],
        "input": f"{height} x {width} (height x width){', in tiles' if about['tile'] else ''}",
        "scales": ", ".join(f"1/{stride}" for stride in about["strides"]),
        "learnt from": images + kept,
        "alpha": "none: the paper's test, not calibrated" if about["alpha"] is None else f"{about['alpha']:g}",
    }
    if about["roi"] is not None:
        (height, width), share = about["roi"]["size"], about["roi"]["share"]
        lines["judged in"] = f"{share:.0%} of images of the shape of {height} x {width}: its region of interest"
    if about["gain"] != 1:
        lines["gain"] = f"{about['gain']:g}: pixel values are divided by it"
    if about["look_alpha"] is not None:
        lines["alpha"] += f", to look at: {about['look_alpha']:g}"
    if calibration is not None:
        images, alpha = calibration["images"], calibration["supported_alpha"]
        lines["calibrated on"] = f"{images} good images, which support alpha >= {alpha:.3g}"
        if calibration["added"]:
            names = [f"{image['name']} ({image['sha256'][:12]})" for image in calibration["added"]]
            lines["added as good"] = f"{len(names)} flagged images: {', '.join(names)}"
    if about["selected_on_test"]:
        lines["note"] = "its epoch was chosen on the test set: figures measured there are not fair"
    return {**lines, "SHA-256": about["sha256"]}
