"""A model behind HTTP: predictions for rows of JSON, from a folder or from the champion of an alias.

    python -m pipelines.serving.service results/model
    python -m pipelines.serving.service s3://models/clicks/champion --engine onnx --port 8080

The model is loaded in a thread, which looks again every few seconds: where another one has become the champion it takes
the place of the old one between two requests. Until the first is there, /health and /predict say 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click
import numpy as np
from dask.system import CPU_COUNT
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from dfm.data.row_checks import BOUNDED, NOT_PREDICTED
from dfm.errors import DataError
from dfm.workflow import registry
from pipelines.serving.engines import ENGINES, Served, load
from pipelines.serving.metrics import Metrics

logger = logging.getLogger(__name__)
MOST_ROWS = 10_000
"""Rows of a request; more belong into `dfm predict`."""
FEW_ROWS = 100
"""Up to so many rows are scored by the loop itself: a thread would cost more than it saves."""
MOST_FAULTS = 20
MOST_TRIES = 200
"""Predictions that a search for bad rows takes: for 20 of them in 10,000 rows it may have to be content with fewer."""
_BAD = (DataError, TypeError, ValueError, OverflowError)
_SCORERS = ThreadPoolExecutor(CPU_COUNT, "scorers")
"""Many rows are scored in as many requests at a time as there are processors: with more, probes wait for seconds."""
_SEARCHES = ThreadPoolExecutor(1, "faults")
"""Bad rows are looked for in one request at a time."""
_COLUMN = re.compile(r"column '([^']+)'")


class RowsBody(BaseModel):
    """A request for predictions: column to value, row by row."""

    rows: list[dict[str, Any]] = Field(min_length=1)


class InstancesBody(BaseModel):
    """The same as the first protocol of KServe names it."""

    instances: list[dict[str, Any]] = Field(min_length=1)


class Keeper:
    """The model that is served now, and the thread that looks for a better one every `every` seconds."""

    def __init__(self, url: str, engine: str, every: float, metrics: Metrics) -> None:
        self._url, self._engine, self._every, self._metrics = url, engine, every, metrics
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="model", daemon=True)
        self.served: Served | None = None
        self.error = ""

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self._every)

    def look(self) -> None:
        """Load the model where it is another one than before; one that cannot be loaded leaves the old one in place."""
        try:
            if self._is_new():
                self.served = load(self._url, self._engine)
                logger.info("serving %s", self.served.to_dict())
            self.error = ""
        except Exception as error:  # whatever a store or a half-written model raises: the next look may do better
            self.error = f"{type(error).__name__}: {error}"
            self._metrics.reload_failed()
            logger.warning("%s cannot be loaded: %s", self._url, self.error)

    def _is_new(self) -> bool:
        if self.served is None:
            return True
        champion = registry.champion(self._url)
        return champion is not None and champion.number != self.served.version


def create_app(url: str, engine: str = "dfm", every: float = 10.0) -> FastAPI:
    """The service of one model. url: of its folder, or of an alias; every: seconds between two looks at the alias."""
    metrics = Metrics()
    keeper = Keeper(url, engine, every, metrics)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        keeper.start()
        yield
        keeper.close()

    app = FastAPI(title="dfm", lifespan=life)
    app.state.keeper = keeper

    # A probe must not wait for a thread: hence `async`, as nothing here waits.
    @app.get("/health")
    async def health() -> Response:
        served = keeper.served
        known = {"ready": served is not None, "error": keeper.error, **(served.to_dict() if served else {})}
        return in_json(known, 200 if served else 503)

    @app.get("/metrics")
    async def metrics_text() -> PlainTextResponse:
        served = keeper.served
        return PlainTextResponse(metrics.text(served.version if served else 0, served is not None))

    @app.post("/predict")
    async def predict(body: RowsBody) -> Response:
        return await answered(keeper, metrics, body.rows, "rows")

    @app.get("/v1/models/{name}")
    async def ready(name: str) -> Response:
        return in_json({"name": name, "ready": keeper.served is not None}, 200 if keeper.served else 503)

    @app.post("/v1/models/{name}:predict")
    async def predict_instances(name: str, body: InstancesBody) -> Response:
        return await answered(keeper, metrics, body.instances, "instances")

    _answer_errors(app, metrics)
    return app


def in_json(content: Mapping[str, Any], code: int = 200) -> Response:
    """An answer in JSON of ASCII: a message may quote halves of surrogate pairs, which UTF-8 does not have."""
    return Response(json.dumps(content, allow_nan=False), code, media_type="application/json")


def _answer_errors(app: FastAPI, metrics: Metrics) -> None:
    """Requests that end before their rows are scored are answered in the same form, and counted too."""

    def counted(content: Mapping[str, Any], code: int) -> Response:
        response = in_json(content, code)
        metrics.answered(code, 0, 0.0)
        return response

    @app.exception_handler(RequestValidationError)
    async def refused(request: Request, error: RequestValidationError) -> Response:
        """The places, without the values, which need not have a form in JSON."""
        told = [{key: fault[key] for key in ("loc", "msg", "type")} for fault in error.errors()]
        return counted({"detail": told}, 422)

    @app.exception_handler(HTTPException)
    async def unread(request: Request, error: HTTPException) -> Response:
        """A body that is no text; and other paths and methods, which ask for no prediction."""
        is_asked = error.status_code not in (404, 405)
        response = (counted if is_asked else in_json)({"detail": error.detail}, error.status_code)
        response.headers.update(error.headers or {})
        return response


async def answered(keeper: Keeper, metrics: Metrics, rows: Sequence[dict[str, Any]], key: str) -> Response:
    """The predictions of some rows, or what speaks against them and where."""
    started, served = time.perf_counter(), keeper.served
    if served is None:
        response = in_json({"detail": keeper.error or "the model is being loaded"}, 503)
    elif len(rows) > MOST_ROWS:
        message = f"{len(rows)} rows; at most {MOST_ROWS} a request, more are the work of `dfm predict`"
        response = in_json({"detail": message}, 413)
    else:
        try:
            response = await _scored(served, rows, key)
        except Exception:  # counted, and told in the log, as no other request is harmed
            logger.exception("%d rows cannot be scored", len(rows))
            response = in_json({"detail": "an error of the service, which its log tells"}, 500)
    metrics.answered(response.status_code, len(rows), time.perf_counter() - started)
    return response


async def _scored(served: Served, rows: Sequence[dict[str, Any]], key: str) -> Response:
    loop = asyncio.get_running_loop()
    try:
        few = len(rows) <= FEW_ROWS
        found = served.predict(rows) if few else await loop.run_in_executor(_SCORERS, served.predict, rows)
        check_finite(found)
    except _BAD as error:
        found = await loop.run_in_executor(_SEARCHES, faults, served, rows, key, error)
        return in_json({"detail": found}, 422)
    told = {"version": served.version, "parameters_sha256": served.parameters_sha256}
    return in_json({"predictions": found.tolist(), **told})


def check_finite(predictions: NDArray[np.float32]) -> None:
    """DataError where a prediction, of float32[n_rows], is no finite number, for which JSON has no word."""
    if not np.isfinite(predictions).all():
        raise DataError(f"the row is {NOT_PREDICTED}: correct its largest number{BOUNDED}")


def faults(served: Served, rows: Sequence[dict[str, Any]], key: str, error: Exception) -> list[dict[str, Any]]:
    """The first rows that cannot be scored, each with its place, in the form in which FastAPI tells of faults."""
    found, tries, left = [], 0, [(0, len(rows))]
    while left and len(found) < MOST_FAULTS and tries < MOST_TRIES:  # halves without a fault are passed over whole
        start, stop = left.pop()
        tries += 1
        fault = _fault(served, rows[start:stop])
        if fault and stop - start > 1:
            middle = (start + stop) // 2
            left += [(middle, stop), (start, middle)]
        elif fault:
            column = _COLUMN.search(fault)
            place = ["body", key, start, *([column[1]] if column else [])]
            found.append({"loc": place, "msg": fault, "type": "bad_row"})
    return found or [{"loc": ["body", key], "msg": str(error), "type": "bad_rows"}]


def _fault(served: Served, rows: Sequence[dict[str, Any]]) -> str:
    """The reason why rows cannot be scored; "" where they can."""
    try:
        check_finite(served.model.predict(list(rows)))
    except _BAD as fault:
        return str(fault) or type(fault).__name__
    return ""


@click.command()
@click.argument("url")
@click.option("--engine", type=click.Choice([*ENGINES]), default="dfm", show_default=True, help="What scores rows.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0: all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--every", type=float, default=10.0, show_default=True, help="Seconds between two looks at an alias.")
def main(url: str, engine: str, host: str, port: int, every: float) -> None:
    """Serve the model at URL: its folder, or an alias whose champion is served."""
    import uvicorn

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    uvicorn.run(create_app(url, engine, every), host=host, port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
