"""A finished run as a run of MLflow: knobs, epochs, metrics, the page, the job, the model."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import io
import json
import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfm.data.canonical import is_plain, value_text
from dfm.errors import SettingsError
from dfm.events import to_json
from dfm.model.fm_model import FMModel
from dfm.model.folder import read_manifest
from dfm.pages.page import REPORT
from dfm.runs.record import read_run
from dfm.settings.job import differing
from dfm.settings.toml import to_toml
from dfm.storage import files
from dfm.storage.retry import first_line
from dfm.version import DISTRIBUTION, __version__, pip_install

if TYPE_CHECKING:
    from dfm.distributed.train import TrainResult

logger = logging.getLogger(__name__)
_MODEL, _MANIFEST = "model", "model.json"
_NO_METRICS = ("epoch", "seed", "event")
_EXAMPLE_ROWS = 5
_TOLERANCE = 1e-5
"""Largest difference between predictions of the example and those of the golden rows that it was made of."""


def check_installed() -> None:
    """SettingsError where the library is missing: a job that asks for it is refused before it trains."""
    if importlib.util.find_spec("mlflow") is None:
        raise SettingsError(
            f"MLflow is not installed here: {pip_install('mlflow')}, where the driver runs; or leave output.mlflow out "
            "and log the run from elsewhere, with dfm.mlflow.log_run"
        )


def log_run(source: str | os.PathLike[str] | TrainResult, *, storage_options: Mapping[str, Any] | None = None) -> str:
    """Log a finished run to MLflow and return the id that it has there.

    source: the result of a training, or the output directory of one (path or URL). What is logged: every knob of the
    job as a parameter; the metrics of each epoch, its number as the step, and those of the published model as
    `validation.NAME`; job.toml and the report; the model as `model`, which `mlflow.pyfunc.load_model` loads, with a
    signature and an input example from its golden rows. Tags: parameters_sha256, dfm_version and what else says which
    run this was. Where a run of MLflow is active, it is logged into that one. ModelError where there is no model, or
    that of a later run lies in the place of the result's; errors of MLflow are its own.
    """
    check_installed()
    import mlflow

    directory, options = _place(source, storage_options)
    url = files.join(directory, _MODEL)
    manifest = read_manifest(url, options)
    active = mlflow.active_run()
    with tempfile.TemporaryDirectory(prefix="dfm-mlflow-") as folder, _silent(), contextlib.ExitStack() as stack:
        model = _fetched(url, manifest, folder, options)
        if not isinstance(source, str | os.PathLike):
            source.check_own(model)
        run_id = _run_id_of(directory, model, options)
        name = run_id or directory.rpartition("/")[2]
        run = active or stack.enter_context(mlflow.start_run(run_name=name))
        mlflow.set_tags(_tags(directory, model, run_id))
        mlflow.log_params(_parameters(manifest["metadata"]))
        mlflow.MlflowClient().log_batch(run.info.run_id, metrics=_metrics(mlflow, manifest["metadata"]))
        mlflow.log_text(to_toml(differing(manifest["metadata"].get("settings") or {})), "job.toml")
        with contextlib.suppress(FileNotFoundError):
            mlflow.log_text(files.read_bytes(files.join(directory, REPORT), options).decode(), REPORT)
        _log_model(mlflow, model, folder)
    logger.info("%s is run %s of MLflow at %s", directory, run.info.run_id, mlflow.get_tracking_uri())
    return str(run.info.run_id)


def log_after(result: TrainResult) -> None:
    """Log a run that has just finished. It is finished whatever MLflow does: where that fails, a warning tells how to
    log it later.
    """
    directory, options = _place(result, None)
    try:
        log_run(result)
    except Exception as error:
        reached = f", storage_options={options!r}" if options else ""
        later = f"import dfm.mlflow; dfm.mlflow.log_run({files.absolute(directory)!r}{reached})"
        logger.warning(
            "the model is published, but MLflow at %s does not have the run: %s. Log it later: python -c %r",
            os.environ.get("MLFLOW_TRACKING_URI", "its default place"), first_line(error), later,
        )  # fmt: skip


def _place(
    source: str | os.PathLike[str] | TrainResult, options: Mapping[str, Any] | None
) -> tuple[str, Mapping[str, Any]]:
    """The output directory, and the options that reach it."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source).rstrip("/"), dict(options or {})
    directory = source.model_url.rstrip("/").removesuffix(_MODEL).rstrip("/")
    return directory, dict(options if options is not None else source.storage_options)


def _run_id_of(directory: str, model: FMModel, options: files.Options = None) -> str:
    """The id of the run that made a model, as its manifest tells it, or the record beside it where that is of this
    model: a later run in the folder, which failed, leaves the model to the one before. "" where neither knows it.
    """
    if known := str(model.metadata.get("run_id", "")):
        return known
    record = read_run(directory, options)
    return record.run_id if record is not None and record.parameters_sha256 == model.parameters_sha256() else ""


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """A block in which MLflow's words to the user, links and hints, do not get between the lines of `--json`."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _tags(directory: str, model: FMModel, run_id: str) -> dict[str, str]:
    known = model.metadata
    tags = {
        "parameters_sha256": model.parameters_sha256(),
        "dfm_version": known.get("dfm_version", __version__),
        "job_fingerprint": known.get("job_fingerprint", ""),
        "data_fingerprint": known.get("data_fingerprint", ""),
        "run_id": run_id,
        "model_url": files.absolute(files.join(directory, _MODEL)),
        "tables": ", ".join(str(table["url"]) for table in known.get("tables", ())),
    }
    return {f"dfm.{name}" if name in ("run_id", "model_url", "tables") else name: t for name, t in tags.items() if t}


def _parameters(known: Mapping[str, Any]) -> dict[str, Any]:
    """Every knob of the job, and the numbers that it found for itself, as `found.NAME`."""
    knobs = {f"{name}.{key}": v for name, table in (known.get("settings") or {}).items() for key, v in table.items()}
    found = known.get("automatic") or {}
    numbers = {f"found.{key}": value for key, value in found.items() if isinstance(value, int | float)}
    return {**knobs, **numbers}


def _metrics(mlflow: Any, known: Mapping[str, Any]) -> list[Any]:
    """The metrics of the epochs in steps, and those of the published model."""
    now = int(time.time() * 1000)
    points = [
        (f"{key}.seed_{epoch['seed']}" if "seed" in epoch else key, value, int(epoch["epoch"]))
        for epoch in known.get("history", ())
        for key, value in epoch.items()
        if key not in _NO_METRICS
    ]
    best = int(known.get("best_epoch", 0))
    points += [(f"validation.{key}", value, best) for key, value in (known.get("validation") or {}).items()]
    points += [(f"rows.{key}", value, best) for key, value in (known.get("rows") or {}).items()]
    points.append(("best_epoch", best, best))
    return [mlflow.entities.Metric(key, float(value), now, step) for key, value, step in points if _is_number(value)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _fetched(url: str, manifest: Mapping[str, Any], folder: str, options: Mapping[str, Any]) -> FMModel:
    """The model, whose files are copied to a local folder."""
    model = FMModel.load(url, options, manifest=manifest)  # refuses one that names files outside of the model
    for name in (_MANIFEST, *(file["name"] for file in manifest["files"].values())):
        is_known = name == _MANIFEST
        data = to_json(manifest, indent=1).encode() if is_known else files.read_bytes(files.join(url, name), options)
        (Path(folder) / name).write_bytes(data)
    return model


def _log_model(mlflow: Any, model: FMModel, folder: str) -> None:
    """The folder of a model as a pyfunc model, which MLflow loads and scores once on the way."""
    golden, known = _golden_rows(model, folder), {}
    if golden is not None:
        outputs = mlflow.models.infer_signature(model_output=model.predict(golden)).outputs
        signature = mlflow.models.ModelSignature(_inputs(golden.schema), outputs)
        known = {"signature": signature, "input_example": _example(mlflow, model, golden.slice(0, _EXAMPLE_ROWS))}
    mlflow.pyfunc.log_model(
        name=_MODEL,
        loader_module="dfm.mlflow.flavour",
        data_path=folder,
        pip_requirements=[f"{DISTRIBUTION}=={__version__}"],
        **known,
    )


def _example(mlflow: Any, model: FMModel, golden: pa.Table) -> Any:
    """Golden rows as a frame of values that JSON has; None where they come back from it with other predictions."""
    import pandas as pd

    try:
        example = golden.to_pandas()
        for field in golden.schema:
            if not is_plain(field.type) or pa.types.is_decimal(field.type):
                values = [_in_json(value) for value in golden.column(field.name).to_pylist()]
                example[field.name] = pd.Series(values, dtype=object)
        sent = json.loads(mlflow.models.convert_input_example_to_serving_input(example))["dataframe_split"]
        found = model.predict(pd.DataFrame(sent["data"], columns=sent["columns"]))
    except Exception as error:  # whatever a value without a form in JSON comes to: the model is worth more
        logger.info("the model is logged without an input example: %s", first_line(error))
        return None
    return example if np.allclose(found, model.predict(golden), atol=_TOLERANCE, rtol=_TOLERANCE) else None


def _in_json(value: Any) -> Any:
    """A value as JSON has it and dfm takes for the same one: text of decimals and moments, seconds, dicts of maps."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return {value_text(key): _in_json(weight) for key, weight in value}
    if isinstance(value, list):
        return [_in_json(element) for element in value]
    if isinstance(value, dict):
        return {name: _in_json(element) for name, element in value.items()}
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    is_known = value is None or isinstance(value, bool | int | float | str)
    return value if is_known else value.decode() if isinstance(value, bytes) else value_text(value)


def _inputs(columns: pa.Schema) -> Any:
    """The columns of a signature: text, or anything. What a column of numbers is to pandas goes by whether rows of the
    moment have gaps, and MLflow takes no fractions for integers, nor integers of 64 bits for fractions.
    """
    from mlflow.types.schema import AnyType, ColSpec, Schema

    text = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
    return Schema([ColSpec("string" if any(is_(e.type) for is_ in text) else AnyType(), e.name) for e in columns])


def _golden_rows(model: FMModel, folder: str) -> pa.Table | None:
    """The golden rows with the columns that a prediction reads, without dictionaries; None where the model has none."""
    golden = read_manifest(folder)["files"].get("golden")
    if golden is None:
        return None
    rows = pq.ParquetFile(Path(folder) / golden["name"]).read().select(list(model.schema.columns))
    plain = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in rows.schema
    ]
    return rows.cast(pa.schema(plain))
