"""Finished runs in MLflow: `dfm.mlflow.log_run(result)` logs one by hand, `output.mlflow = true` at the end of a job.

The server is MLflow's own business: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and the variables of its credentials.
Inside of this package `mlflow` is that library, which is imported where it is used (extra `mlflow`).
"""

from __future__ import annotations

from dfm.mlflow.tracking import check_installed, log_after, log_run

__all__ = ["check_installed", "log_after", "log_run"]
