"""`uflow monitor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import app
from .common import say

if TYPE_CHECKING:
    from ..monitor import Observation

ALARM_EXIT_CODE = 4


@app.command(epilog="Example: uflow monitor results/predictions.jsonl")
def monitor(
    predictions: Annotated[Path, typer.Argument(help="the predictions.jsonl that uflow predict wrote, parts in order")],
    false_alarm: Annotated[float, typer.Option(help="chance that a line that has not changed ever raises one")] = 0.01,
    defective: Annotated[float, typer.Option(help="share of parts that may be defective without alarm")] = 0.1,
    alpha: Annotated[
        float | None, typer.Option(help="parts with a p-value up to this are flagged (default: as they were predicted)")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the random numbers that break ties")] = 0,
) -> None:
    """Has the line changed since the threshold was calibrated, and since when? Exit code 4 where it has."""
    from ..monitor import Monitor, monitor_lines, read_observations

    try:
        with predictions.open(encoding="utf-8") as lines:
            seen = read_observations(lines)
    except UnicodeDecodeError:
        raise ValueError(f"{predictions} is no text: give the predictions.jsonl that uflow predict wrote") from None
    asked = alpha if alpha is not None else seen[0].alpha if seen[0].alpha is not None else 0.05
    watch = Monitor(seen[0].calibration_images, asked, false_alarm=false_alarm, defective=defective, seed=seed)
    alarm = monitor_lines(seen, watch)
    if alarm is None:
        say(f"No change in {len(seen)} parts")
        return
    at, since = (_name(number, seen) for number in (alarm.part, alarm.since))
    say(f"The line has changed: {alarm.change} since about {since}; noticed at {at}, {len(seen)} parts in all")
    raise typer.Exit(ALARM_EXIT_CODE)


def _name(number: int, seen: list[Observation]) -> str:
    image = seen[number - 1].image
    return f"part {number}" + ("" if image is None else f" ({image})")
