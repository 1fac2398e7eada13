"""Draws docs/guide/tracking.png: what `on_epoch` gives of a training, as a tracker draws it.

    python docs/make_tracking.py [--output docs/guide/tracking.png]

Plates are made by benchmarks/pages.py. Some minutes on one core.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

import uflow

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from pages import make_image

PLATES, SIZE = 40, (160, 200)  # (height, width)


def main() -> None:
    """Learn, listen, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("guide") / "tracking.png")
    asked = parser.parse_args()
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def listen(flow: str, epoch: uflow.training.Epoch) -> None:
        for name in ("train_nll", "held_out_nll"):
            if epoch[name] is not None:  # type: ignore[literal-required]
                curves[f"{flow}.{name}"].append((epoch["epoch"], epoch[name]))  # type: ignore[literal-required]

    plates = [make_image("good", seed, SIZE)[0] for seed in range(PLATES)]
    uflow.Detector.fit(plates, image_size=SIZE, on_epoch=listen)
    mpl.rcParams["font.size"] = 9
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        if not name.startswith("fold"):
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
    axes.set(xlabel="epoch", ylabel="nats a dimension", title="What on_epoch gives: lower is better")
    axes.legend(frameon=False)
    figure.savefig(asked.output, dpi=120)
    print(f"Wrote {asked.output}")


if __name__ == "__main__":
    main()
