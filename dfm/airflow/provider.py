"""The facts that Airflow's provider manager asks for: connection type, places of operators and triggers, links."""

from __future__ import annotations

from typing import Any

from dfm.version import DISTRIBUTION, __version__, installed

_INTEGRATION = "Distributed Factorization Machines"
_FIELDS = {
    "protocol": ("Protocol", "string", "of the scheduler: tcp or tls"),
    "tls_ca": ("TLS: certificate authority", "string", "PEM file on the Airflow workers"),
    "tls_cert": ("TLS: certificate", "string", "PEM file on the Airflow workers"),
    "tls_key": ("TLS: private key", "string", "PEM file on the Airflow workers"),
    "worker_timeout": ("Worker timeout", "number", "seconds to wait for the first worker"),
    "dashboard": ("Dashboard", "string", "URL of Dask's dashboard; empty: what the scheduler says"),
    "workers": ("Local workers", "integer", "without a scheduler: worker processes on the task's machine"),
    "threads_per_worker": ("Local threads", "integer", "without a scheduler: tasks that a worker runs at a time"),
    "memory_limit": ("Local memory", "string", "without a scheduler: memory of a worker, as 4GB"),
}
"""Fields of a connection's form, which are its extras: label, type, meaning."""


def _field(label: str, kind: str, meaning: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": [kind, "null"]}
    if label == "Protocol":
        schema |= {"enum": ["tcp", "tls"], "default": "tcp"}
    return {"label": label, "schema": schema, "description": meaning}


def get_provider_info() -> dict[str, Any]:
    """Metadata of this provider, by the schema of Airflow's `provider_info.schema.json`."""

    def modules(*names: str) -> list[dict[str, Any]]:
        return [{"integration-name": _INTEGRATION, "python-modules": [f"dfm.airflow.{name}" for name in names]}]

    own = installed()
    return {
        "package-name": own.name if own else DISTRIBUTION,  # Airflow takes no other than the one that it found
        "name": "dfm",
        "description": "Train, evaluate, publish and apply factorization machines on Dask.",
        "versions": [__version__],
        "integrations": [{"integration-name": _INTEGRATION, "tags": ["software"]}],
        "operators": modules("operators"),
        "sensors": modules("sensors"),
        "hooks": modules("hooks"),
        "triggers": modules("triggers"),
        "connection-types": [
            {
                "hook-class-name": "dfm.airflow.hooks.DaskHook",
                "hook-name": "Dask",
                "connection-type": "dask",
                "conn-fields": {name: _field(*described) for name, described in _FIELDS.items()},
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "login", "password"],
                    "relabeling": {"host": "Scheduler (empty: workers on the task's machine)"},
                    "placeholders": {"host": "dask-scheduler", "port": "8786"},
                },
            }
        ],
        "extra-links": ["dfm.airflow.links.DaskDashboardLink", "dfm.airflow.links.ReportLink"],
    }
