"""The page of Airflow's own server that shows a task's report, wherever it lies: /dfm/report."""

from __future__ import annotations

import html
import json
from typing import Any

from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import DagAccessEntity, requires_access_dag
from airflow.models.xcom import XComModel
from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse

from dfm.airflow import runtime
from dfm.pages.page import HEAD, read_report

_NO_SCRIPTS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'"}

app = FastAPI(title="dfm", openapi_url=None)


@app.get("/report", dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.XCOM))])
def report(dag_id: str, run_id: str, task_id: str, session: SessionDep, map_index: int = -1) -> HTMLResponse:
    """The report that a task has left, for those who may read the XComs of its DAG; else why it is not to be seen."""
    found = session.scalars(
        XComModel.get_many(
            run_id=run_id, key=runtime.REPORT, task_ids=task_id, dag_ids=dag_id, map_indexes=map_index, limit=1
        )
    ).first()
    place = _place(found.value) if found else {}
    if not place:
        return _told(f"task {task_id} of run {run_id} has left no report", 404)
    try:
        page = read_report(place["url"], place["storage_options"])
    except Exception as error:  # a path of another machine, no credentials, no such file: all are told alike
        return _told(
            f"this server cannot read the report at {place['lies_at']} ({type(error).__name__}: {error}). It lies "
            f"where the task wrote it; Airflow's API server needs the same disk, or credentials of the same store",
            404,
        )
    return HTMLResponse(page, headers=_NO_SCRIPTS)


def _place(value: Any) -> dict[str, Any]:
    """A task's word of its report; nothing where an XCom backend keeps values elsewhere."""
    try:
        known = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return {}
    return known if isinstance(known, dict) and known.keys() >= {"url", "storage_options", "lies_at"} else {}


def _told(reason: str, status: int) -> HTMLResponse:
    return HTMLResponse(f"{HEAD}<title>dfm</title><p>{html.escape(reason)}</html>", status, headers=_NO_SCRIPTS)
