"""The standing of a run, for people: moments of their own clock, the share that is done, the time that is left."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from dfm.pages.numbers import number_text

Progress = Mapping[str, Any]
_METRICS = ("log_loss", "loss", "rmse", "group_auc", "auc")
"""Metrics, of which the first that is there says how far training has come."""


def local_time(moment: str) -> str:
    """A moment (ISO 8601) by this machine's clock, to the second; empty where there is none."""
    return f"{datetime.datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M:%S}" if moment else ""


def share_done(progress: Progress) -> float | None:
    """The share of the epochs that is trained, 0 to 1; None before training. With early stopping it may end sooner."""
    epoch, epochs = progress.get("epoch"), progress.get("epochs")
    if not epoch or not epochs:
        return None
    round_share = progress.get("round", 0) / progress["rounds"] if progress.get("rounds") else 1.0
    return float(min((epoch - 1 + round_share) / epochs, 1.0))


def seconds_left(progress: Progress) -> float | None:
    """Seconds until the last epoch is trained, at the pace of the last one; None where there is no pace yet."""
    share, pace, rows = share_done(progress), progress.get("rows_per_second"), progress.get("rows")
    rows = rows.get("trained") if isinstance(rows, Mapping) else rows  # an account, once they are counted
    if share is None or not pace or not rows:
        return None
    return float((1.0 - share) * progress["epochs"] * rows / pace)


def duration(seconds: float) -> str:
    """A duration in its two largest units: "2 h 5 min", "45 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def done_and_left(state: str, progress: Progress) -> str:
    """The stage or the share that is done and, while it runs, the time that is left; empty where nothing is known."""
    share, left = share_done(progress), seconds_left(progress)
    if state not in ("running", "starting", "retrying"):
        return ""
    if progress.get("stage") and progress.get("total"):
        return f"{progress['stage']} {progress.get('done', 0) / progress['total']:.0%}"
    if share is None:
        return ""
    return f"{share:.0%}" + (f", {duration(left)} left" if left is not None and share < 1.0 else "")


def metric_of(run: Mapping[str, Any]) -> str:
    """The metric of the model that a run published, else of its last epoch: "log_loss 0.41940, epoch 3"; empty where
    there is none.
    """
    progress: Progress = run.get("progress") or {}
    published: Mapping[str, Any] = run.get("validation") or {}
    metrics = published or progress.get("metrics") or {}
    epoch = progress.get("best_epoch" if published else "epoch")
    name = next((name for name in _METRICS if isinstance(metrics.get(name), float)), "")
    when = "" if epoch is None else f", epoch {epoch}"
    return f"{name} {number_text(metrics[name])}{when}" if name else ""


def lines_of(run: Mapping[str, Any]) -> list[str]:
    """The lines about one run of a list: its id, state, progress and metric; below, its last word and its place.

    run: the fields of its record, with the state as it was concluded, and "directory".
    """
    progress: Progress = run.get("progress") or {}
    facts = (run["state"], done_and_left(run["state"], progress), metric_of(run))
    return [
        "  ".join([run["run_id"], *(fact for fact in facts if fact)]),
        f"    {local_time(run['updated'])}  {run['directory']}",
    ]
