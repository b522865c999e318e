"""Values of the data as parts of names."""

from __future__ import annotations

from mlflow.utils.validation import _validate_metric_name

from medr1.config.naming import metric_part

ODD = ["CT/MR", "CT MR", "CT-MR", "CT:MR", "CT\u2215MR", "..", "a//b", "50 %", "数据", "资料"]


def test_metric_names_are_valid_for_mlflow_and_do_not_collide() -> None:
    names = [f"mean/grpo/{metric_part(value)}" for value in ODD]
    assert len(set(names)) == len(ODD)
    assert {"mean/grpo/CT MR", "mean/grpo/CT-MR"} <= set(names), "what MLflow takes is not changed"
    for name in names:
        _validate_metric_name(name)
