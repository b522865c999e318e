"""The metrics of finished runs, read from MLflow for reports."""

from __future__ import annotations

from collections.abc import Iterable

from medr1.tracking.address import StoredRun
from medr1.tracking.offline_queue import configure_mlflow, is_reachable


class History:
    """The runs of one database or server."""

    def __init__(self, uri: str) -> None:
        configure_mlflow(short_timeouts=True)
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)

    def is_reachable(self) -> bool:
        return is_reachable(lambda: self._client.search_experiments(max_results=1))

    def metrics(self, run: StoredRun, names: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
        """The points (step, value) of each metric that the run has, ordered by step."""
        found = {}
        for name in names:
            points = {m.step: m.value for m in self._client.get_metric_history(run.run_id, name)}
            if points:
                found[name] = sorted(points.items())
        return found
