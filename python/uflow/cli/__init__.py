"""The `uflow` command: arguments in, library calls, results printed. One file a group of commands."""

from .app import app, main

# Each adds its commands; the help lists them in this order.
# isort: off
from . import train
from . import predict
from . import evaluate
from . import calibrate
from . import add_good
from . import monitor
from . import serve
from . import export
from . import info
from . import weights
from . import benchmark
from . import demo
# isort: on

__all__ = [
    "add_good",
    "app",
    "benchmark",
    "calibrate",
    "demo",
    "evaluate",
    "export",
    "info",
    "main",
    "monitor",
    "predict",
    "serve",
    "train",
    "weights",
]
