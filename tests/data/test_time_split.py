"""Dates that do not sort as text are refused, and those that do are not."""

from __future__ import annotations

import pyarrow as pa
import pytest

from dfm.data.time_split import at_or_after
from dfm.errors import DataError

OTHER_ORDERS = [
    "26.11.2026",
    "11/26/2026",
    "1/2/26",
    "26-11-2026",
    "1. 2. 2026",
    "2026-9-1",
    "2026/11/1",
    "26 Nov 2026",
]
OTHER_ORDERS += ["26-Nov-2026", "Nov 26, 2026", "November 6 2026", "Thursday, 26 November 2026", "26.11.2026 10:00"]
SORTED = ["2026/11/26", "2026.11.26", "2026-W48", "2026-11", "night-07", "week 12", "v1.2.3", "2026/11/26 10:00", "a 1"]


@pytest.mark.parametrize("text", OTHER_ORDERS)
def test_a_date_in_another_order_is_refused_as_bound_and_as_value(text: str) -> None:
    message = r"compared as text, by which dates like .* do not sort by time .*; write dates as YYYY-MM-DD"
    for values in (pa.array([text, None]), pa.array([text]).dictionary_encode(), pa.array([text], pa.large_string())):
        with pytest.raises(DataError, match=message):
            at_or_after(values, text, "when")
        with pytest.raises(DataError, match=message):
            at_or_after(values, "week 7", "when")
    with pytest.raises(DataError, match=message):
        at_or_after(pa.array(["week 7"]), text, "when")
    with pytest.raises(DataError, match="write both the same way"):
        at_or_after(pa.array([text]), "2026-11-26", "when")


@pytest.mark.parametrize("text", SORTED)
def test_text_that_sorts_by_time_is_compared_as_text(text: str) -> None:
    assert at_or_after(pa.array([text, "0", None]), text, "when").to_pylist() == [True, False, False]
