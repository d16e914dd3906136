"""MLflow: one MLflow run per run, in the experiment `moegeo` of a tracking URI."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from moegeo_cli.scalars import LAST, Point

DEFAULT_PLACE = ""  # MLflow's own: MLFLOW_TRACKING_URI, else a database in this folder
EXTRA = "mlflow"
ALL_CHECKPOINTS = True
SYNTAX = "mlflow[:URI]"
EXPERIMENT = "moegeo"
TAG = "moegeo.run"


def prepare(where: str) -> None:
    """Check that the library is installed and the tracking store opens."""
    _client(where).search_experiments(max_results=1)


def write(where: str, run: str, points: Sequence[Point]) -> int:
    """Log each scalar as a metric at the step of its checkpoint."""
    from mlflow.entities import Metric

    client = _client(where)
    own = _run_of(client, run)
    there = {metric.step for metric in client.get_metric_history(own, LAST)}
    new = [p for p in points if p.step not in there]
    for point in new:
        now = int(time.time() * 1000)
        client.log_batch(
            own, [Metric(name, value, now, point.step) for name, value in point.values.items()]
        )
    client.set_terminated(own)
    return len(new)


def _client(where: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=where or None)


def _run_of(client: Any, name: str) -> str:
    """The id of the MLflow run with this name; created if there is none."""
    known = client.get_experiment_by_name(EXPERIMENT)
    experiment = client.create_experiment(EXPERIMENT) if known is None else known.experiment_id
    quoted = name.replace("'", "_")
    found = client.search_runs([experiment], f"tags.`{TAG}` = '{quoted}'", max_results=1)
    run = found[0] if found else client.create_run(experiment, tags={TAG: quoted}, run_name=name)
    identity: str = run.info.run_id
    return identity
