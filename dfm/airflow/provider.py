"""The facts that Airflow's provider manager asks for: connection type, places of operators and triggers, links."""

from __future__ import annotations

from typing import Any

from dfm.version import DISTRIBUTION, __version__, installed

_INTEGRATION = "Distributed Factorization Machines"


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
        "connection-types": [{"hook-class-name": "dfm.airflow.hooks.DaskHook", "connection-type": "dask"}],
        "extra-links": ["dfm.airflow.links.DaskDashboardLink", "dfm.airflow.links.ReportLink"],
    }
