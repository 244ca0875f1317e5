"""One page of HTML about a run or a night: tables of numbers, readable in any browser, no script, no picture file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.kernels.families.registry import DEFAULT
from dfm.model.fm_model import FMModel, read_manifest
from dfm.model.inspection import strengths_of
from dfm.storage import files, ownership

REPORT = "report.html"
HEAD = "<!doctype html><html lang=en><meta charset=utf-8><meta name=generator content=dfm>"
"""The beginning of every page, by which dfm knows its own."""
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    "table{display:block;overflow-x:auto;border-collapse:collapse;margin:.5rem 0 1.5rem}"
    "td,th{padding:.15rem .8rem .15rem 0;text-align:left;"
    "vertical-align:top;border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}"
    "h1,td{overflow-wrap:anywhere}td.n{white-space:nowrap}h2{margin:1.5rem 0 0;font-size:1.1rem}"
)
_VIEWPORT = "<meta name=viewport content='width=device-width'>"
_EPOCH = ("seed", "epoch", "train_log_loss", "train_rmse", "log_loss", "rmse", "auc", "rows_per_second", "seconds")
_LONG = ("calibration_bins", "history", "columns")
"""Metrics that a table of single numbers leaves out."""


@dataclass(frozen=True)
class HeatMap:
    """A number for every pair of names, float64[n, n], as a table of coloured cells."""

    names: Sequence[str]
    values: NDArray[np.float64]


def write_report(url: str, title: str, sections: Mapping[str, Any], options: files.Options = None) -> str:
    """Write a page, in place of an earlier one, and return its URL.

    A section is a mapping (one row each), a list of them (one table), or a HeatMap. SettingsError where another's file
    is there.
    """
    parts = [f"<h2>{html.escape(name)}</h2>{_table(content)}" for name, content in sections.items() if content]
    page = (
        f"{HEAD}{_VIEWPORT}<title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1>{''.join(parts)}</html>"
    )
    ownership.check_replaceable(url, ownership.begins_with(HEAD.encode()), options)
    files.write_bytes(url, page.encode(), options)
    return url


def read_report(url: str, options: files.Options = None) -> bytes:
    """A page that dfm wrote. FileNotFoundError where there is none, ValueError where it is somebody else's file."""
    files.size_of(url, options)
    if not ownership.begins_with(HEAD.encode())(url, options):
        raise ValueError("it is no report of dfm")
    return files.read_bytes(url, options)


def report_training(directory: str, title: str, options: files.Options = None) -> str:
    """The page about the model in an output location: epochs, validation, rows, settings."""
    metadata = read_manifest(files.join(directory, "model"), options)["metadata"]
    epochs = [{key: epoch[key] for key in _EPOCH if key in epoch} for epoch in metadata["history"]]
    sections: dict[str, Any] = {
        "epochs": epochs,
        "models": _models(metadata),
        "validation": metadata["validation"],
        "diagnosis": [
            {"what": finding["message"], "knobs": finding["knobs"]} for finding in metadata.get("diagnosis", ())
        ],
        "rows": metadata["rows"],
        "strengths of pairs of fields": _strengths(directory, options),
        "warm start": metadata.get("warm_start"),
        "settings": {
            f"{table}.{key}": value for table, knobs in metadata["settings"].items() for key, value in knobs.items()
        },
    }
    return write_report(files.join(directory, REPORT), title, sections, options)


def _models(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The single models beside their mean; none where there is but one."""
    models = metadata.get("models", [])
    rows = [{"model": f"seed {m['seed']}", "best epoch": m["best_epoch"], **_short(m["validation"])} for m in models]
    return [*rows, {"model": "their mean", **_short(metadata["validation"])}] if rows else []


def _short(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name not in _LONG}


def _strengths(directory: str, options: files.Options) -> HeatMap | None:
    """Those of the model in an output location, where its family has any; most models need not be read for that."""
    url = files.join(directory, "model")
    if read_manifest(url, options).get("family", DEFAULT) == DEFAULT:
        return None
    found = strengths_of(FMModel.load(url, options, check_golden=False))
    return HeatMap(*found) if found else None


_BLUE, _RED = (33, 102, 172), (178, 24, 43)


def _heat_map(content: HeatMap) -> str:
    """Rows and columns by name; blue is above 0, red below, and the strongest cell has the full colour."""
    most = max(float(np.abs(content.values).max(initial=0.0)), 1e-9)
    head = "".join(f"<th style=writing-mode:vertical-rl>{html.escape(name)}" for name in content.names)
    body = "".join(
        f"<tr><th>{html.escape(name)}" + "".join(_shade(value, most) for value in row.tolist())
        for name, row in zip(content.names, content.values, strict=True)
    )
    return f"<table><tr><th>{head}{body}</table>"


def _shade(value: float, most: float) -> str:
    share = abs(value) / most
    red, green, blue = (round(255 + (part - 255) * share) for part in (_BLUE if value > 0 else _RED))
    ink = "#fff" if share > 0.6 else "#000"
    return f'<td style="background:rgb({red},{green},{blue});color:{ink};font-size:.7rem;padding:.1rem">{value:.2f}'


def _table(content: Mapping[str, Any] | Sequence[Mapping[str, Any]] | HeatMap) -> str:
    if isinstance(content, HeatMap):
        return _heat_map(content)
    if isinstance(content, Mapping):
        rows = [(str(key), value) for key, value in content.items() if key not in _LONG and not _is_empty(value)]
        return "<table>" + "".join(f"<tr><th>{html.escape(k)}{_td(v)}" for k, v in rows) + "</table>"
    names = list(dict.fromkeys(name for row in content for name in row))
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}" for name in names)
    body = "".join("<tr>" + "".join(_td(row.get(name)) for name in names) for row in content)
    return f"<table><tr>{head}{body}</table>"


def _td(value: Any) -> str:
    """A cell; text is broken where a narrow page must, numbers are not."""
    return f"<td class=n>{_cell(value)}" if isinstance(value, int | float) else f"<td>{_cell(value)}"


def _is_empty(value: Any) -> bool:
    return isinstance(value, str | Mapping | list | tuple) and not value


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.5f}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(
            f"{html.escape(str(key))} {_cell(inner)}" for key, inner in value.items() if not _is_empty(inner)
        )
    if isinstance(value, list | tuple):
        return "<br>".join(_cell(item) for item in value)
    return html.escape(str(value))
