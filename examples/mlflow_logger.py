"""Train with MLflow looking on: each epoch's figures, the settings, and the model file at the end.

python examples/mlflow_logger.py data/tile/train/good tile.uflow

Where MLflow writes is its own business: MLFLOW_TRACKING_URI, or mlflow.set_tracking_uri.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import mlflow

import uflow


def log_epoch(flow: str, epoch: Mapping[str, Any]) -> None:
    """What `Detector.fit` calls after each epoch: its figures become metrics, such as first.held_out_nll."""
    figures = {f"{flow}.{name}": value for name, value in epoch.items() if name != "epoch" and value is not None}
    mlflow.log_metrics(figures, step=epoch["epoch"])


def train(images: str, model: str, **recipe: Any) -> None:
    """One run: settings, metrics, the model file."""
    with mlflow.start_run():
        detector = uflow.Detector.fit(images, on_epoch=log_epoch, **recipe)
        detector.save(model)
        mlflow.log_params(
            {"backbone": detector.record["backbone"], "alpha": detector.threshold.alpha, **detector.record["settings"]}
        )
        mlflow.log_artifact(model)


if __name__ == "__main__":
    train(*sys.argv[1:3])
