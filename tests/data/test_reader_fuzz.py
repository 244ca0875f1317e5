"""Readers under fire: mutated files never end the process, hang or lie; random tables read as their definition says."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm.data.chunks import hash_units
from dfm.data.hashed_rows import HashedRows
from dfm.data.parquet import Unit, describe_shard
from dfm.data.partition import SparsePartition
from dfm.data.preparation import load_slices
from dfm.data.reading import Reading
from dfm.data.row_lookup import RowLookup
from dfm.data.schema import Schema, resolve
from dfm.data.vocabulary import build_vocabulary, merge_counts
from tests.support.shards import write_shard
from tests.support.tokens import bucket, category

ROOT = Path(__file__).parents[2]
SECONDS_FOR_ONE = 0.1
"""Far more than a mutated file takes; a process that is still busy after all of them hangs."""


def fuzz(folder: Path, first: int, count: int) -> Counter[str]:
    """Outcomes of the mutations first, first + 1, …, each in one process that must survive them all."""
    command = [sys.executable, "-m", "tests.support.fuzz_parquet", str(folder), str(first), str(count)]
    limit = 120 + SECONDS_FOR_ONE * count
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode()
        pytest.fail(f"reading hangs at mutation {output.split()[-1:] or 'none'}")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"exit code {done.returncode} at mutation {lines[-1:]}: {done.stderr[-2000:]}"
    return Counter(json.loads(lines[-1]))


def test_mutated_files_are_refused_or_read_as_they_are_and_never_end_the_process(tmp_path: Path) -> None:
    outcomes = fuzz(tmp_path, 0, 700)
    assert sum(outcomes.values()) == 700
    assert outcomes["refused"] > 300
    assert outcomes["read as it is now"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("block", range(6))
def test_many_more_mutated_files(tmp_path: Path, block: int) -> None:
    assert sum(fuzz(tmp_path, 1_000_000 * (block + 1), 10_000).values()) == 10_000


def test_a_code_outside_its_dictionary_is_refused(tmp_path: Path) -> None:
    """Mutation 15 makes the dictionary of a page shorter than its codes; Arrow hands such codes on."""
    assert fuzz(tmp_path, 15, 1) == {"refused": 1}


@pytest.mark.parametrize("mutation", [2001734, 4002942, 5007625, 1007863])
def test_row_groups_that_hold_less_than_nothing_or_not_what_the_file_does_are_refused(
    tmp_path: Path, mutation: int
) -> None:
    """Mutations of the footer: -2147483648, -87, -64 and 0 rows where there were 64."""
    assert fuzz(tmp_path, mutation, 1) == {"refused": 1}


# ------------------------------------------------------------------------------------ tables by their definition ----

BITS = 12
TEXTS = st.sampled_from(["", "a", "b", "ab", "5", "5.5", "é", "x" * 300])
WHOLE = st.integers(-3, 90)
KINDS: dict[str, dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]]] = {
    "label": {
        "int": (pa.int8(), st.sampled_from([0, 1, 1, 0, 2, None])),
        "float": (pa.float64(), st.sampled_from([0.0, 1.0, None, math.nan, math.inf, 0.5])),
        "text": (pa.string(), st.sampled_from(["0", "1", " 1 ", "", "yes", None])),
        "bool": (pa.bool_(), st.sampled_from([True, False, None])),
    },
    "w": {
        "float": (pa.float32(), st.sampled_from([1.0, 0.0, 2.5, -1.0, math.nan, None])),
        "int": (pa.int64(), st.sampled_from([0, 1, 7, -7])),
        "text": (pa.string(), st.sampled_from(["1", "0.5", "-2", "heavy", None])),
    },
    "C": {
        "text": (pa.string(), st.none() | TEXTS),
        "large": (pa.large_string(), st.none() | TEXTS),
        "dictionary": (pa.dictionary(pa.int16(), pa.string()), st.none() | TEXTS),
        "int": (pa.int32(), st.none() | WHOLE),
        "float": (pa.float64(), st.none() | WHOLE.map(float) | st.just(math.nan)),
        "null": (pa.null(), st.none()),
    },
    "I": {
        "float": (pa.float64(), st.sampled_from([None, 0.0, -1.5, 1.0, 2.0, 3.0, 1e9, math.nan, -math.inf])),
        "int": (pa.int64(), st.none() | WHOLE),
        "text": (pa.string(), st.sampled_from(["", "7", " 7", "1e3", "many", "1_0", "nan", None])),
        "null": (pa.null(), st.none()),
    },
    "L": {
        "text": (pa.list_(pa.string()), st.none() | st.lists(st.none() | TEXTS, max_size=3)),
        "int": (pa.large_list(pa.int64()), st.none() | st.lists(st.none() | WHOLE, max_size=3)),
    },
}
Row = Mapping[str, Any]


@st.composite
def shard_tables(draw: st.DrawFn) -> list[tuple[pa.Table, list[dict[str, Any]], int]]:
    """Up to three shards of one job: their tables, rows in plain Python, and row group sizes; types differ too."""
    shards = []
    for _ in range(draw(st.integers(1, 3))):
        chosen = {name: kinds[draw(st.sampled_from(sorted(kinds)))] for name, kinds in KINDS.items()}
        rows = draw(
            st.lists(st.fixed_dictionaries({name: values for name, (_, values) in chosen.items()}), max_size=25)
        )
        arrays = {name: pa.array([row[name] for row in rows], kind) for name, (kind, _) in chosen.items()}
        shards.append((pa.table(arrays), rows, draw(st.integers(1, 9))))
    return shards


def number(value: Any) -> float | None:
    """A number as it is meant, None where it is missing, NaN where it is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        try:
            return math.nan if "_" in value else float(value)
        except ValueError:
            return math.nan
    return float(value)


def reason(row: Row) -> str:
    """The column that makes the row a bad one, or nothing."""
    label, weight, numeric = number(row["label"]), number(row["w"]), number(row["I"])
    if label not in (0.0, 1.0):
        return "label"
    if weight is None or not 0.0 <= weight < math.inf:
        return "w"
    return "I" if numeric is not None and not abs(numeric) < math.inf else ""


def text(value: Any) -> str | None:
    """A category as text; NaN is missing."""
    if isinstance(value, float):
        return None if math.isnan(value) else f"{value:.0f}"
    return None if value is None else str(value)


def code(value: Any) -> int:
    """The bucket of a number."""
    x = number(value)
    if x is None:
        return 0
    if x <= 0:
        return 1 if x < 0 else 2
    return 3 if x <= 1 else 4 if x <= 2 else 5 + math.floor(math.log(x) ** 2)


def meaning(row: Row) -> tuple[float, float, tuple[tuple[int, float], ...]]:
    """Label, weight and entries of a good row, by the definition."""
    listed = row["L"] or [None]
    value = float(np.float32(1 / math.sqrt(len(listed))))
    entries = [
        (category("C", text(row["C"]), BITS), 1.0),
        (bucket("I", code(row["I"]), BITS), 1.0),
        *((category("L", text(element), BITS), value) for element in listed),
    ]
    return float(number(row["label"]) or 0.0), float(np.float32(number(row["w"]))), tuple(entries)


def found(rows: HashedRows) -> list[tuple[float, float, tuple[tuple[int, float], ...]]]:
    """The same of hashed rows."""
    flat = list(zip(rows.indices.tolist(), rows.values.tolist(), strict=True))
    entries = [tuple(flat[start:stop]) for start, stop in itertools.pairwise(rows.indptr)]
    return list(zip(rows.labels.tolist(), rows.weights.tolist(), entries, strict=True))


def summed(entries: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Entries by index; what shares an index is added up."""
    sums: Counter[int] = Counter()
    for index, value in entries:
        sums[index] += value
    return tuple(sorted((index, round(value, 4)) for index, value in sums.items()))


def found_in(partition: SparsePartition, ids: np.ndarray) -> list[tuple[float, float, tuple[tuple[int, float], ...]]]:
    """The same of a partition whose vocabulary knows every feature."""
    implicit = int(partition.indptr[partition.n_implicit])
    values = [1.0] * implicit + partition.values.tolist()
    features = ids[partition.features[partition.indices]].tolist()
    flat = list(zip(features, values, strict=True))
    entries = [summed(flat[start:stop]) for start, stop in itertools.pairwise(partition.indptr)]
    return list(zip(partition.labels.tolist(), partition.weights.tolist(), entries, strict=True))


@given(shard_tables(), st.integers(1, 5), st.integers(0, 3), st.data())
@settings(max_examples=80)
def test_random_tables_read_as_their_definition_says(
    tables: list[tuple[pa.Table, list[dict[str, Any]], int]], n_slices: int, seed: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        schema = resolve(Schema(weight="w", categorical=["C"], numeric=["I"], lists=["L"]), list(KINDS))
        reading = Reading(schema, BITS, "classification", on_bad_rows="skip", cache=f"{folder}/cache")
        tasks, chosen = [], []
        for number_, (table, rows, row_group_size) in enumerate(tables):
            shard = describe_shard(write_shard(Path(folder) / f"{number_}.parquet", table, row_group_size))
            cut = data.draw(st.integers(0, len(rows)))
            tasks.append([Unit(shard, 0, cut), Unit(shard, cut, len(rows))])
            chosen.append(rows)
        expected = [[meaning(row) for row in rows if not reason(row)] for rows in chosen]
        for units, rows, good in zip(tasks, chosen, expected, strict=True):
            chunk = hash_units(reading, units, 1, None)
            account = chunk.account
            bad = Counter(reason(row) for row in rows if reason(row))
            assert (account.read, account.accepted, account.rejected) == (len(rows), len(good), bad.total())
            assert Counter({name: n for name, n in _by_column(account).items()}) == bad
            assert account.label_sum == sum(label for label, _, _ in good)
            assert found(chunk.rows) == good
        dealt = [hash_units(reading, units, n_slices, (seed, number)) for number, units in enumerate(tasks)]
        counts = merge_counts([chunk.counts for chunk in dealt], BITS)
        vocabulary = build_vocabulary(counts, [entry.name for entry in schema.fields], BITS, 1, 1)
        slices = load_slices(reading, tasks, n_slices, (seed,), vocabulary, f"{seed}", RowLookup(vocabulary))
        rows_of_slices = Counter(row for part in slices for row in found_in(part, vocabulary.ids))
        assert rows_of_slices == Counter((label, w, summed(entries)) for good in expected for label, w, entries in good)
        sizes = [part.n_rows for part in slices]
        assert len(sizes) == n_slices
        assert max(sizes) - min(sizes) <= len(tasks)


def _by_column(account: Any) -> dict[str, int]:
    tally: Counter[str] = Counter()
    for rejection in account.rejections:
        tally[rejection.column] += rejection.count
    return dict(tally)
