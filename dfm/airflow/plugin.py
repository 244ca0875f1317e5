"""The plugin that Airflow finds by its entry point: it puts dfm's pages on the API server, below /dfm."""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin


class Pages:
    """An ASGI application, loaded at its first request: every process of Airflow loads plugins, one serves pages."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        from dfm.airflow.pages import app

        await app(scope, receive, send)


class DfmPlugin(AirflowPlugin):
    """Shows reports inside Airflow."""

    name = "dfm"
    fastapi_apps: ClassVar[list[dict[str, Any]]] = [{"name": "dfm", "app": Pages(), "url_prefix": "/dfm"}]
