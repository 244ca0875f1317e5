"""Shards are scored in order, row by row, with the columns that were asked for; metrics agree with the predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dfm import jobs
from dfm.data.parquet import find_shards
from dfm.data.schema import resolve
from dfm.distributed import predict, scoring
from dfm.distributed.cluster.watch import Watch
from dfm.errors import DataError, ModelError, SettingsError, StorageError
from dfm.model.fm_model import FMModel
from dfm.settings.tables import Schema
from dfm.storage.ownership import Ledger
from dfm.training import plan
from tests.support.small_jobs import LAST_DAY, in_process_client, job_tables, read_log
from tests.support.small_models import model_of_schema, random_table, turned


@pytest.fixture(scope="module")
def model(log: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where a model of one epoch lies."""
    job = job_tables(log, tmp_path_factory.mktemp("model"), training={"n_epochs": 1})
    return jobs.train(job, client).model_url


def read_parts(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


def test_predictions_stand_beside_all_input_columns_in_order(
    log: Path, model: str, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "TASK_ROWS", 900)
    told: list[dict[str, Any]] = []
    summary = jobs.predict(model, str(log), str(tmp_path / "scored"), client=client, on_event=told.append)
    expected = read_log(log)
    written = read_parts(tmp_path / "scored")
    assert len(list((tmp_path / "scored").glob("part-*.parquet"))) == 8
    assert written.column_names == [*expected.column_names, "prediction"]
    assert written.drop_columns("prediction").to_pylist() == expected.to_pylist()
    np.testing.assert_array_equal(written["prediction"].to_numpy(), FMModel.load(model).predict(expected))
    assert {record["column"] for record in summary.pop("drift")} == set(FMModel.load(model).schema.columns)
    assert summary == {
        "output": str(tmp_path / "scored"),
        "rows": 8000,
        "predicted": 8000,
        "rejected": 0,
        "reasons": {},
    }
    assert told[-1] == {"event": "progress", "stage": "predict", "done": 8000, "total": 8000}


def test_success_is_written_and_says_how_many(log: Path, model: str, client: Client, tmp_path: Path) -> None:
    jobs.predict(model, str(log / f"day={LAST_DAY}"), str(tmp_path), client=client)
    marker = json.loads((tmp_path / "_SUCCESS").read_text())
    assert marker == {"rows": 2000, "predicted": 2000, "rejected": {}, "parts": 1}


def test_only_the_columns_asked_for_are_kept(log: Path, model: str, client: Client, tmp_path: Path) -> None:
    jobs.predict(model, str(log / f"day={LAST_DAY}"), str(tmp_path), keep=["day", "C3"], client=client)
    written = read_parts(tmp_path)
    assert written.column_names == ["day", "C3", "prediction"]
    assert written["C3"].to_pylist() == read_log(log, LAST_DAY)["C3"].to_pylist()


def test_a_column_to_keep_that_is_not_there_is_named(log: Path, model: str, client: Client, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'user'"):
        jobs.predict(model, str(log), str(tmp_path), keep=["user"], client=client)
    assert list(tmp_path.iterdir()) == []


def test_rows_under_two_names_are_counted_once_or_refused(
    log: Path, model: str, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "again").symlink_to(log)
    twice = [str(log), str(tmp_path / "again")]
    for ask in (
        lambda: jobs.evaluate(model, twice, client=client),
        lambda: jobs.importance(model, twice, client=client),
        lambda: jobs.predict(model, twice, str(tmp_path / "scored"), client=client),
    ):
        with pytest.raises(
            DataError, match=r"again/.*\.parquet is the same file as .* would count twice; leave it out"
        ):
            ask()
    assert not (tmp_path / "scored").exists()
    assert jobs.evaluate(model, [str(log), str(log)], client=client)["rows"] == 8000


def write_shards(folder: Path, *tables: pa.Table) -> str:
    folder.mkdir()
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"shard-{number}.parquet")
    return str(folder)


@pytest.mark.parametrize("task_rows", [1, 10_000], ids=["a part for each shard", "one part"])
def test_shards_that_differ_are_written_with_one_schema(
    task_rows: int, log: Path, model: str, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "TASK_ROWS", task_rows)
    rows = read_log(log, LAST_DAY).slice(0, 20)
    first = rows.append_column("note", pa.nulls(20)).append_column("user", pa.array(range(20), pa.int32()))
    second = rows.append_column("user", pa.array(range(2**40, 2**40 + 20)))
    second = second.append_column("note", pa.array(["text"] * 20)).append_column("only here", pa.array([1.5] * 20))
    second = second.select(sorted(second.column_names, reverse=True))
    data = write_shards(tmp_path / "rows", first, second)
    jobs.predict(model, data, str(tmp_path / "scored"), client=client)
    parts = [pq.ParquetFile(path) for path in sorted((tmp_path / "scored").glob("part-*.parquet"))]
    names = [*first.column_names, "only here", "prediction"]
    assert {tuple(part.schema_arrow.names) for part in parts} == {tuple(names)}
    assert len({part.schema_arrow for part in parts}) == 1
    written = pa.concat_tables(part.read() for part in parts)
    assert written["user"].type == pa.int64()
    expected = pa.concat_tables([first, second], promote_options="permissive")
    assert written.drop_columns("prediction").to_pylist() == expected.to_pylist()
    scores = FMModel.load(model).predict(rows)
    np.testing.assert_array_equal(written["prediction"].to_numpy(), np.concatenate([scores, scores]))


def test_types_that_do_not_meet_are_told_before_anything_is_written(
    log: Path, model: str, client: Client, tmp_path: Path
) -> None:
    rows = read_log(log, LAST_DAY).slice(0, 5)
    tables = [rows.append_column("user", pa.array(values)) for values in ([None] * 5, [1] * 5, ["ann"] * 5)]
    data = write_shards(tmp_path / "rows", *tables)
    conflict = r"'user' is int64 in \S+shard-1\.parquet, but string in \S+shard-2\.parquet.*leave the column out"
    with pytest.raises(SettingsError, match=conflict):
        jobs.predict(model, data, str(tmp_path / "scored"), client=client)
    assert not (tmp_path / "scored").exists()
    jobs.predict(model, data, str(tmp_path / "scored"), keep=["C1"], client=client)
    assert read_parts(tmp_path / "scored").num_rows == 15


def test_a_number_too_large_for_the_common_type_names_its_shard(
    log: Path, model: str, client: Client, tmp_path: Path
) -> None:
    rows = read_log(log, LAST_DAY).slice(0, 5)
    tables = [rows.append_column("user", pa.array(values)) for values in ([0.5] * 5, [2**60 + 1] * 5)]
    with pytest.raises(DataError, match=r"shard-1\.parquet: column 'user' is int64 and does not fit double"):
        jobs.predict(model, write_shards(tmp_path / "rows", *tables), str(tmp_path / "scored"), client=client)


def test_an_earlier_prediction_is_scored_again_only_without_its_predictions(
    log: Path, model: str, client: Client, tmp_path: Path
) -> None:
    jobs.predict(model, str(log / f"day={LAST_DAY}"), str(tmp_path / "once"), client=client)
    with pytest.raises(SettingsError, match=r"part-00000\.parquet already has a column 'prediction'.*--keep"):
        jobs.predict(model, str(tmp_path / "once"), str(tmp_path / "twice"), client=client)
    assert not (tmp_path / "twice").exists()
    jobs.predict(model, str(tmp_path / "once"), str(tmp_path / "twice"), keep=["day"], client=client)
    assert read_parts(tmp_path / "twice").equals(read_parts(tmp_path / "once").select(["day", "prediction"]))


def test_a_column_of_the_wrong_type_is_told_with_its_shard(
    log: Path, model: str, client: Client, tmp_path: Path
) -> None:
    rows = read_log(log, LAST_DAY).slice(0, 5)
    lists = rows.set_column(rows.column_names.index("C3"), "C3", pa.array([["a"]] * 5))
    data = write_shards(tmp_path / "rows", lists)
    with pytest.raises(DataError, match=r"shard-0\.parquet: column 'C3' holds lists"):
        jobs.predict(model, data, str(tmp_path / "scored"), keep=["C1"], client=client)
    with pytest.raises(DataError, match=r"shard-0\.parquet: column 'C3' holds lists"):
        jobs.evaluate(model, data, client=client)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers count as running on other machines, and cannot load a model by its path."""

    def load(edition: scoring.Edition, options: str) -> FMModel:
        raise ModelError(f"no model at {edition.url}")

    for each in (predict, scoring):
        monkeypatch.setattr(each, "shares_disk", lambda client: False)
    monkeypatch.setattr(scoring, "_loaded", load)


@pytest.mark.usefixtures("elsewhere")
def test_workers_elsewhere_do_not_write_to_a_path_of_this_machine(
    log: Path, model: str, client: Client, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=rf"own disks; name a URL \(s3://…\), or file://{tmp_path}/scored"):
        jobs.predict(model, str(log), str(tmp_path / "scored"), client=client)
    assert not (tmp_path / "scored").exists()


@pytest.mark.usefixtures("elsewhere")
def test_workers_elsewhere_get_the_model_sent_and_write_to_a_folder_that_is_said_to_be_shared(
    log: Path, model: str, client: Client, tmp_path: Path
) -> None:
    day = str(log / f"day={LAST_DAY}")
    summary = jobs.predict(model, day, f"file://{tmp_path}/scored", client=client)
    assert summary["output"] == f"file://{tmp_path}/scored"
    expected = FMModel.load(model).predict(read_log(log, LAST_DAY))
    np.testing.assert_array_equal(read_parts(tmp_path / "scored")["prediction"].to_numpy(), expected)
    assert jobs.evaluate(model, day, client=client)["rows"] == 2000


@pytest.fixture
def replaced(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], str]:
    """A place whose model is replaced so many times between the moment that a call reads it and its first task."""
    place, earlier = str(tmp_path / "model"), FMModel.load(model)

    def place_of(times: int) -> str:
        earlier.save(place)

        def watch(*arguments: Any) -> Watch:
            for time in range(times):
                turned(earlier, -1.0 - time).save(place)
            scoring._loaded.cache_clear()
            return Watch(*arguments)

        monkeypatch.setattr(jobs, "Watch", watch)
        return place

    return place_of


def test_rows_are_scored_by_the_model_that_was_there_when_a_call_began(
    log: Path, model: str, replaced: Callable[[int], str], client: Client, tmp_path: Path
) -> None:
    data, earlier = str(log / f"day={LAST_DAY}"), FMModel.load(model)
    jobs.predict(place := replaced(1), data, str(tmp_path / "scored"), client=client)
    assert FMModel.load(place).parameters_sha256() != earlier.parameters_sha256()
    expected = earlier.predict(read_log(log, LAST_DAY))
    np.testing.assert_array_equal(read_parts(tmp_path / "scored")["prediction"].to_numpy(), expected)
    for ask in (
        lambda model: jobs.evaluate(model, data, client=client, by=["C1"]),
        lambda model: jobs.importance(model, data, client=client, rows=500, repeats=1),
    ):
        assert ask(replaced(1)) == ask(earlier)


def test_tasks_that_score_wait_for_no_value_of_one_worker(model: str, two_workers: Client) -> None:
    """They would all run where it lies, as workers steal nothing."""
    edition = scoring.Edition.of(model)
    known, placed = scoring.placed_model(Watch(two_workers, 60.0), scoring.Scoring(edition))
    assert placed == edition
    assert known.model is None


def test_a_model_that_was_replaced_twice_meanwhile_is_told_so(
    log: Path, replaced: Callable[[int], str], client: Client, tmp_path: Path
) -> None:
    """Files of a model outlive it by one generation."""
    for ask in (
        lambda model: jobs.evaluate(model, str(log), client=client),
        lambda model: jobs.importance(model, str(log), client=client),
        lambda model: jobs.predict(model, str(log), str(tmp_path / "scored"), client=client),
    ):
        with pytest.raises(ModelError, match=r"was replaced, or removed, while it was scored .*a folder of its own"):
            ask(replaced(2))
    assert not (tmp_path / "scored" / "_SUCCESS").exists()


def test_secrets_of_the_storage_do_not_show() -> None:
    assert "hunter2" not in repr(scoring.Scoring(None, storage_options={"secret": "hunter2"}))


def test_labels_are_not_needed_to_predict(log: Path, model: str, client: Client, tmp_path: Path) -> None:
    rows = read_log(log, LAST_DAY).drop_columns(["label", "day"])
    pq.write_table(rows, tmp_path / "rows.parquet")
    jobs.predict(model, str(tmp_path / "rows.parquet"), str(tmp_path / "scored"), client=client)
    np.testing.assert_array_equal(
        read_parts(tmp_path / "scored")["prediction"].to_numpy(), FMModel.load(model).predict(rows)
    )


def test_an_output_that_is_not_empty_is_refused(log: Path, model: str, client: Client, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match=r"already holds notes\.txt; choose an empty folder, or add --overwrite"):
        jobs.predict(model, str(log), str(tmp_path), client=client)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_output_that_is_named_like_a_file_of_text_is_refused(model: str, log: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"Parquet parts in a folder; name a folder \('s3://scores/of\.today'\)"):
        jobs.predict(model, str(log), "s3://scores/of.today.CSV")
    with pytest.raises(SettingsError, match="named like a file of text"):
        jobs.predict(model, str(log), str(tmp_path / "scores.jsonl"))
    assert not any(tmp_path.iterdir())


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_overwriting_replaces_earlier_parts_and_nothing_else(
    log: Path, model: str, client: Client, tmp_path: Path
) -> None:
    """Spark's parts have such names too."""
    day = str(log / f"day={LAST_DAY}")
    jobs.predict(model, day, str(tmp_path), client=client)
    assert visible(tmp_path) == {"_SUCCESS", "part-00000.parquet"}
    others = {"notes.txt": b"mine", "part-00007.parquet": b"mine", "part-00000-6d.snappy.parquet": b"mine"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    jobs.predict(model, day, str(tmp_path), overwrite=True, client=client)
    (part,) = visible(tmp_path) - {*others, "_SUCCESS"}
    assert part != "part-00000.parquet"
    assert pq.ParquetFile(tmp_path / part).metadata.num_rows == 2000
    assert {name: (tmp_path / name).read_bytes() for name in others} == others


def test_a_part_that_was_replaced_by_another_file_is_no_longer_an_earlier_part(
    log: Path, model: str, client: Client, tmp_path: Path
) -> None:
    day = str(log / f"day={LAST_DAY}")
    jobs.predict(model, day, str(tmp_path), client=client)
    (tmp_path / "part-00000.parquet").write_bytes(b"mine")
    with pytest.raises(SettingsError, match=r"holds part-00000\.parquet, which no earlier prediction of dfm made"):
        jobs.predict(model, day, str(tmp_path), overwrite="own", client=client)
    jobs.predict(model, day, str(tmp_path), overwrite="beside", client=client)
    assert (tmp_path / "part-00000.parquet").read_bytes() == b"mine"
    assert len(visible(tmp_path)) == 3


def test_the_success_file_of_somebody_else_is_not_replaced(
    log: Path, model: str, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "_SUCCESS").touch()
    with pytest.raises(SettingsError, match=r"_SUCCESS is there and was not made by dfm"):
        jobs.predict(model, str(log), str(tmp_path), overwrite=True, client=client)
    assert (tmp_path / "_SUCCESS").read_bytes() == b""


def test_overwriting_that_fails_keeps_earlier_parts_but_nobody_trusts_them(
    log: Path, model: str, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "TASK_ROWS", 900)
    monkeypatch.setattr(plan, "PIECE_ROWS", 900)
    rows = read_log(log, LAST_DAY)
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=1000)
    jobs.predict(model, str(tmp_path / "rows.parquet"), str(tmp_path / "scored"), client=client)
    before = {path.name: path.read_bytes() for path in (tmp_path / "scored").glob("part-*")}
    assert len(before) == 2
    numbers = rows["I2"].cast(pa.float64()).to_pylist()
    bad = rows.set_column(rows.column_names.index("I2"), "I2", pa.array([*numbers[:-1], float("inf")]))
    pq.write_table(bad, tmp_path / "rows.parquet", row_group_size=1000)
    with pytest.raises(DataError, match="not finite"):
        jobs.predict(model, str(tmp_path / "rows.parquet"), str(tmp_path / "scored"), overwrite=True, client=client)
    assert before.items() <= {path.name: path.read_bytes() for path in (tmp_path / "scored").glob("part-*")}.items()
    assert not (tmp_path / "scored" / "_SUCCESS").exists()


def test_where_every_row_is_bad_an_earlier_prediction_stays_data(
    log: Path, model: str, client: Client, tmp_path: Path
) -> None:
    rows, scored = read_log(log, LAST_DAY), str(tmp_path / "scored")
    pq.write_table(rows, tmp_path / "rows.parquet")
    jobs.predict(model, str(tmp_path / "rows.parquet"), scored, client=client)
    nothing = pa.array([float("inf")] * len(rows))
    pq.write_table(rows.set_column(rows.column_names.index("I2"), "I2", nothing), tmp_path / "bad.parquet")
    with pytest.raises(DataError):
        jobs.predict(model, str(tmp_path / "bad.parquet"), scored, overwrite=True, client=client, on_bad_rows="skip")
    assert sum(shard.n_rows for shard in find_shards([scored])) == len(rows)


@pytest.mark.parametrize("n_parts_there", [0, 1], ids=["before its first part", "after its first part"])
def test_a_prediction_that_was_overtaken_leaves_the_folder_to_the_later_one(
    n_parts_there: int, log: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins and ends while a task of the first is at work."""
    monkeypatch.setattr(plan, "TASK_ROWS", 900)
    other = FMModel.load(model)
    other.table.bias[:] += 1
    other.save(str(tmp_path / "other"))
    out, load = tmp_path / "scored", scoring.loaded_model
    loads: list[str] = []
    of_second: dict[str, bytes] = {}

    def loaded_model(scoring: Any, placed: Any) -> FMModel:
        loads.append("task")
        if len(loads) == n_parts_there + 1:
            assert len(list(out.glob("part-*"))) == n_parts_there
            jobs.predict(str(tmp_path / "other"), str(log), str(out), client=second, overwrite=n_parts_there > 0)
            of_second.update({path.name: path.read_bytes() for path in out.iterdir()})
        return load(scoring, placed)

    monkeypatch.setattr(predict, "loaded_model", loaded_model)
    with (
        in_process_client(1) as first,
        in_process_client(1) as second,
        pytest.raises(StorageError, match="another run claimed the same files"),
    ):
        jobs.predict(model, str(log), str(out), client=first)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == of_second
    written = read_parts(out)
    np.testing.assert_array_equal(written["prediction"].to_numpy(), other.predict(read_log(log)))
    assert predict.ledger_of(str(out), None).is_settled()


def test_parts_of_an_unsettled_prediction_and_of_the_next_one_never_have_one_name(
    log: Path, model: str, client: Client, tmp_path: Path
) -> None:
    """What is on its way to a store when it is overtaken may arrive there later."""
    predict.ledger_of(str(tmp_path), None).claim(["part-00000.parquet", "_SUCCESS"])
    jobs.predict(model, str(log / f"day={LAST_DAY}"), str(tmp_path), client=client)
    assert len(visible(tmp_path)) == 2
    assert "part-00000.parquet" not in visible(tmp_path)


def test_a_part_that_came_while_the_next_prediction_claimed_is_replaced_by_it(
    log: Path, model: str, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, claim = predict.ledger_of(str(tmp_path), None), Ledger.claim
    ledger.claim(["part-00009.parquet", "_SUCCESS"])

    def late(*arguments: Any) -> str:
        (tmp_path / "part-00009.parquet").write_bytes(b"late")
        return claim(*arguments)

    monkeypatch.setattr(Ledger, "claim", late)
    jobs.predict(model, str(log / f"day={LAST_DAY}"), str(tmp_path), client=client)
    assert read_parts(tmp_path).num_rows == 2000


def test_a_bad_row_stops_or_keeps_its_place_without_a_prediction(
    log: Path, model: str, client: Client, tmp_path: Path
) -> None:
    rows = read_log(log, LAST_DAY)
    texts = [None if n is None else str(n) for n in rows["I2"].to_pylist()]
    texts[1234] = "many"
    bad = rows.set_column(rows.column_names.index("I2"), "I2", pa.array(texts))
    pq.write_table(bad, tmp_path / "bad.parquet", row_group_size=600)
    with pytest.raises(DataError, match=r"bad\.parquet, row group 2, row 34: column 'I2': not a number"):
        jobs.predict(model, str(tmp_path / "bad.parquet"), str(tmp_path / "scored"), client=client)
    assert not (tmp_path / "scored" / "_SUCCESS").exists()
    summary = jobs.predict(
        model, str(tmp_path / "bad.parquet"), str(tmp_path / "scored"), client=client, on_bad_rows="skip"
    )
    written = read_parts(tmp_path / "scored")["prediction"]
    expected = FMModel.load(model).predict(rows)
    assert written.null_count == 1
    assert not written[1234].is_valid
    np.testing.assert_array_equal(np.delete(written.to_numpy(), 1234), np.delete(expected, 1234))
    assert (summary["rows"], summary["predicted"], summary["rejected"]) == (2000, 1999, 1)
    assert summary["reasons"] == {"I2: not a number": 1}


def test_evaluation_agrees_with_the_training_that_held_the_day_out(
    log: Path, model: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "TASK_ROWS", 900)
    found = jobs.evaluate(model, [str(log / f"day={LAST_DAY}")], client=client)
    assert found.pop("account") == {"read": 2000, "evaluated": 2000, "rejected": 0, "reasons": {}}
    assert all(record["psi"] is not None for record in found.pop("drift"))
    expected = FMModel.load(model).metadata["validation"]
    assert found.keys() == expected.keys()
    for name in ("log_loss", "auc", "pr_auc", "calibration", "base_rate", "rows"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)


@pytest.mark.parametrize("given", ["Path", "iterator", "FMModel", "table", "pandas", "dict", "dask"])
def test_metrics_are_the_same_in_whatever_form_the_rows_come(
    log: Path, model: str, client: Client, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask.dataframe as dd

    day = log / f"day={LAST_DAY}"
    expected = jobs.evaluate(model, str(day), client=client)
    rows = read_log(log, LAST_DAY)
    monkeypatch.setattr("dfm.distributed.frames._current_client", lambda: None)
    data: Any = {
        "Path": day,
        "iterator": day.glob("*.parquet"),
        "FMModel": [str(day)],
        "table": rows,
        "pandas": rows.to_pandas(),
        "dict": rows.to_pydict(),
        "dask": dd.from_pandas(rows.to_pandas(), npartitions=3),
    }[given]
    if given not in ("Path", "iterator", "FMModel"):
        monkeypatch.setattr("dfm.distributed.cluster.connect.client_of", None)  # rows in memory start no cluster
    used: Any = FMModel.load(model) if given == "FMModel" else Path(model)
    found = jobs.evaluate(used, data, client=client if given in ("Path", "iterator", "FMModel", "dask") else None)
    assert found.keys() == expected.keys()
    assert found["account"] == expected["account"]
    for name in ("log_loss", "auc", "pr_auc", "calibration", "base_rate", "rows"):
        assert found[name] == pytest.approx(expected[name], rel=1e-9)


def test_text_that_dask_made_of_truths_and_lists_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of pandas become strings in Dask where they hold objects: "True" is another category than true."""
    import dask.dataframe as dd

    monkeypatch.setattr("dfm.distributed.frames._current_client", lambda: None)
    table = random_table(300)
    table = table.append_column("flag", pa.array([(True, None, False)[number % 3] for number in range(300)]))
    way_out = r'dask\.config\.set\(\{"dataframe\.convert-string": False\}\)'
    columns = [*table.column_names]
    for roles, message in (
        ({"categorical": ("flag", "site")}, "column 'flag' of the frame holds the texts True and False.*" + way_out),
        ({"categorical": ("site",), "lists": ("tags",)}, "column 'tags' of the frame holds text.*" + way_out),
    ):
        schema = resolve(Schema(**roles), columns)
        model, rows = model_of_schema(schema, table), table.select(["label", *schema.columns])
        expected, frame = model.predict(rows), rows.to_pandas()
        with pytest.raises(DataError, match=message):
            jobs.evaluate(model, dd.from_pandas(frame, npartitions=2))
        with pytest.raises(DataError, match=way_out):
            model.predict(dd.from_pandas(frame, npartitions=2))
        with dask.config.set({"dataframe.convert-string": False}):
            kept = dd.from_pandas(frame, npartitions=2)
            found = jobs.evaluate(model, kept)["log_loss"]
            scores = kept.map_partitions(model.predict, meta=(None, "f4")).compute()  # as the sentence says
        assert found == pytest.approx(jobs.evaluate(model, rows)["log_loss"], abs=1e-9)
        np.testing.assert_array_equal(scores, expected)
        if "flag" in schema.columns:
            texts = frame.assign(flag=frame["flag"].map({True: "true", False: "false"}))
            assert jobs.evaluate(model, dd.from_pandas(texts, npartitions=2))["log_loss"] == pytest.approx(found)


def test_bad_rows_in_memory_are_named_and_counted(log: Path, model: str) -> None:
    rows = read_log(log, LAST_DAY).to_pandas().astype({"label": float})
    rows.loc[rows.index[3], "label"] = 7.0
    with pytest.raises(DataError, match=r"the DataFrame given, row 3: column 'label': .*7\.0"):
        jobs.evaluate(model, rows)
    account = jobs.evaluate(model, rows, on_bad_rows="skip")["account"]
    reasons = {"label: label is neither 0 nor 1": 1}
    assert account == {"read": 2000, "evaluated": 1999, "rejected": 1, "reasons": reasons}
    with pytest.raises(DataError, match="the rows lack column 'label'"):
        jobs.evaluate(model, rows.drop(columns="label"))


def test_a_model_in_memory_predicts_shards(log: Path, model: str, client: Client, tmp_path: Path) -> None:
    jobs.predict(FMModel.load(model), log / f"day={LAST_DAY}", str(tmp_path), client=client)
    expected = FMModel.load(model).predict(read_log(log, LAST_DAY))
    np.testing.assert_array_equal(read_parts(tmp_path)["prediction"].to_numpy(), expected)
    with pytest.raises(SettingsError, match=r"Table names no shards: .*FMModel\.predict"):
        jobs.predict(model, read_log(log), str(tmp_path), client=client)  # type: ignore[arg-type]


def test_a_model_that_is_missing_is_told_before_any_shard_is_read(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model at"):
        jobs.evaluate(str(tmp_path / "none"), str(tmp_path / "no data"), client=client)
