"""Drift: values that are missing, rare or never seen, and the stability index against training."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dfm import jobs
from dfm.data.coded_rows import without_codes
from dfm.data.vocabulary import FeatureCounts
from dfm.distributed import publish
from dfm.errors import ModelError
from dfm.model.drift import FIRST_SPAN, FIRST_TOP, MOST_SEEN_BITS, OTHER_BIN, seen_bits, stability_index
from dfm.model.fm_model import FMModel
from dfm.workflow.data_check import Limits, drifted
from tests import reference
from tests.distributed.test_held_out import tables_of
from tests.support.small_jobs import in_process_client

N_ROWS, MIN_COUNT = 6_000, 4


def rows(seed: int, site: str = "s", missing: float = 0.1, n_rows: int = N_ROWS) -> pa.Table:
    """A column of few values and missing ones, one with as many rare values as rows have a tenth, one with forty that
    differ in frequency, a number.
    """
    rng = np.random.default_rng(seed)
    a = [None if rng.random() < missing else f"{site}{n}" for n in rng.integers(0, 8, n_rows)]
    rare = [f"once{seed}-{n}" if n % 10 == 0 else f"often{n % 3}" for n in range(n_rows)]
    price = np.where(rng.random(n_rows) < 0.2, np.nan, rng.lognormal(2, 1, n_rows))
    wide = [f"w{n}" for n in rng.permutation(np.repeat(np.arange(40), 2 * np.arange(40) + 1))]
    wide = [*wide[:n_rows], *["most"] * (n_rows - len(wide))]
    columns = {"a": a, "rare": rare, "wide": wide, "price": pa.array(price, from_pandas=True)}
    return pa.table({**columns, "label": rng.integers(0, 2, n_rows)})


@pytest.fixture(scope="module")
def model(client: Client, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("drift")
    (folder / "log").mkdir()
    pq.write_table(rows(1), folder / "log" / "0.parquet")
    schema = {"categorical": ["a", "rare", "wide"], "numeric": ["price"]}
    tables = tables_of(folder / "log", folder, schema=schema, data={"validation_fraction": 0})
    return jobs.train({**tables, "model": {"hash_bits": 22, "min_count": MIN_COUNT}}, client).model_url, folder


def found(url: str, data: Any, client: Client) -> dict[str, dict[str, Any]]:
    return {record["column"]: record for record in jobs.evaluate(url, data, client=client)["drift"]}


def check_columns(records: dict[str, dict[str, Any]], now: pa.Table, then: pa.Table) -> None:
    """Every share, and the index, is what counting values says."""
    for column in ("a", "rare", "wide"):
        expected = reference.drift(now[column].to_pylist(), then[column].to_pylist(), MIN_COUNT)
        assert {name: records[column][name] for name in expected} == pytest.approx(expected, rel=1e-12, abs=1e-15)
        assert records[column]["values"] == now.num_rows


def test_the_rows_of_training_have_not_drifted(model: tuple[str, Path], client: Client) -> None:
    url, folder = model
    records, log = found(url, str(folder / "log"), client), pq.read_table(folder / "log")
    check_columns(records, log, log)
    assert records["price"]["missing"] == records["price"]["training_missing"] == log["price"].null_count / N_ROWS
    for record in records.values():
        assert record["unseen"] == 0
        assert record["psi"] == 0


def test_rare_values_are_told_from_those_never_seen(model: tuple[str, Path], client: Client, tmp_path: Path) -> None:
    pq.write_table(rows(2), tmp_path / "0.parquet")
    records = found(model[0], str(tmp_path), client)
    assert records["rare"]["unseen"] == 0.1
    assert records["a"]["psi"] < 0.02
    check_columns(records, rows(2), rows(1))


def test_what_an_earlier_night_has_seen_is_not_new_to_the_next_one(
    model: tuple[str, Path], client: Client, tmp_path: Path
) -> None:
    """Rare values of the first night are too rare for parameters, and none of them came in the second."""
    url, folder = model
    pq.write_table(rows(6), tmp_path / "second.parquet")
    schema = {"categorical": ["a", "rare", "wide"], "numeric": ["price"]}
    tables = tables_of(tmp_path / "second.parquet", tmp_path, schema=schema, data={"validation_fraction": 0})
    tables |= {"model": {"hash_bits": 22, "min_count": MIN_COUNT}, "training": {"warm_start": url}}
    second = jobs.train(tables, client).model_url
    for log in (str(folder / "log"), str(tmp_path / "second.parquet")):
        assert found(second, log, client)["rare"]["unseen"] == 0
    assert found(second, rows(7), client)["rare"]["unseen"] == pytest.approx(0.1, abs=0.001)


def test_a_column_that_was_shifted_is_named_first(model: tuple[str, Path], client: Client, tmp_path: Path) -> None:
    now = rows(3, missing=0.5)
    pq.write_table(now, tmp_path / "0.parquet")
    records = found(model[0], str(tmp_path), client)
    assert next(iter(records)) == "a"
    assert records["a"]["psi"] > 0.5 > 0.1 > max(each["psi"] for name, each in records.items() if name != "a")
    check_columns(records, now, rows(1))
    pq.write_table(rows(3, site="new"), tmp_path / "0.parquet")
    check_columns(found(model[0], str(tmp_path), client), rows(3, site="new"), rows(1))
    dearer = rows(3).set_column(3, "price", pc.multiply(rows(3)["price"], 4.0))
    pq.write_table(dearer, tmp_path / "0.parquet")
    assert next(iter(found(model[0], str(tmp_path), client))) == "price"


def test_predicting_and_five_workers_tell_the_same(model: tuple[str, Path], client: Client, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        pq.write_table(rows(4 + number, n_rows=700), tmp_path / "in" / f"{number}.parquet")
    one = jobs.evaluate(model[0], str(tmp_path / "in"), client=client)["drift"]
    with in_process_client(5) as five:
        many = jobs.evaluate(model[0], str(tmp_path / "in"), client=five)["drift"]
        scored = jobs.predict(model[0], str(tmp_path / "in"), str(tmp_path / "out"), client=five)["drift"]
    here = jobs.evaluate(model[0], pq.read_table(tmp_path / "in"))["drift"]
    assert one == many == scored == here


def test_a_model_remembers_what_it_has_seen_as_far_as_that_is_small(model: tuple[str, Path], tmp_path: Path) -> None:
    loaded = FMModel.load(model[0])
    assert loaded.vocabulary.seen is not None
    assert loaded.vocabulary.seen.nbytes == 2**19
    loaded.save(str(tmp_path / "model"))
    again = FMModel.load(str(tmp_path / "model"))
    np.testing.assert_array_equal(again.vocabulary.seen, loaded.vocabulary.seen)
    assert again.parameters_sha256() == loaded.parameters_sha256()
    counts = FeatureCounts(np.array([0, 9], np.uint32), np.ones(2, np.int64), np.zeros(2, np.uint16))
    assert seen_bits(counts, 4) is not None
    assert np.flatnonzero(np.unpackbits(seen_bits(counts, 4))).tolist() == [0, 9]
    assert seen_bits(counts, MOST_SEEN_BITS + 1) is None
    (path,) = (tmp_path / "model").glob("seen-*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ModelError, match="checksum differs"):
        FMModel.load(str(tmp_path / "model"))


NUMBERS = ("height", "price", "flag", "rare flag", "version")


def numbers(seed: int, times: float = 1.0, missing: float = 0.1, n_rows: int = N_ROWS) -> pa.Table:
    """Numbers of a normal distribution, of one with a long tail, zeros and ones, of which 3 of 100, and a column of one
    value; the first once more, as numbers that are taken as they are.
    """
    rng = np.random.default_rng(seed)
    columns = {
        "height": rng.normal(170, 10, n_rows),
        "price": rng.lognormal(0, 2, n_rows),
        "flag": rng.integers(0, 2, n_rows).astype(np.float64),
        "rare flag": (rng.random(n_rows) < 0.03).astype(np.float64),
        "version": np.full(n_rows, 0.3),
    }
    gaps = {name: pa.array(times * each, mask=rng.random(n_rows) < missing) for name, each in columns.items()}
    return pa.table({**gaps, "plain": gaps["height"], "label": rng.integers(0, 2, n_rows)})


@pytest.fixture(scope="module")
def of_numbers(client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("numbers")
    pq.write_table(numbers(1), folder / "0.parquet")
    transforms = {**dict.fromkeys(NUMBERS, "standardize"), "plain": "raw"}
    schema = {"categorical": [], "numeric": [*NUMBERS, "plain"], "transforms": transforms}
    tables = tables_of(folder / "0.parquet", folder, schema=schema, data={"validation_fraction": 0})
    return jobs.train(tables, client).model_url


def index_of_numbers(now: pa.ChunkedArray, then: pa.ChunkedArray, known: Any) -> float:
    """The index over spans of numbers: between 15 quantiles or fewer and the mean, and farther than six deviations from
    it.
    """
    bounds = np.array(known.boundaries)
    bounds = bounds if len(bounds) <= 15 else bounds[[2 * n - 1 for n in range(1, 16)]]
    far = 6 * known.stdev or 1e-6
    inner = [*bounds, known.mean] if known.stdev else []

    def carried(x: Any) -> Any:
        """As features carry them, rounded."""
        return ((np.asarray(x) - known.mean) / (known.stdev or 1.0)).astype(np.float32)

    edges = np.unique(carried([*inner, known.mean - far, known.mean + far]))
    shares = []
    for column in (now, then):
        spans = 1 + np.searchsorted(edges, carried(column.drop_null()), side="right")
        shares.append(np.bincount([*spans, *[0] * column.null_count], minlength=20) / len(column))
    return stability_index(shares[0], shares[1])


def test_numbers_that_are_standardized_drift_by_what_they_are(of_numbers: str, client: Client) -> None:
    """Another sample has not drifted; one in another unit has, whatever the distribution."""
    known = FMModel.load(of_numbers).statistics
    for now in (numbers(1), numbers(2), numbers(2, 1.02), numbers(2, 0.5), numbers(3, 1000), numbers(3, -1)):
        records = found(of_numbers, now, client)
        for name in NUMBERS:
            expected = index_of_numbers(now[name], numbers(1)[name], known[name])
            assert records[name]["psi"] == pytest.approx(expected, abs=1e-12), name
    same, other, dearer = (found(of_numbers, numbers(*how), client) for how in ((1,), (2,), (2, 1000)))
    for name in NUMBERS:
        assert same[name]["psi"] == 0
        assert other[name]["psi"] < 0.05
        assert dearer[name]["psi"] > (0.25 if name == "rare flag" else 1), "of 3 of 100 rows no more can be told"
        assert dearer[name]["least_psi"] < 0.01


def test_two_values_are_told_apart_whatever_their_shares(of_numbers: str, client: Client) -> None:
    """Even where one is so rare that no quantile lies between them."""
    now, flags = numbers(2), np.random.default_rng(3).random(N_ROWS) < 0.3
    known, at = FMModel.load(of_numbers).statistics["rare flag"], now.column_names.index("rare flag")
    assert all(bound <= 0 for bound in known.boundaries)
    more = now.set_column(at, "rare flag", pa.array(flags.astype(np.float64), mask=np.arange(N_ROWS) % 10 == 0))
    assert found(of_numbers, more, client)["rare flag"]["psi"] > 0.5


def test_of_numbers_as_they_are_missing_ones_alone_are_known(of_numbers: str, client: Client) -> None:
    for now, least in ((numbers(2, 1000), 0.0), (numbers(2, missing=0.9), 3.5)):
        record = found(of_numbers, now, client)["plain"]
        assert record["psi"] is None
        assert record["least_psi"] == pytest.approx(least, abs=0.2)


def test_the_data_check_names_numbers_in_another_unit_and_those_that_are_gone(of_numbers: str, tmp_path: Path) -> None:
    model = FMModel.load(of_numbers)
    told = []
    for number, now in enumerate((numbers(2), numbers(2, 1000), numbers(2, missing=0.9))):
        pq.write_table(now, tmp_path / f"{number}.parquet")
        told.append("; ".join(drifted(str(tmp_path / f"{number}.parquet"), model, Limits())))
    assert told[0] == ""
    assert all(f"column '{name}' has drifted" in told[1] for name in NUMBERS)
    assert "plain" not in told[1]
    assert "column 'plain' has drifted from what the model was trained on: stability index at least 3." in told[2]


def test_a_model_that_did_not_tell_numbers_apart_says_of_them_what_it_knows(of_numbers: str) -> None:
    """So models of earlier versions: all numbers of a column were one value."""
    model = FMModel.load(of_numbers)
    sights = model.vocabulary.sights
    assert sights is not None
    for own in (FIRST_TOP, FIRST_TOP + 1, OTHER_BIN):  # all but the first where another column has the same index
        before = sights.copy()
        before[:, OTHER_BIN:] = 0
        before[:, own] = sights[:, OTHER_BIN:].sum(axis=1)
        earlier = dataclasses.replace(model, vocabulary=dataclasses.replace(model.vocabulary, sights=before))
        for now, least in ((numbers(2, 1000), 0.0), (numbers(2, missing=0.9), 3.5)):
            for record in jobs.evaluate(earlier, now)["drift"]:
                assert record["psi"] is None
                assert record["least_psi"] == pytest.approx(least, abs=0.2)


def test_telling_numbers_apart_copies_no_rows(of_numbers: str) -> None:
    """The same walk that counts entries does it, and needs the row of each alone, of 4 bytes."""
    model = FMModel.load(of_numbers)
    entries = model.encode(numbers(2).combine_chunks().to_batches()[0]).rows
    model.watcher.sights(entries)
    tracemalloc.start()
    model.watcher.sights(entries)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4.5 * len(entries.indices)


def test_numbers_are_told_apart_whether_or_not_rows_have_codes(of_numbers: str) -> None:
    """Numbers that are all 1 are rows like those of categories."""
    model = FMModel.load(of_numbers)
    ones = {name: pa.array([known.mean + known.stdev] * 600) for name, known in model.statistics.items()}
    rows = model.encode(pa.record_batch({**ones, "plain": pa.array([1.0] * 600)})).rows
    rows = dataclasses.replace(rows, values=np.zeros(0, np.float32))
    coded = without_codes(rows, len(NUMBERS) + 1)
    assert coded is not None
    found = model.watcher.sights(rows).counts
    assert (found[: len(NUMBERS), FIRST_SPAN:].sum(axis=1) == 600).all()
    np.testing.assert_array_equal(model.watcher.sights(coded).counts, found)


def test_numbers_are_counted_alike_on_any_number_of_workers(of_numbers: str, client: Client, tmp_path: Path) -> None:
    for number in range(3):
        pq.write_table(numbers(4 + number, 1.1, n_rows=700), tmp_path / f"{number}.parquet")
    one, here = (
        jobs.evaluate(of_numbers, data, client=client)["drift"] for data in (str(tmp_path), pq.read_table(tmp_path))
    )
    with in_process_client(5) as five:
        many = jobs.evaluate(of_numbers, str(tmp_path), client=five)["drift"]
    assert one == many == here


def test_the_stability_index_is_its_definition() -> None:
    now, before = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    assert stability_index(now, before) == pytest.approx(2 * 0.3 * np.log(2.5))
    assert stability_index(now, now) == 0
    assert np.isfinite(stability_index(np.array([1.0, 0.0]), np.array([0.0, 1.0])))


def test_a_driver_that_publishes_watches_workers_that_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask's own `gather` would wait for ever where they are gone."""
    told: list[Any] = []
    monkeypatch.setattr(publish, "_metadata", lambda *_: {})
    monkeypatch.setattr(publish, "_accumulators", lambda *_: ("growth",))
    monkeypatch.setattr(publish, "has_draws", lambda _: False)
    published = SimpleNamespace(warnings=(), parameters_sha256="sum")
    monkeypatch.setattr(
        publish, "publish_model", lambda blocks, vocabulary, *_: [told.append(vocabulary), published][1]
    )
    run: Any = SimpleNamespace(
        job=SimpleNamespace(output=SimpleNamespace(directory="out"), training=SimpleNamespace(is_exact=False)),
        inputs=SimpleNamespace(validation_tasks=[], plan=SimpleNamespace(replicas=[[["unit"]]])),
        order=SimpleNamespace(objective=SimpleNamespace(info=None)),
        watch=SimpleNamespace(submit=lambda *task: task, wait=lambda future: told.append(("waited", *future))),
        client=SimpleNamespace(gather=lambda futures: futures),
        tell=lambda _: None,
        work=None,
        shares_disk=False,
    )
    prepared: Any = SimpleNamespace(vocabulary="vocabulary", sights=["sights"], reading=None)
    trained: Any = SimpleNamespace(best=SimpleNamespace(blocks=[]), calibration=None)
    assert publish.save_model(run, prepared, trained) == "sum"
    remembered = publish.remember, "vocabulary", ["sights"]
    assert told == [("waited", *remembered), ("waited", "growth"), remembered]


def test_what_was_ever_seen_is_forgotten_where_chance_would_know_half_of_what_is_new() -> None:
    for n_before, n_known in ((100, 110), (200, 10)):
        tonight, before = (
            FeatureCounts(ids.astype(np.uint32), np.ones(len(ids), np.int64), np.zeros(len(ids), np.uint16))
            for ids in (np.arange(10), np.arange(10, 10 + n_before))
        )
        found = seen_bits(tonight, 8, seen_bits(before, 8))
        assert found is not None
        assert np.unpackbits(found).sum() == n_known
