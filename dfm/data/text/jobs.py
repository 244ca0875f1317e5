"""A job that trains on what was converted."""

from __future__ import annotations

from typing import Any

from dfm.data.text.convert import Conversion
from dfm.data.text.parsed import GROUP, LABEL, WEIGHT
from dfm.data.text.tables import CRITEO_NAMES
from dfm.settings.toml import to_toml
from dfm.storage import files

JOB_MARK = "# Made by dfm convert"
"""The begin of a job file that dfm wrote and may write again."""
_FFM = """# libffm's own model has vectors for each pair of fields: [model] family = "ffm", groups = N_FIELDS"""


def job_text(conversion: Conversion, directory: str, options: files.Options = None) -> str:
    """The job, as a TOML file; `directory` is where its results go, options: of the store that holds the shards. Of
    tables (csv, tsv) `dfm guess` finds it.
    """
    names = conversion.reader.schema.names
    lists = [name for name in names if name not in (LABEL, WEIGHT, GROUP)]
    schema: dict[str, Any] = {"label": LABEL}
    if conversion.format == "criteo":
        schema |= {"categorical": ["C*"], "numeric": [CRITEO_NAMES[1][0] + "*"]}
    else:
        schema |= {key: key for key in (WEIGHT, GROUP) if key in names}
        schema |= {"lists": lists, "list_weight": "one"}
    labels = sorted(conversion.account.labels)
    model: dict[str, Any] = {}
    if len(labels) == 2 and labels != [0.0, 1.0]:
        schema["label_positive"] = [f"{labels[1]:g}"]
    elif not set(labels) <= {0.0, 1.0}:
        model["task"] = "regression"
    rows = conversion.account.written
    training = {"n_replicas": max(1, rows // 1000)} if rows < 8000 else {}
    tables = {
        "data": {"train": conversion.directory, **({"storage_options": dict(options)} if options else {})},
        "schema": schema,
        **({"model": model} if model else {}),
        **({"training": training} if training else {}),
        "output": {"directory": directory},
    }
    ffm = _FFM.replace("N_FIELDS", str(len(lists))) + "\n" if conversion.format == "libffm" else ""
    return (
        f"{JOB_MARK} of {rows:,} rows of {conversion.format}: dfm train FILE --dry-run shows its plan.\n{ffm}\n"
        + to_toml(tables)
    )
