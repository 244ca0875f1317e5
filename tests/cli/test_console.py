"""Lines for people: one shard is no "1 shards", and numbers have the digits that say something."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from dfm.cli.console import Reporter
from dfm.workflow.html_report import _cell

PLAN = {
    "event": "plan",
    "shards": 1,
    "rows": 1,
    "fields": 1,
    "validation_shards": 0,
    "validation_rows": 0,
    "replicas": 1,
    "rounds_per_epoch": 1,
    "rows_per_replica": 1,
}


@pytest.mark.parametrize("number", [1, 2])
def test_a_plan_counts_as_people_do(number: int) -> None:
    sink = io.StringIO()
    with Reporter(Console(file=sink, width=200)) as reporter:
        reporter({name: number if value == 1 else value for name, value in PLAN.items()})
    ends = "" if number == 1 else "s"
    line = " ".join(sink.getvalue().split())
    for noun in ("row", "shard", "field", "replica", "average"):
        assert f"{number} {noun}{ends} " in re.sub(r"[(),;]", " ", line), line


def test_cells_of_a_report_have_no_seventeen_digits() -> None:
    bins = [{"predicted": 1 / 3, "observed": 0.25}, {"predicted": 2 / 3, "observed": None}]
    assert _cell({"a<b": 1 / 3, "rows": 12345}) == "a&lt;b 0.33333, rows 12,345"
    assert _cell(bins) == "predicted 0.33333, observed 0.25000<br>predicted 0.66667, observed "
