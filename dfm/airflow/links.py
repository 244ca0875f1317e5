"""Buttons on a task's page: the Dask dashboard, and the report of what the task did."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperatorLink


class DaskDashboardLink(BaseOperatorLink):
    """The dashboard of the Dask cluster that the task runs on."""

    name = "Dask dashboard"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The URL, or "" where the cluster has none."""
        return str(getattr(operator, "dashboard_url", ""))


class ReportLink(BaseOperatorLink):
    """The report in the output location."""

    name = "Report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The URL, or "" before there is a report."""
        return str(getattr(operator, "report_url", ""))
