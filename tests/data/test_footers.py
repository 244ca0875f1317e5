"""Roles come from the footers of all shards, and what becomes no feature is named."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfm.data.footers import columns_of, resolve_shards
from dfm.data.guess import guess
from dfm.data.parquet import Unit, find_shards, read_unit
from dfm.errors import DataError, SettingsError
from dfm.settings.tables import Schema

LABEL = pa.array([0, 1])


def shards_of(folder: Path, *tables: pa.Table) -> list[Any]:
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"{number}.parquet")
    return find_shards([str(folder)])


def features(schema: Schema, shards: list[Any]) -> dict[str, str]:
    return {field.name: field.kind for field in resolve_shards(schema, shards).fields}


def table(**columns: Any) -> pa.Table:
    return pa.table({"label": LABEL, **columns})


def test_a_type_that_only_a_later_shard_tells_decides(tmp_path: Path) -> None:
    nothing, numbers, text = pa.nulls(2), pa.array([0.5, 1.5]), pa.array(["a", "b"])
    shards = shards_of(
        tmp_path,
        table(a=nothing, b=pa.array([1, 2]), c=nothing, d=nothing, e=text),
        table(a=numbers, b=numbers, c=pa.array([["x"], []]), d=nothing, e=text.dictionary_encode()),
        table(a=nothing, b=nothing, c=nothing, d=nothing, e=pa.array([1, 2])),
    )
    expected = {"d": "categorical", "e": "categorical", "a": "numeric", "b": "numeric", "c": "list"}
    for order in (shards, shards[::-1]):
        assert features(Schema(), order) == expected


def test_a_gap_that_makes_a_number_of_a_code_is_told_with_two_shards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pandas writes integers with a gap as floats: one of them in one shard would turn categories into a number."""
    codes, gap = pa.array([1, 2]), pa.array([1.0, None])
    shards = shards_of(tmp_path, table(user=codes), table(user=codes), table(user=gap), table(user=gap))
    for order in (shards, shards[::-1]):
        caplog.clear()
        assert features(Schema(), order) == {"user": "numeric"}
        (record,) = caplog.records
        assert re.search(r"'user' holds integers in \S+/[01]\.parquet, and floats in \S+/[23]\.parquet", record.message)
    caplog.clear()
    for schema in (Schema(categorical=("user",)), Schema(numeric=("user",)), Schema(transforms={"us*": "raw"})):
        features(schema, shards)
    features(Schema(), shards[:2])
    features(Schema(), shards[2:])
    assert caplog.records == [], "who named it, or has one type, knows"


def test_kinds_that_do_not_meet_name_both_shards(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, table(a=pa.array(["x", "y"])), table(a=pa.array([["x"], ["y"]])))
    message = r"column 'a' is string in \S+0\.parquet, but list in \S+1\.parquet.*name the columns to use in \[schema\]"
    with pytest.raises(SettingsError, match=message):
        resolve_shards(Schema(), shards)
    assert features(Schema(categorical=("a",)), shards) == {"a": "categorical"}


def test_a_column_that_a_shard_lacks_is_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = shards_of(tmp_path, table(a=LABEL, b=LABEL), table(a=LABEL, c=LABEL))
    with caplog.at_level(logging.WARNING):
        assert features(Schema(), shards) == {"a": "categorical"}
    (record,) = caplog.records
    assert f"'b' ({tmp_path}/1.parquet has none), 'c' ({tmp_path}/0.parquet has none)" in record.message


@pytest.mark.parametrize("order", [1, -1])
def test_one_shard_without_a_column_is_named_whatever_its_place(tmp_path: Path, order: int) -> None:
    shards = shards_of(tmp_path, *[table(a=LABEL), table(a=LABEL, b=LABEL), table(a=LABEL, b=LABEL)][::order])
    lacking = shards[0 if order == 1 else 2]

    def read() -> None:
        columns = resolve_shards(Schema(categorical=("a", "b")), shards).columns
        for shard in shards:
            list(read_unit(Unit(shard, 0, 2), columns))

    with pytest.raises(DataError, match=rf"{Path(lacking.url).name} has no column 'b': it has label, a\. Give it"):
        read()
    with pytest.raises(SettingsError, match=r'schema\.categorical names "c", which no column of the data matches'):
        resolve_shards(Schema(categorical=("a", "c")), shards)


def test_the_index_of_a_frame_is_no_feature_unless_it_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.DataFrame({"label": [0, 1], "user": ["a", "b"]})
    frames = {
        "__index_level_0__": frame.set_index(pd.Index(["x", "z"])),
        "id": frame.set_index(pd.Index(["x", "z"], name="id")),
        "__null_dask_index__": frame.set_index(pd.Index(["x", "z"], name="__null_dask_index__")),
    }
    for name, written in frames.items():
        written.to_parquet(tmp_path / "a.parquet")
        shards = find_shards([str(tmp_path)])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert features(Schema(), shards) == {"user": "categorical"}, name
            assert features(Schema(categorical=("*",)), shards) == {"user": "categorical"}, name
        assert [f"'{name}' (it is the index of the frame that was written)" in r.message for r in caplog.records] == [
            True,
            True,
        ]
        assert features(Schema(categorical=("user", name)), shards) == dict.fromkeys(("user", name), "categorical")


def test_an_index_without_the_words_of_pandas_is_known_by_its_name(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, table(a=LABEL, __index_level_1__=LABEL, __null_dask_index__=LABEL))
    assert features(Schema(), shards) == {"a": "categorical"}


@pytest.mark.parametrize("words", [b"", b"[]", b"not json", b'{"index_columns": null}', b'{"index_columns": [{}]}'])
def test_damaged_words_of_pandas_say_nothing(tmp_path: Path, words: bytes) -> None:
    try:
        shards = shards_of(tmp_path, table(a=LABEL).replace_schema_metadata({b"pandas": words}))
        assert columns_of(shards).set_aside == {}
    except TypeError:
        pytest.fail("damaged metadata is an error")


def test_folders_above_the_path_are_no_features_and_the_last_of_it_only_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "version=3" / "clicks" / "day=1" / "hour=2"
    folder.mkdir(parents=True)
    pq.write_table(table(user=LABEL), folder / "a.parquet")
    clicks = find_shards([f"{tmp_path}/version=3/clicks"])
    assert [*features(Schema(), clicks)] == ["user", "day", "hour"]
    day = find_shards([f"{tmp_path}/version=3/clicks/day=1"])
    assert [*features(Schema(), day)] == ["user", "hour"]
    assert [*features(Schema(categorical=("*",)), day)] == ["user", "hour"]
    assert [*features(Schema(time="day"), day)] == ["user", "hour"]
    assert [*features(Schema(categorical=("day",)), day)] == ["day"]
    with pytest.raises(SettingsError, match="version"):
        features(Schema(categorical=("version",)), clicks)


def test_types_that_make_no_feature_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    moments, clock = pa.array([1, 2], pa.timestamp("s")), pa.array([1, 2], pa.time32("s"))
    shards = shards_of(tmp_path, table(a=LABEL, t=moments, s=pa.array([{"x": 1, "y": {"z": None}}, None]), c=clock))
    with caplog.at_level(logging.WARNING):
        assert features(Schema(), shards) == {"a": "categorical", "s.x": "categorical", "s.y.z": "categorical"}
    assert "'t' (it holds timestamp)" in caplog.text
    assert "'c' (it holds time32[" in caplog.text
    caplog.clear()
    features(Schema(categorical=("a",)), shards)
    assert caplog.records == [], "who names the columns knows what he leaves out"


@pytest.mark.parametrize("twice", ["user", "label", "w", "when"])
def test_two_columns_of_one_name_are_refused_where_they_are_used(tmp_path: Path, twice: str) -> None:
    names = ["label", "user", "w", "when", twice]
    shards = shards_of(tmp_path, pa.Table.from_arrays([LABEL] * 5, names))
    for schema in (Schema(weight="w", time="when"), Schema(weight="w", time="when", categorical=("user",))):
        with pytest.raises(SettingsError, match=f'the data has 2 columns called "{twice}"'):
            resolve_shards(schema, shards)
    unused = next(name for name in ("user", "w", "when") if name != twice)
    label = "w" if twice == "label" else "label"
    assert label == unused or features(Schema(label=label, categorical=(unused,)), shards) == {unused: "categorical"}


def test_a_missing_value_of_a_path_is_a_missing_code(tmp_path: Path) -> None:
    folder = tmp_path / "country=__HIVE_DEFAULT_PARTITION__"
    folder.mkdir()
    pq.write_table(table(), folder / "a.parquet")
    (shard,) = find_shards([str(tmp_path)])
    (batch,) = read_unit(Unit(shard, 0, 2), ["label", "country"])
    country = batch.data.column("country")
    assert country.to_pylist() == [None, None]
    assert country.null_count == 2
    pq.write_table(pa.Table.from_batches([batch.data]), tmp_path / "golden.parquet")
    assert pq.ParquetFile(tmp_path / "golden.parquet").read()["country"].to_pylist() == [None, None]


def test_moments_of_any_unit_and_zone_are_of_one_kind(tmp_path: Path) -> None:
    kinds = pa.timestamp("ns"), pa.timestamp("us"), pa.timestamp("s", "UTC"), pa.date32()
    days = pa.array([1, 2], pa.int32()).cast(pa.date32())
    shards = shards_of(tmp_path, *(table(c=LABEL, t=days.cast(pa.timestamp("s")).cast(kind)) for kind in kinds))
    assert columns_of(shards).kinds["t"] == "timestamp"
    assert features(Schema(time="t"), shards) == {"c": "categorical"}
    assert features(Schema(categorical=("c", "t")), shards) == {"c": "categorical", "t": "categorical"}


def test_two_columns_of_one_name_in_a_later_shard_are_refused_with_the_shard(tmp_path: Path) -> None:
    twice = table(c=LABEL).append_column("c", LABEL)
    shards = shards_of(tmp_path, table(c=LABEL), twice)
    assert features(Schema(categorical=("c",)), shards) == {"c": "categorical"}
    with pytest.raises(DataError, match=r"1\.parquet has 2 columns called 'c'"):
        list(read_unit(Unit(shards[1], 0, 2), ["label", "c"]))
    assert [batch.data.num_rows for batch in read_unit(Unit(shards[1], 0, 2), ["label"])] == [2]


def test_a_column_without_a_name_is_no_feature(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = shards_of(tmp_path, table(**{"": LABEL, "c": LABEL}))
    assert features(Schema(), shards) == {"c": "categorical"}
    assert "'' (it has no name)" in caplog.text
    assert '"c"' in guess(str(tmp_path / "0.parquet"))
