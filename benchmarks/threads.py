"""What a thread costs that has computed before: a stream of images after a model was loaded in the thread that asks.

    python benchmarks/threads.py MODEL IMAGES [--rounds 5]

A stream runs the network in a thread of its own. `uflow.load` reads a model in a thread that ends with it, so that the
stream's is the only one that computes, see `processes.run_apart`; `detector.load` reads it in the thread that calls. In
turns, each in a process of its own: median of the rounds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

LOADERS = {"loaded by the caller's thread": "uflow.detector", "by uflow.load": "uflow"}
IMAGES = 40
CODE = """
import importlib, sys, time
load = importlib.import_module(sys.argv[1]).load
predictor = load(sys.argv[2], "cpu").predictor
images, batch_size = sys.argv[4:], int(sys.argv[3])
list(predictor.stream(images[:10], batch_size))
began = time.perf_counter()
list(predictor.stream(images, batch_size))
print((time.perf_counter() - began) / len(images))
"""


def seconds_each(module: str, model: Path, batch_size: int, images: list[str]) -> float:
    """Seconds an image of a stream, in a new process."""
    command = [sys.executable, "-c", CODE, module, str(model), str(batch_size), *images]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model file")
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    found = [str(path) for path in sorted(arguments.images.iterdir())]
    images = (found * IMAGES)[:IMAGES]
    print("| images at once | " + " | ".join(LOADERS) + " | ratio |\n| ---: | ---: | ---: | ---: |")
    for batch_size in (1, 8):
        times = [
            [seconds_each(module, arguments.model, batch_size, images) for module in LOADERS.values()]
            for _ in range(arguments.rounds)
        ]
        here, apart = np.median(times, axis=0)
        print(f"| {batch_size} | {here * 1e3:.1f} ms | {apart * 1e3:.1f} ms | {apart / here:.2f} |")


if __name__ == "__main__":
    main()
