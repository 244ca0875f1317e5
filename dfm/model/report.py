"""The page about a model: learning and validation curves, what it rests on, where it is weak, and how it was made.

The manifest says most of it. What needs rows (curves, slices, importance) was found when the model was published and
lies in the model's folder as `report.json`, so that the page can be made again without the data.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from dfm.errors import ModelError
from dfm.events import to_json
from dfm.kernels.families.registry import DEFAULT
from dfm.model.figures import figures_of, single_numbers
from dfm.model.fm_model import FMModel
from dfm.model.folder import MANIFEST, read_manifest
from dfm.model.inspection import choice_of, strengths_of, strongest_and_weakest
from dfm.model.pair_strength import strength_matrix
from dfm.pages import charts
from dfm.pages.numbers import number_form
from dfm.pages.page import REPORT, Drawing, HeatMap, page_of, preformatted, write_page
from dfm.settings.job import differing
from dfm.settings.toml import to_toml
from dfm.storage import files, ownership

logger = logging.getLogger(__name__)
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
_LONGEST_REASON = 200
"""Characters of another error that a message quotes."""


def write_findings(url: str, findings: Mapping[str, Any], options: files.Options = None) -> None:
    """Keep what a report tells of rows in the folder of the model that it is about."""
    own = read_manifest(url, options)["files"]["parameters"]["sha256"]
    place = files.join(url, FINDINGS)
    ownership.check_replaceable(place, ownership.begins_with(f'{{\n "{_OF}"'.encode()), options)
    files.remove_abandoned_of(place)
    files.write_bytes(place, to_json({_OF: own, **findings}, indent=1).encode(), options)


def read_findings(url: str, manifest: Mapping[str, Any], options: files.Options = None) -> dict[str, Any]:
    """The findings in a model's folder; empty where there are none, or they are of another model than the manifest."""
    place = files.join(url, FINDINGS)
    if not files.exists(place, options):
        return {}
    try:
        found = json.loads(files.read_bytes(place, options))
    except (ValueError, RecursionError) as error:
        logger.warning("%s is damaged (%s): the page is without what it told of rows; training writes it", place, error)
        return {}
    own = manifest["files"]["parameters"]["sha256"]
    return found if isinstance(found, dict) and found.get(_OF) == own else {}


def report_training(directory: str, title: str, options: files.Options = None) -> str:
    """Write the page about the model in an output location, and return its URL."""
    return report_model(files.join(directory, "model"), files.join(directory, REPORT), title, options)


def report_model(model: str, page: str, title: str, options: files.Options = None) -> str:
    """Write the page about a model (path or URL) at another one, which is returned. A model that an estimator saved, or
    somebody by hand, has a page of what its metadata know. ModelError where they are not what dfm writes.
    """
    manifest = read_manifest(model, options)
    try:
        text = page_of(title, _sections(model, manifest, options))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"what {files.join(model, MANIFEST)}, or {FINDINGS} beside it, tells of the training cannot be shown "
            f"({type(error).__name__}: {str(error)[:_LONGEST_REASON]}): save the model again"
        ) from error
    return write_page(page, text, options)


def _sections(model: str, manifest: Mapping[str, Any], options: files.Options) -> dict[str, Any]:
    """The sections of the page, empty ones too."""
    found = read_findings(model, manifest, options)
    known = manifest["metadata"]
    history, validation = known.get("history", ()), known.get("validation", {})
    settings = known.get("settings") or {}
    importance = found.get("importance", {})
    return {
        "validation": single_numbers(validation),
        "curves": charts.side_by_side(figures_of(history, validation, found)),
        "epochs": [{key: epoch[key] for key in _EPOCH if key in epoch} for epoch in history],
        "models": _models(known),
        "choice between factors and none": choice_of(known),
        "diagnosis": [{"what": each["message"], "knobs": each["knobs"]} for each in known.get("diagnosis", ())],
        **_slices(found.get("slices", {})),
        "importance of columns": _importance(importance),
        **_pairs(importance, manifest),
        "values of the rows that validate": [_drifted(each) for each in found.get("drift", ())[:_MOST_COLUMNS]],
        "learnt strengths r of pairs of fields": _strengths(model, manifest, options),
        "collisions": found.get("collisions"),
        "tables that were read": known.get("tables"),
        "rows to train on": known.get("rows"),
        "rows to validate on": known.get("validation_rows"),
        "where time went": _time(history, found.get("seconds", {})),
        "calibration": {k: v for k, v in (known.get("calibration") or {}).items() if v is not None},
        "warm start": known.get("warm_start"),
        "job": preformatted(to_toml(tables).strip()) if (tables := differing(settings)) else None,
        "estimator": _estimator(known, settings),
        "versions and hashes": {**_hashes(manifest), **found.get("versions", {})},
    }


def _estimator(known: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the estimator that was fitted, by name; empty where the model is of a job."""
    own = settings.get("estimator", {})
    return {"class": known.get("estimator"), **{k: v for k, v in own.items() if v is not None}} if own else {}


def _models(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The single models beside their mean; none where there is but one."""
    models = metadata.get("models", [])
    rows = [
        {"model": f"seed {m['seed']}", "best epoch": m["best_epoch"], **single_numbers(m["validation"])} for m in models
    ]
    return [*rows, {"model": "their mean", **single_numbers(metadata["validation"])}] if rows else []


def _strengths(
    url: str, manifest: Mapping[str, Any], options: files.Options
) -> HeatMap | Sequence[Mapping[str, Any]] | None:
    """Those of the model, where its family has any; most models need not be read for that. Of many fields the strongest
    and the weakest: a cell for each pair of a thousand would be 50 MB.
    """
    if manifest.get("family", DEFAULT) == DEFAULT:
        return None
    found = strengths_of(FMModel.load(url, options, check_golden=False, manifest=manifest))
    if found is None:
        return None
    return HeatMap(*found) if len(found[0]) <= _MOST_COLUMNS else strongest_and_weakest(*found)


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
    rises = [(each["column"], each["permuted"]) for each in found.get("columns", ())]
    form = number_form([rise for _, rise in rises], "z.5f")
    rows = [(column, f"{rise:{form}}", rise) for column, rise in rises]
    return charts.bars(("column permuted", "rise of the loss"), rows[:_MOST_COLUMNS])


def _pairs(found: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The mean absolute terms that two fields make together: the strongest as bars, and all of not too many fields."""
    records, names = found.get("pairs", ()), [entry["name"] for entry in manifest["schema"]["fields"]]
    form = number_form([each["strength"] for each in records[:_MOST_PAIRS]])
    rows = [(f"{e['first']} x {e['second']}", f"{e['strength']:{form}}", e["strength"]) for e in records[:_MOST_PAIRS]]
    is_wide = len(names) > _MOST_COLUMNS or not rows
    reason = found.get("pairs_left_out")
    bars = {"left out": reason} if reason else charts.bars(("fields", "strength"), rows)
    return {
        "pairs of fields, by their mean absolute part of the score": bars,
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
