"""Importance: the decisive column first and the useless one last, on any cluster."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from distributed import Client

import dfm
from dfm import jobs
from dfm.cli.app import cli
from dfm.cli.console import importance_table, wide_console
from dfm.data.draw import sampled
from dfm.data.encoding import encode_batch
from dfm.data.schema import ResolvedSchema, resolve
from dfm.distributed import importance
from dfm.errors import DataError, SettingsError
from dfm.estimators import FMClassifier
from dfm.events import faults_of
from dfm.model.importance import Sample, donors_of, without
from dfm.model.objective import LossInfo
from dfm.model.rows import batches_of
from dfm.settings.tables import Schema
from dfm.training import plan
from tests.distributed.test_held_out import tables_of, write_log
from tests.support.small_jobs import in_process_client
from tests.support.small_models import make_model, random_table

N_ROWS = 6_000


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clicks that "strong" decides, "weak" helps with and "noise" knows nothing of."""
    rng, folder = np.random.default_rng(3), tmp_path_factory.mktemp("planted") / "log"
    folder.mkdir()
    strong, weak, noise = (rng.integers(0, 10, N_ROWS) for _ in range(3))
    odds = rng.normal(size=10)[strong] * 2.0 + rng.normal(size=10)[weak] * 0.4
    label = (rng.random(N_ROWS) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    columns = {"noise": noise, "weak": weak, "strong": strong, "label": label}
    for number, rows in enumerate(np.array_split(np.arange(N_ROWS), 3)):
        pq.write_table(pa.table(columns).take(rows), folder / f"{number}.parquet", row_group_size=700)
    return folder


@pytest.fixture(scope="module")
def model(planted: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    schema = {"categorical": ["noise", "weak", "strong"]}
    return jobs.train(tables_of(planted, tmp_path_factory.mktemp("model"), schema=schema), client).model_url


@pytest.fixture(scope="module")
def found(planted: Path, model: str, client: Client) -> dict[str, Any]:
    return dfm.importance(model, str(planted), client=client)


def test_the_decisive_column_comes_first_and_the_useless_one_last(found: dict[str, Any]) -> None:
    assert [record["column"] for record in found["columns"]] == ["strong", "weak", "noise"]
    strong, weak, noise = found["columns"]
    assert strong["permuted"] > 0.2 > 10 * weak["permuted"] > 0
    assert strong["missing"] > 0.05
    assert abs(noise["permuted"]) < 0.003
    assert strong["permuted"] > 5 * strong["permuted_error"] > 0
    assert found["rows"] == N_ROWS


def test_the_rise_is_that_of_rows_whose_values_changed_places(planted: Path, model: str, found: dict[str, Any]) -> None:
    frame = pq.read_table(planted).to_pandas()
    assert found["loss"] == pytest.approx(jobs.evaluate(model, frame)["log_loss"], abs=1e-9)
    rng = np.random.default_rng(0)
    losses = [
        jobs.evaluate(model, frame.assign(strong=rng.permutation(frame.strong.to_numpy())))["log_loss"]
        for _ in range(5)
    ]
    assert found["columns"][0]["permuted"] == pytest.approx(np.mean(losses) - found["loss"], rel=0.1)
    empty = jobs.evaluate(model, frame.assign(strong=pa.nulls(N_ROWS).to_pandas()))["log_loss"]
    assert found["columns"][0]["missing"] == pytest.approx(empty - found["loss"], abs=1e-9)


def test_a_column_of_a_cross_takes_the_cross_with_it() -> None:
    rows = random_table(300)
    model = make_model({"categorical": ("site", "zone"), "numeric": ("visits",), "crosses": (("site", "zone"),)})
    found = dfm.importance(model, rows, repeats=2)
    plain = dfm.evaluate(model, rows)["log_loss"]
    for record in found["columns"]:
        at = rows.column_names.index(record["column"])
        without = rows.set_column(at, record["column"], pa.nulls(300, rows.schema.field(at).type))
        assert record["missing"] == pytest.approx(dfm.evaluate(model, without)["log_loss"] - plain, abs=1e-6)
    assert {"site", "zone", "visits"} == {record["column"] for record in found["columns"]}


@pytest.mark.parametrize("loss", [("quantile", "identity", 0.8), ("huber", "identity", 0.3), ("poisson", "exp", None)])
def test_a_model_of_another_loss_is_measured_by_that_one(loss: tuple[str, str, float | None]) -> None:
    rows = random_table(300)
    fields: dict[str, Any] = {"categorical": ("site", "zone"), "numeric": ("visits",)}
    model = dataclasses.replace(make_model(fields, task="regression"), loss=LossInfo(*loss))
    found = dfm.importance(model, rows, repeats=1)
    assert found["loss"] == pytest.approx(dfm.evaluate(model, rows)["loss"], rel=1e-12)
    for record in found["columns"]:
        at = rows.column_names.index(record["column"])
        without = rows.set_column(at, record["column"], pa.nulls(300, rows.schema.field(at).type))
        assert found["loss"] + record["missing"] == pytest.approx(dfm.evaluate(model, without)["loss"], rel=1e-9)


def test_any_cluster_finds_the_same(
    found: dict[str, Any], planted: Path, model: str, two_workers: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dfm.importance(model, str(planted), client=two_workers) == found
    monkeypatch.setattr(plan, "TASK_ROWS", 900)
    with in_process_client(5) as five:
        other = dfm.importance(model, str(planted), client=five)
    assert [each["column"] for each in other["columns"]] == [each["column"] for each in found["columns"]]
    for ours, theirs in zip(found["columns"], other["columns"], strict=True):
        assert theirs["permuted"] == pytest.approx(ours["permuted"], abs=1e-9)


def test_a_matrix_has_no_gaps_and_no_pairs_of_fields_to_be_measured(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None instead of a figure that no row was scored for."""
    rng = np.random.default_rng(0)
    table = pa.table({name: rng.normal(size=400) for name in ("strong", "noise")})
    table = table.append_column("label", pa.array((table["strong"].to_numpy() > 0).astype(np.int64)))
    model = FMClassifier(n_epochs=3).fit(table.drop_columns(["label"]).to_pandas(), table["label"].to_numpy()).model_
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=150)
    here = dfm.importance(model, table)
    there = dfm.importance(model, str(tmp_path / "rows.parquet"), client=client)
    for found in (here, there):
        assert [record["column"] for record in found["columns"]] == ["strong", "noise"]
        assert [record["missing"] for record in found["columns"]] == [None, None]
        assert found["columns"][0]["permuted"] > 0.1
        assert found["pairs"] == []
        assert "columns of a matrix are one field" in found["pairs_left_out"]
    wide_console().print(importance_table(there))
    assert any("strong" in line and " - " in line for line in capsys.readouterr().out.splitlines())


def test_fields_that_act_together_are_the_strongest_pair(client: Client, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", c=[f"c{n % 5}" for n in range(N_ROWS)])
    tables = tables_of(log, tmp_path, schema={"categorical": ["a", "b", "c"]}, training={"n_epochs": 6})
    tables["model"] = {"hash_bits": 12, "family": "fwfm"}
    first, *others = dfm.importance(jobs.train(tables, client).model_url, str(log), rows=500, client=client)["pairs"]
    assert {first["first"], first["second"]} == {"a", "b"}
    assert first["strength"] > 5 * max(each["strength"] for each in others)
    assert abs(first["r"]) > max(abs(each["r"]) for each in others)


def test_a_part_of_the_rows_is_spread_over_the_data(planted: Path, model: str, client: Client) -> None:
    some = dfm.importance(model, str(planted), rows=900, repeats=1, client=client)
    assert 850 <= some["rows"] <= 950
    assert some["columns"][0]["column"] == "strong"
    assert some["columns"][0]["permuted_error"] is None
    batch = pa.record_batch({"a": list(range(100))})
    drawn = sampled(batch, 0.1, "there").column("a").to_pylist()
    assert len(drawn) == 10 == len({*drawn})
    assert sampled(batch, 0.1, "there").column("a").to_pylist() == drawn == sorted(drawn)
    assert sampled(batch, 0.1, "elsewhere").column("a").to_pylist() != drawn


def test_batches_that_are_scored_together_are_permuted_one_by_one() -> None:
    texts = [pa.array(["a", "b", None]).dictionary_encode(), pa.array(["c", "a"]).dictionary_encode()]
    parts = [
        (place, pa.record_batch({"text": text, "number": list(range(len(text)))}))
        for place, text in zip(("here", "there"), texts, strict=True)
    ]
    both, donors = Sample.joined(parts), donors_of([batch for _, batch in parts], ["text", "number"])
    assert both.data.to_pydict() == {"text": ["a", "b", None, "c", "a"], "number": [0, 1, 2, 0, 1]}
    for column, repeat in (("text", 0), ("number", 1)):
        alone = [Sample.joined([part]).permuted(column, repeat, donors).to_pydict() for part in parts]
        expected = {name: [*alone[0][name], *alone[1][name]] for name in ("text", "number")}
        assert both.permuted(column, repeat, donors).to_pydict() == expected


def test_a_number_whose_text_means_a_missing_value_stays_a_number_in_changed_rows() -> None:
    """Three texts and a number, as rows of Python have them, beside the same rows with nothing to look up."""
    schema = resolve(Schema(categorical=("a",), missing=("0",)), ["label", "a"])
    (mixed,) = batches_of({"a": ["7", 0, "0", "b"]}, ("a",), (), schema.missing)
    told = pa.record_batch({"a": ["7", "0", None, "b"]})
    plain = dataclasses.replace(schema, missing=())

    def indices(rows: list[pa.RecordBatch], by: ResolvedSchema) -> list[list[int]]:
        both = Sample.joined([(f"{n}", each) for n, each in enumerate(rows)])
        changed = [both.data, both.permuted("a", 0, donors_of(rows, ["a"])), without(both.data, "a")]
        return [encode_batch(each, by, 18, {}, None).rows.indices.tolist() for each in changed]

    for n in (1, 2):
        assert indices([mixed] * n, schema) == indices([told] * n, plain)


def test_a_column_that_files_are_cut_by_is_as_important_as_ever(
    planted: Path, model: str, found: dict[str, Any], client: Client, tmp_path: Path
) -> None:
    """As in the folders of Hive, or a file for each customer: the column has one value in each of them."""
    table = pq.read_table(planted)
    for value in range(10):
        own = table.filter(pc.equal(table.column("strong"), value))
        folder = tmp_path / f"strong={value}"
        folder.mkdir()
        pq.write_table(own.drop_columns(["strong"]), folder / "0.parquet")
    cut = dfm.importance(model, str(tmp_path), client=client)
    assert cut["loss"] == pytest.approx(found["loss"])
    for ours, theirs in zip(found["columns"], cut["columns"], strict=True):
        assert ours["column"] == theirs["column"]
        assert theirs["permuted"] == pytest.approx(ours["permuted"], rel=0.15, abs=0.003)


def test_values_come_from_rows_of_all_batches_each_once_where_they_suffice() -> None:
    parts = [(f"{n}", pa.record_batch({"a": [n] * 50})) for n in range(4)]
    donors = donors_of([batch for _, batch in parts], ["a"])
    drawn = Sample.joined(parts).permuted("a", 0, donors).column("a").to_pylist()
    assert {*drawn[:50]} == {*drawn[150:]} == {0, 1, 2, 3}
    whole = pa.record_batch({"a": list(range(100))})
    permuted = Sample.joined([("x", whole)]).permuted("a", 0, donors_of([whole], ["a"])).column("a").to_pylist()
    assert permuted != sorted(permuted) == list(range(100))
    few = donors_of([whole.slice(0, 3)], ["a"])
    assert {*Sample.joined([("x", whole)]).permuted("a", 0, few).column("a").to_pylist()} == {0, 1, 2}


def test_donors_of_types_that_do_not_go_together_are_of_the_first_one() -> None:
    arrays = [pa.array([1, 2]), pa.array(["3"]), pa.array([4], pa.int64()), pa.array(["5"]).dictionary_encode()]
    batches = [pa.record_batch({"a": array}) for array in arrays]
    assert donors_of(batches, ["a"])["a"].to_pylist() == [1, 2, 4]
    assert donors_of([batches[0], pa.record_batch({"a": pa.array([7], pa.int8())})], ["a"])["a"].to_pylist() == [
        1,
        2,
        7,
    ]
    lists = [pa.array([["x"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))) for _ in range(2)]
    assert donors_of([pa.record_batch({"a": array}) for array in lists], ["a"])["a"].to_pylist()[0] == ["x"]


def test_categories_of_one_byte_from_many_batches_are_joined() -> None:
    """As pandas writes them: codes of one byte are too few for the values of two. A dictionary may hold a null."""
    batches = [[f"{name}{n}" for n in range(100)] for name in "ab"]
    narrow = [pa.array(texts).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string())) for texts in batches]
    with_null = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), pa.array(["c", None]))
    parts = [(f"{n}", pa.record_batch({"text": array})) for n, array in enumerate([*narrow, with_null])]
    assert Sample.joined(parts).data.column("text").to_pylist() == [*batches[0], *batches[1], "c", None]


def test_shards_of_other_types_and_lists_of_categories_are_measured_as_alone(
    planted: Path, model: str, found: dict[str, Any], client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that cannot be joined are scored one by one: of other types, and where Arrow refuses."""
    for number, shard in enumerate(sorted(planted.glob("*.parquet"))):
        table = pq.read_table(shard)
        texts = table.column("strong").cast(pa.string())
        table = table.set_column(2, "strong", texts) if number == 1 else table
        pq.write_table(table, tmp_path / shard.name, row_group_size=700)
    refused: list[int] = []
    joined = Sample.joined

    def not_many(parts: Any) -> Sample:
        if refuses and len(parts) > 1:
            refused.append(len(parts))
            raise pa.ArrowNotImplementedError("concatenation of such lists")
        sizes.append(len(parts))
        return joined(parts)

    monkeypatch.setattr(Sample, "joined", not_many)
    rise = {each["column"]: each["missing"] for each in found["columns"]}
    sizes: list[int] = []
    for refuses in (False, True):
        sizes.clear()
        with in_process_client(1) as own:
            other = dfm.importance(model, str(tmp_path), client=own)
        assert {each["column"]: each["missing"] for each in other["columns"]} == pytest.approx(rise, abs=1e-9)
        assert sizes == ([1] * 9 if refuses else [3, 3, 3])
    assert refused == [3, 3, 3]


def test_how_many_are_scored_together_changes_nothing(
    planted: Path, model: str, found: dict[str, Any], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "_TOGETHER", 1)
    other = dfm.importance(model, str(planted), client=client)
    for ours, theirs in zip(found["columns"], other["columns"], strict=True):
        assert theirs == {name: pytest.approx(value, abs=1e-9) for name, value in ours.items()}


def test_rows_in_memory_are_measured_too(planted: Path, model: str) -> None:
    found = dfm.importance(model, pq.read_table(planted).to_pandas(), repeats=1)
    assert [record["column"] for record in found["columns"]] == ["strong", "weak", "noise"]
    table = pq.read_table(planted)
    assert dfm.importance(model, table.to_reader(700), repeats=1) == dfm.importance(model, table, repeats=1)


def test_bad_rows_that_are_left_out_are_counted(planted: Path, model: str, client: Client, tmp_path: Path) -> None:
    """All of them, also where few of the rows are measured."""
    for number, shard in enumerate(sorted(planted.glob("*.parquet"))):
        table = pq.read_table(shard)
        labels = np.where(np.arange(len(table)) < number, 7, table["label"].to_numpy())
        pq.write_table(table.set_column(3, "label", pa.array(labels)), tmp_path / shard.name)
    found = dfm.importance(model, str(tmp_path), on_bad_rows="skip", rows=900, repeats=1, client=client)
    (reason,) = found["account"]["reasons"]
    assert found["account"] == {"read": N_ROWS, "good": N_ROWS - 3, "rejected": 3, "reasons": {reason: 3}}
    assert reason.startswith("label: ")
    here = dfm.importance(model, pq.read_table(tmp_path), on_bad_rows="skip", rows=900, repeats=1)
    assert here["account"] == found["account"]
    arguments = ["importance", model, str(tmp_path), "--repeats", "1", "--on-bad-rows", "skip"]
    shown = [*arguments, "--scheduler", client.scheduler.address]
    told = CliRunner().invoke(cli, shown, standalone_mode=False, catch_exceptions=False).output
    assert f"3 of 6,000 rows to measure on left out as bad: {reason} (3)" in told


def test_bad_rows_and_bad_wishes_are_told(model: str) -> None:
    rows = {"noise": [1], "weak": [1], "strong": [2], "label": [7]}
    with pytest.raises(DataError, match="label"):
        dfm.importance(model, rows)
    with pytest.raises(DataError, match="no row is left"):
        dfm.importance(model, rows, on_bad_rows="skip")
    with pytest.raises(SettingsError, match="repeats = 0 is not legal"):
        dfm.importance(model, rows, repeats=0)


def test_the_command_line_draws_bars(planted: Path, model: str, client: Client) -> None:
    arguments = ["importance", model, str(planted), "--repeats", "1", "--scheduler", client.scheduler.address]
    shown = CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False).output
    lines = [line for line in shown.splitlines() if "█" in line]
    assert "strong" in lines[0]
    assert any(" x " in line for line in lines), "the strongest pairs have bars, too"
    told = CliRunner().invoke(cli, [*arguments, "--json"], standalone_mode=False, catch_exceptions=False).output
    (line,) = [json.loads(line) for line in told.splitlines() if '"importance"' in line and "progress" not in line]
    assert faults_of(line) == []
