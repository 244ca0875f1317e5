"""The page about a model: learning and validation curves, what it rests on, where it is weak, and how it was made.

The manifest says most of it. What needs rows (curves, slices, importance) was found when the model was published and
lies in the model's folder as `report.json`, so that the page can be made again without the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dfm.events import to_json
from dfm.kernels.families.registry import DEFAULT
from dfm.model.figures import figures_of, single_numbers
from dfm.model.fm_model import FMModel, read_manifest
from dfm.model.inspection import strengths_of
from dfm.model.pair_strength import strength_matrix
from dfm.pages import charts
from dfm.pages.page import REPORT, Drawing, HeatMap, preformatted, write_report
from dfm.settings.job import differing
from dfm.settings.toml import to_toml
from dfm.storage import files, ownership

FINDINGS = "report.json"
_OF = "parameters_file"
"""The key of the digest of the file that the findings belong to."""
_EPOCH = (
    *("seed", "epoch", "train_log_loss", "train_rmse", "train_loss", "log_loss", "rmse", "loss"),
    *("auc", "group_auc", "ndcg_10", "mrr"),
)
_SLICE = ("rows", "mean_label", "mean_prediction", "log_loss", "normalized_entropy", "rmse", "calibration", "auc")
_MOST_COLUMNS = 40
_MOST_PAIRS = 20
"""Pairs of fields that have a bar."""


def write_findings(url: str, findings: Mapping[str, Any], options: files.Options = None) -> None:
    """Keep what a report tells of rows in the folder of the model that it is about."""
    own = read_manifest(url, options)["files"]["parameters"]["sha256"]
    place = files.join(url, FINDINGS)
    ownership.check_replaceable(place, ownership.begins_with(f'{{\n "{_OF}"'.encode()), options)
    files.remove_abandoned_of(place)
    files.write_bytes(place, to_json({_OF: own, **findings}, indent=1).encode(), options)


def read_findings(url: str, options: files.Options = None) -> dict[str, Any]:
    """The findings in a model's folder; empty where there are none, or they are of another model that lay there."""
    place = files.join(url, FINDINGS)
    if not files.exists(place, options):
        return {}
    found = json.loads(files.read_bytes(place, options))
    manifest = read_manifest(url, options)
    own = manifest["files"]["parameters"]["sha256"]
    return found if isinstance(found, dict) and found.get(_OF) == own else {}


def report_training(directory: str, title: str, options: files.Options = None) -> str:
    """Write the page about the model in an output location, and return its URL."""
    return report_model(files.join(directory, "model"), files.join(directory, REPORT), title, options)


def report_model(model: str, page: str, title: str, options: files.Options = None) -> str:
    """Write the page about a model (path or URL) at another one, which is returned."""
    manifest = read_manifest(model, options)
    found = read_findings(model, options)
    known = manifest["metadata"]
    sections: dict[str, Any] = {
        "validation": single_numbers(known["validation"]),
        "curves": charts.side_by_side(figures_of(known["history"], known["validation"], found)),
        "epochs": [{key: epoch[key] for key in _EPOCH if key in epoch} for epoch in known["history"]],
        "models": _models(known),
        "diagnosis": [{"what": each["message"], "knobs": each["knobs"]} for each in known.get("diagnosis", ())],
        **_slices(found.get("slices", {})),
        "importance of columns": _importance(found.get("importance", {})),
        **_pairs(found.get("importance", {}), manifest),
        "values of the rows that validate": [_drifted(each) for each in found.get("drift", ())[:_MOST_COLUMNS]],
        "learnt strengths r of pairs of fields": _strengths(model, manifest, options),
        "collisions": found.get("collisions"),
        "tables that were read": known.get("tables"),
        "rows to train on": known["rows"],
        "rows to validate on": known.get("validation_rows"),
        "where time went": _time(known["history"], found.get("seconds", {})),
        "calibration": known.get("calibration"),
        "warm start": known.get("warm_start"),
        "job": preformatted(to_toml(differing(known["settings"])).strip()) if known["settings"] else None,
        "versions and hashes": {**_hashes(manifest), **found.get("versions", {})},
    }
    return write_report(page, title, sections, options)


def _models(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The single models beside their mean; none where there is but one."""
    models = metadata.get("models", [])
    rows = [
        {"model": f"seed {m['seed']}", "best epoch": m["best_epoch"], **single_numbers(m["validation"])} for m in models
    ]
    return [*rows, {"model": "their mean", **single_numbers(metadata["validation"])}] if rows else []


def _strengths(url: str, manifest: Mapping[str, Any], options: files.Options) -> HeatMap | None:
    """Those of the model, where its family has any; most models need not be read for that."""
    if manifest.get("family", DEFAULT) == DEFAULT:
        return None
    found = strengths_of(FMModel.load(url, options, check_golden=False))
    return HeatMap(*found) if found else None


# --- tables ----------------------------------------------------------------------------------------------


def _slices(found: Mapping[str, Any]) -> dict[str, Any]:
    """A section of the worst values of the widest column."""
    records = found.get("records", [])
    rows = [{found["column"]: each["value"], **{key: each[key] for key in _SLICE if key in each}} for each in records]
    return {f"slices of {found['column']}, the worst first": rows} if rows else {}


def _drifted(record: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a column beside those of training."""
    names = ("column", "psi", "missing", "training_missing", "rare", "training_rare", "unseen")
    return {name: record[name] for name in names}


def _importance(found: Mapping[str, Any]) -> Drawing | None:
    """By how much the loss rises without a column, as bars."""
    rows = [(each["column"], f"{each['permuted']:z.5f}", each["permuted"]) for each in found.get("columns", ())]
    return charts.bars(("column permuted", "rise of the loss"), rows[:_MOST_COLUMNS])


def _pairs(found: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The mean absolute terms that two fields make together: the strongest as bars, and all of not too many fields."""
    records, names = found.get("pairs", ()), [entry["name"] for entry in manifest["schema"]["fields"]]
    rows = [(f"{e['first']} x {e['second']}", f"{e['strength']:.5f}", e["strength"]) for e in records[:_MOST_PAIRS]]
    is_wide = len(names) > _MOST_COLUMNS or not rows
    return {
        "pairs of fields, by their mean absolute part of the score": charts.bars(("fields", "strength"), rows),
        "all pairs of fields": None if is_wide else HeatMap(names, strength_matrix(records, names)),
    }


def _time(history: Sequence[Mapping[str, Any]], stages: Mapping[str, float]) -> Drawing | None:
    """Seconds of the stages, as bars; training is taken apart."""
    parts = {
        "in kernels": sum(epoch.get("training_seconds", 0.0) for epoch in history),
        "averaging": sum(epoch.get("averaging_seconds", 0.0) for epoch in history),
        "validating": sum(epoch.get("validation_seconds", 0.0) for epoch in history),
    }
    if not any(parts.values()):
        return None
    seconds = {"preparing rows": stages.get("prepare", 0.0), **parts, "publishing": stages.get("publish", 0.0)}
    return charts.bars(("stage", "seconds"), [(name, f"{each:.2f}", each) for name, each in seconds.items() if each])


def _hashes(manifest: Mapping[str, Any]) -> dict[str, Any]:
    known = manifest["metadata"]
    names = ("dfm_version", "backend", "job_fingerprint", "data_fingerprint")
    kept = {name.replace("_", " "): known[name] for name in names if name in known}
    return {"format of the model": manifest["format"], **kept, "parameters": manifest["files"]["parameters"]["sha256"]}
