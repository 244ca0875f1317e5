"""The connection type `dask`: a scheduler, or nothing but the size of a cluster to start on this machine."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from dfm.errors import ClusterError, SettingsError
from dfm.settings.job import read_override
from dfm.settings.tables import ClusterSettings

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)
_LOCAL = ("workers", "threads_per_worker", "memory_limit")
"""Extras of a connection without a host: the size of the cluster that is started for each task."""
_REMOTE = ("tls_ca", "tls_cert", "tls_key", "worker_timeout")
"""Extras of a connection to a scheduler. All of them are knobs of a job's [cluster], with the same meaning."""


class DaskHook(BaseHook):
    """Host and port are the scheduler's. All extras are optional.

    protocol ("tcp", "tls"), tls_ca, tls_cert, tls_key (paths on the Airflow workers), worker_timeout, dashboard (URL);
    without a host: workers, threads_per_worker, memory_limit of a cluster on the machine that runs the task;
    kubernetes: knobs of a job's [kubernetes], to train as a DaskJob there.
    """

    conn_name_attr = "dask_conn_id"
    default_conn_name = "dask_default"
    conn_type = "dask"
    hook_name = "Dask"

    def __init__(self, dask_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.dask_conn_id = dask_conn_id

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """The look of the connection's form: hidden fields, labels, placeholders."""
        return {
            "hidden_fields": ["schema", "login", "password"],
            "relabeling": {"host": "Scheduler (empty: workers on the task's machine)"},
            "placeholders": {"host": "dask-scheduler", "port": "8786", "extra": '{"protocol": "tls", "workers": 2}'},
        }

    def cluster(self) -> dict[str, Any]:
        """Values for a job's [cluster] table."""
        connection = self.get_connection(self.dask_conn_id)
        extra = connection.extra_dejson
        names = _REMOTE if connection.host else _LOCAL
        given = {name: str(extra[name]) for name in names if extra.get(name) not in (None, "")}  # a form leaves null
        chosen = {name: read_override(("cluster", name), text) for name, text in given.items()}
        scheduler = f"{extra.get('protocol') or 'tcp'}://{connection.host}:{connection.port or 8786}"
        return {"scheduler": scheduler if connection.host else "local", **chosen}

    def kubernetes(self) -> dict[str, Any] | None:
        """Values for a job's [kubernetes] table where the connection means Kubernetes, else None."""
        chosen = self.get_connection(self.dask_conn_id).extra_dejson.get("kubernetes")
        if chosen in (None, ""):
            return None
        found = _from_json(chosen) if isinstance(chosen, str) else chosen  # a connection given as a URI holds text
        if not isinstance(found, Mapping):
            raise SettingsError(
                f"connection {self.dask_conn_id!r} has the extra kubernetes = {chosen!r}: expected knobs of a job's "
                '[kubernetes] as a JSON object, such as {"workers": 2} (in a URI kubernetes=%7B%22workers%22%3A2%7D)'
            )
        return dict(found)

    def dashboard(self) -> str:
        """The link to Dask's dashboard: the extra `dashboard`, or what the scheduler says; "" where it has none, does
        not answer, or for local workers.
        """
        connection = self.get_connection(self.dask_conn_id)
        known = connection.extra_dejson.get("dashboard")
        if known or not connection.host:
            return str(known or "")
        from dfm.distributed.cluster.remote import dashboard_of

        try:
            return dashboard_of(ClusterSettings(**self.cluster()))
        except ClusterError as error:
            logger.info("there is no link to the dashboard: %s", error)
            return ""

    @contextlib.contextmanager
    def get_conn(self) -> Iterator[Client]:
        """A client of the scheduler, or of workers that end with the block."""
        from dfm.distributed.cluster.connect import connect

        with connect(ClusterSettings(**self.cluster())) as client:
            yield client

    def test_connection(self) -> tuple[bool, str]:
        """Whether the scheduler answers and has workers."""
        try:
            with self.get_conn() as client:
                workers = client.scheduler_info(n_workers=-1)["workers"]
                return True, f"{len(workers)} worker{'s' * (len(workers) != 1)} at {client.scheduler.address}"
        except Exception as error:
            return False, str(error)


def _from_json(text: str) -> Any:
    """The value that a text writes as JSON; None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None
