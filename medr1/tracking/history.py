"""What MLflow knows of runs that have ended: their pages and their curves, for reports."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from medr1.tracking.address import StoredRun, without_password
from medr1.tracking.offline_queue import answers, be_brief


class History:
    """The runs of one database or server; connections are made when first needed."""

    def __init__(self, uri: str) -> None:
        be_brief()
        from mlflow.tracking import MlflowClient

        self._uri, self._client = uri, MlflowClient(tracking_uri=uri)

    @property
    def there(self) -> bool:
        """Whether it answers."""
        return answers(lambda: self._client.search_experiments(max_results=1))

    def page(self, run: StoredRun) -> str:
        """Where MLflow shows the run: on its server, or where ``mlflow ui`` puts a database by default."""
        server = without_password(self._uri).rstrip("/")
        if urlsplit(self._uri).scheme not in ("http", "https"):
            server = "http://127.0.0.1:5000"
        experiment = self._client.get_run(run.run_id).info.experiment_id
        # Without the query MLflow shows its menu for chat applications.
        return f"{server}/#/experiments/{experiment}/runs/{run.run_id}?workflowType=machine_learning"

    def curves(self, run: StoredRun, names: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
        """The points (step, value) of each curve that the run has, in order."""
        found = {}
        for name in names:
            points = {m.step: m.value for m in self._client.get_metric_history(run.run_id, name)}
            if points:
                found[name] = sorted(points.items())
        return found
