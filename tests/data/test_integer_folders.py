"""Folders like hour=06: an integer in every folder of a name is an integer, however it reaches training and serving."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from dfm import jobs
from dfm.data.canonical import integer_text, integer_texts
from dfm.data.chunks import hashed_in_memory
from dfm.data.coded_rows import CodedRows
from dfm.data.encoding import encode_batch
from dfm.data.footers import resolve_shards
from dfm.data.parquet import Shard, Unit, find_shards, read_unit
from dfm.data.reading import Reading
from dfm.data.schema import ResolvedSchema
from dfm.model.fm_model import FMModel
from dfm.model.folder import read_manifest
from dfm.model.manifest import check_manifest
from dfm.model.warm_start import Start, find_start
from dfm.settings.job import Job
from dfm.settings.tables import Schema
from tests.support.small_jobs import in_process_client

SITES = ("a", "b", "c")


def write(folder: Path, hours: list[str], rows: int = 60) -> Path:
    """A log of one shard an hour, in which the hour decides the label."""
    rng = np.random.default_rng(0)
    for number, hour in enumerate(hours):
        clicked = rng.random(rows) < (0.9 if number % 2 else 0.1)
        table = pa.table({"site": rng.choice(SITES, rows), "clicked": clicked.astype(np.int8)})
        place = folder / f"hour={hour}"
        place.mkdir(parents=True)
        pq.write_table(table, place / "part.parquet")
    return folder


def resolved(folder: Path, schema: Schema) -> ResolvedSchema:
    return resolve_shards(schema, find_shards([str(folder)]))


@pytest.mark.parametrize(
    ("text", "meant"),
    [("06", "6"), ("6", "6"), ("00", "0"), ("0", "0"), ("-007", "-7"), ("-0", "0"), ("0" * 40 + "1" * 30, "1" * 30)]
    + [(same, same) for same in ("", "6.0", "0x6", "6 ", "+6", "six", "2026-11-20", "\u0666", "-")],
)
def test_an_integer_is_its_digits_and_any_other_text_is_left(text: str, meant: str) -> None:
    assert integer_text(text.encode()) == meant.encode()


def test_text_dictionaries_and_numbers_are_told_apart() -> None:
    texts = pa.array(["06", None, "x", "6"])
    for array in (texts, texts.cast(pa.large_string()), texts.dictionary_encode(), texts.cast(pa.binary())):
        assert integer_texts(array).cast(pa.large_binary()).to_pylist() == [b"6", None, b"x", b"6"]
    numbers = pa.array([6, None])
    assert integer_texts(numbers) is numbers


@pytest.mark.parametrize(
    ("hours", "integers"),
    [
        (["00", "06", "12"], ("hour",)),
        (["00", "__HIVE_DEFAULT_PARTITION__"], ("hour",)),
        (["0", "6", "12"], ()),  # nothing to say: integer and text are one
        (["06", "night"], ()),
        (["06", "6.5"], ()),
    ],
)
def test_every_folder_of_a_name_decides(tmp_path: Path, hours: list[str], integers: tuple[str, ...]) -> None:
    write(tmp_path, hours, 2)
    assert resolved(tmp_path, Schema(label="clicked")).integers == integers
    assert resolved(tmp_path, Schema(label="clicked", categorical=("site", "hour"))).integers == integers
    assert resolved(tmp_path, Schema(label="clicked", categorical=("site",))).integers == ()


@pytest.mark.parametrize(
    ("stored", "integers"),
    [
        (pa.array([6, 7], pa.int8()), ("hour",)),
        (pa.array([6, 7]).dictionary_encode(), ("hour",)),
        (pa.array([6.0, None]), ("hour",)),  # as pandas writes integers with gaps
        (pa.nulls(2), ("hour",)),
        (pa.array(["06", "7"]), ()),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_shards_beside_the_folders_hold_numbers(tmp_path: Path, stored: pa.Array, integers: tuple[str, ...]) -> None:
    """The history in files that store the hour, today in folders."""
    write(tmp_path / "log", ["00", "06"], 2)
    (tmp_path / "old").mkdir()
    pq.write_table(pa.table({"site": ["a", "b"], "clicked": [0, 1], "hour": stored}), tmp_path / "old" / "a.parquet")
    for paths in (["log", "old"], ["old", "log"]):
        shards = find_shards([str(tmp_path / path) for path in paths])
        assert resolve_shards(Schema(label="clicked", categorical=("site", "hour")), shards).integers == integers


def indices(shards: list[Shard], schema: ResolvedSchema) -> np.ndarray:
    reading = Reading(schema, 18, "classification")
    batches = (b.data for s in shards for b in read_unit(Unit(s, 0, s.n_rows), reading.columns))
    return np.concatenate([encode_batch(each, schema, 18, {}, "classification").rows.indices for each in batches])


def test_a_column_that_training_stores_as_integers_is_one_in_the_folders_of_other_rows(tmp_path: Path) -> None:
    """What validates, or is scored, may lie in folders with zeros in front: each of ten hours would be unseen text."""
    hours = ["00", "06", "12"]
    folders = find_shards([str(write(tmp_path / "log", hours, 2))])
    stored = pa.concat_tables(
        table.append_column("hour", pa.array([int(hour)] * 2, pa.int16()))
        for hour, table in zip(hours, (pq.read_table(shard.url, partitioning=None) for shard in folders), strict=True)
    )
    pq.write_table(stored, tmp_path / "stored.parquet")
    plain = find_shards([str(tmp_path / "stored.parquet")])
    schema = resolve_shards(Schema(label="clicked", categorical=("site", "hour")), plain)
    assert schema.integers == resolve_shards(Schema(label="clicked"), plain).integers == ("hour",)
    np.testing.assert_array_equal(indices(folders, schema), indices(plain, schema))
    of_before = dataclasses.replace(schema, integers=())
    np.testing.assert_array_equal(indices(plain, of_before), indices(plain, schema))


@pytest.mark.parametrize("categorical", [("site", "hour"), ("hour",)])
def test_shards_that_one_task_reads_have_each_its_own_folder(tmp_path: Path, categorical: tuple[str, ...]) -> None:
    """Rows are hashed as a single one is scored, whether they are hashed by codes or not."""
    shards = find_shards([str(write(tmp_path, ["00", "06", "12", "18"]))])
    schema = resolve_shards(Schema(label="clicked", categorical=categorical), shards)
    reading = Reading(schema, 18, "classification")
    units = [Unit(shard, 0, shard.n_rows) for shard in shards]
    batches = [batch.data for unit in units for batch in read_unit(unit, reading.columns)]
    alone = [encode_batch(batch, schema, 18, {}, "classification").rows.indices for batch in batches]
    expected = np.concatenate(alone)
    for coded in (True, False):
        rows = hashed_in_memory(reading, units, 1, None, coded).rows
        found = rows.hashed() if isinstance(rows, CodedRows) else rows
        np.testing.assert_array_equal(found.indices, expected)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[FMModel, Path, str]:
    """A model of six hours, the folder of their log, and its own."""
    home = tmp_path_factory.mktemp("hours")
    log = write(home / "log", [f"{hour:02d}" for hour in range(4, 12)])
    with in_process_client(1) as client:
        job = {
            "data": {"train": str(log)},
            "schema": {"label": "clicked", "categorical": ["site", "hour"], "crosses": [["site", "hour"]]},
            "model": {"n_factors": 2, "hash_bits": 16},
            "training": {"n_replicas": 1, "n_epochs": 4},
            "cluster": {"cache": str(home / "cache")},
            "output": {"directory": str(home / "out")},
        }
        result = jobs.train(job, client)
        jobs.predict(result.model_url, str(log), str(home / "scored"), client=client)
    return result.model, log, result.model_url


def test_readers_of_the_folders_get_the_predictions_that_dfm_gives(trained: tuple[FMModel, Path, str]) -> None:
    model, log, url = trained
    table = ds.dataset(log, partitioning="hive").to_table()
    assert pa.types.is_integer(table.schema.field("hour").type)
    expected = model.predict(table)
    assert np.ptp(expected) > 0.3, "the hour decides"
    padded = [f"{hour:02d}" for hour in table["hour"].to_pylist()]
    frame = table.to_pandas()
    others = {
        "pandas": frame,
        "text": frame.assign(hour=padded),
        "categories": frame.assign(hour=pd.Categorical(padded)),
        "floats": frame.assign(hour=frame["hour"].astype(float)),
        "digits": frame.assign(hour=frame["hour"].astype(str)),
    }
    for name, rows in others.items():
        np.testing.assert_array_equal(model.predict(rows), expected, err_msg=name)
    scored = pq.read_table(Path(url).parents[1] / "scored").sort_by("hour")
    order = np.argsort(np.array(padded), kind="stable")
    np.testing.assert_allclose(np.sort(scored["prediction"].to_numpy()), np.sort(expected[order]), rtol=1e-6)


def test_single_rows_are_no_exception(trained: tuple[FMModel, Path, str]) -> None:
    model = trained[0]
    plain = ResolvedSchema.from_dict({**model.schema.to_dict(), "fields": model.schema.to_dict()["fields"][:2]})
    for own in (model, FMModel(plain, model.task, model.vocabulary, model.table, model.statistics)):
        assert own._row_encoder.usable == (own is not model)
        values = [own.predict({"site": ["a"], "hour": [hour]})[0] for hour in (6, "06", "6", 6.0)]
        values += own.predict(pa.table({"site": ["a"], "hour": ["006"]})).tolist()
        assert len({float(value) for value in values}) == 1
        assert own.predict({"site": ["a"], "hour": ["05"]})[0] != values[0]


def test_the_manifest_says_so_and_models_of_before_keep_their_text(trained: tuple[FMModel, Path, str]) -> None:
    model, _, url = trained
    manifest = json.loads((Path(url) / "model.json").read_text())
    assert (manifest["format"], manifest["schema"]["integers"]) == (6, ["hour"])
    assert FMModel.load(url).schema == model.schema
    with pytest.raises(ValueError, match="text of its schema"):
        check_manifest({**manifest, "schema": {**manifest["schema"], "integers": [3]}})
    of_before = {**manifest["schema"]}
    del of_before["integers"]
    old = FMModel(ResolvedSchema.from_dict(of_before), model.task, model.vocabulary, model.table, model.statistics)
    assert old._format < 6
    same, other = (old.predict({"site": ["a"], "hour": [hour]})[0] for hour in ("6", "06"))
    assert same != other


def test_a_warm_start_reads_on_by_the_integers_of_its_start_and_says_what_starts_afresh(
    trained: tuple[FMModel, Path, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _, url = trained
    text = dataclasses.replace(model.schema, integers=())
    FMModel(text, model.task, model.vocabulary, model.table, model.statistics).save(str(tmp_path / "of before"))

    def start_of(place: str, schema: ResolvedSchema) -> Start:
        tables = read_manifest(url)["metadata"]["settings"]
        found = find_start(Job.from_dict({**tables, "training": {"warm_start": place}}), schema)
        assert found is not None
        return found

    with caplog.at_level(logging.WARNING, logger="dfm"):
        for today in (model.schema, text):
            assert start_of(url, today).read_on(today).integers == ("hour",)
        assert start_of(str(tmp_path / "of before"), text).read_on(text) == text
        assert caplog.messages == []
        assert start_of(str(tmp_path / "of before"), model.schema).integers == ()
    (told,) = caplog.messages
    assert "does not know that values of hour are integers" in told
