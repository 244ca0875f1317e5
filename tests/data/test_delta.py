"""Tables of Delta Lake, made by the library itself; logs that it cannot write are written by hand."""

from __future__ import annotations

import datetime
import json
import struct
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfm.data.parquet import HIVE_NULL, Shard, Unit, find_shards
from dfm.data.reading import units_key
from dfm.data.snapshots import resolve
from dfm.errors import DataError, SettingsError
from dfm.settings.job import Job
from dfm.training.inputs import resolve_schema
from tests.support.tables import rows

deltalake = pytest.importorskip("deltalake", reason="the extra `delta` is not installed")
ROWS = {"label": [0, 1, 1], "user": ["a", "b", "c"]}


def put(folder: Path, columns: dict[str, Any] = ROWS, **options: Any) -> str:
    """Append rows to the table of a folder; returns its name."""
    deltalake.write_deltalake(str(folder), pa.table(columns), mode="append", **options)
    return f"delta://{folder}"


def own_rows(url: str, *columns: str) -> list[dict[str, Any]]:
    """The same by the library."""
    place, _, version = url.removeprefix("delta://").partition("@v")
    table = deltalake.DeltaTable(place, version=int(version) if version else None)
    return sorted(pa.table(table.to_pyarrow_table(columns=list(columns))).to_pylist(), key=str)


def test_every_version_holds_the_rows_that_the_library_says(tmp_path: Path) -> None:
    url = put(tmp_path / "t")
    put(tmp_path / "t", {"label": [0, 0], "user": ["d", "e"]})
    deltalake.DeltaTable(str(tmp_path / "t")).delete("user = 'a'")
    deltalake.DeltaTable(str(tmp_path / "t")).optimize.compact()
    deltalake.write_deltalake(str(tmp_path / "t"), pa.table({"label": [1], "user": ["z"]}), mode="overwrite")
    for version in range(5):
        assert rows(f"{url}@v{version}", "label", "user") == own_rows(f"{url}@v{version}", "label", "user")
    assert rows(url, "user") == rows(f"delta+file://{tmp_path}/t", "user") == [{"user": "z"}]
    assert len(list((tmp_path / "t").glob("*.parquet"))) > 3, "old versions lie there still"


def test_the_newest_version_gets_its_number_and_its_time(tmp_path: Path) -> None:
    url = put(tmp_path / "t")
    put(tmp_path / "t")
    found = resolve(url, {})
    assert found is not None
    assert (found.asked, found.url, found.version) == (url, f"{url}@v1", "1")
    made = datetime.datetime.fromisoformat(found.timestamp)
    assert abs((datetime.datetime.now(datetime.UTC) - made).total_seconds()) < 60
    again = resolve(url, {}, {url: f"{url}@v0"})
    assert again is not None
    assert again.version == "0"
    assert again.timestamp < found.timestamp


def test_a_version_survives_the_checkpoints_of_its_log(tmp_path: Path) -> None:
    url = put(tmp_path / "t")
    put(tmp_path / "t")
    deltalake.DeltaTable(str(tmp_path / "t")).create_checkpoint()
    (tmp_path / "t/_delta_log/00000000000000000000.json").unlink()
    (tmp_path / "t/_delta_log/00000000000000000001.json").unlink()
    found = resolve(f"{url}@v1", {})
    assert found is not None
    assert (len(found.files), found.timestamp) == (2, "")


def test_partition_values_come_from_the_log_and_read_as_folders_do(tmp_path: Path) -> None:
    days = [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2), None]
    hours = [datetime.datetime(2026, 1, 1, 3, 30), datetime.datetime(2026, 1, 1), datetime.datetime(2026, 1, 1)]
    columns = {
        **ROWS, "day": days, "shop": ["a/b=c", "é ü%20", ""], "hour": pa.array(hours, pa.timestamp("us")),
        "n": [7, 8, 9], "is_new": [True, False, None], "price": [Decimal("1.50"), Decimal("2.00"), Decimal("3.25")],
    }  # fmt: skip
    names = ["day", "shop", "hour", "n", "is_new", "price"]
    url = put(tmp_path / "t", columns, partition_by=names)
    found = {dict(shard.partition)["n"]: dict(shard.partition) for shard in find_shards([url])}
    assert [found[n]["day"] for n in "789"] == ["2026-01-01", "2026-01-02", HIVE_NULL]
    assert [found[n]["shop"] for n in "78"] == ["a/b=c", "é ü%20"]
    assert [found[n]["hour"] for n in "789"] == ["2026-01-01 03:30:00", "2026-01-01", "2026-01-01"]
    assert [found[n]["is_new"] for n in "789"] == ["true", "false", HIVE_NULL]
    assert [found[n]["price"] for n in "789"] == ["1.5", "2", "3.25"]
    assert {row["user"]: row["day"] for row in rows(url, "user", "day")} == {
        "a": "2026-01-01",
        "b": "2026-01-02",
        "c": None,
    }
    assert all(shard.given == () for shard in find_shards([url])), "columns of the table are features"


def test_the_order_of_shards_is_that_of_their_names_whatever_the_log_says(tmp_path: Path) -> None:
    url = put(tmp_path / "t")
    for _ in range(5):
        put(tmp_path / "t")
    urls = [shard.url for shard in find_shards([url])]
    assert urls == sorted(urls)
    assert len(urls) == 6


# ------------------------------------------------------------------------------------------ other schemas ----


def test_a_column_that_was_added_is_missing_in_the_rows_of_before(tmp_path: Path) -> None:
    url = put(tmp_path / "t")
    put(tmp_path / "t", {"label": [0], "user": ["d"], "n": [7.5]}, schema_mode="merge")
    assert rows(url, "user", "n") == own_rows(url, "user", "n")
    assert {row["user"]: row["n"] for row in rows(url, "user", "n")} == {"a": None, "b": None, "c": None, "d": 7.5}
    shards = find_shards([url])
    for order in (shards, shards[::-1]):
        found = resolve_schema(Job.from_dict({}), *order)
        assert {field.name: field.kind for field in found.fields} == {"user": "categorical", "n": "numeric"}
    assert "n" not in {name for shard in find_shards([f"{url}@v0"]) for name, _ in shard.columns or ()}


def test_a_table_that_was_overwritten_with_another_schema_has_that_one(tmp_path: Path) -> None:
    url = put(tmp_path / "t")
    new = pa.table({"label": [1], "user": [5]})
    deltalake.write_deltalake(str(tmp_path / "t"), new, mode="overwrite", schema_mode="overwrite")
    assert rows(url, "label", "user") == [{"label": 1, "user": 5}]
    assert rows(f"{url}@v0", "user") == [{"user": "a"}, {"user": "b"}, {"user": "c"}]


def by_hand(
    folder: Path, fields: list[dict[str, Any]], configuration: dict[str, str] | None = None,
    features: tuple[str, ...] = (), add: dict[str, Any] | None = None, table: pa.Table | None = None,
    partitions: tuple[str, ...] = (), reader: int = 3,
) -> str:  # fmt: skip
    """A table of one file and one entry in its log."""
    (folder / "_delta_log").mkdir(parents=True)
    pq.write_table(pa.table(ROWS) if table is None else table, folder / "p.parquet")
    protocol: dict[str, Any] = {"minReaderVersion": reader, "minWriterVersion": 7 if reader == 3 else 5}
    if reader == 3:
        protocol |= {"readerFeatures": list(features), "writerFeatures": list(features)}
    metadata = {
        "id": "t", "format": {"provider": "parquet", "options": {}}, "partitionColumns": list(partitions),
        "schemaString": json.dumps({"type": "struct", "fields": fields}), "configuration": configuration or {},
        "createdTime": 0,
    }  # fmt: skip
    entry = {"path": "p.parquet", "partitionValues": {}, "modificationTime": 0, "dataChange": True, **(add or {})}
    entry["size"] = (folder / "p.parquet").stat().st_size
    lines = [{"protocol": protocol}, {"metaData": metadata}, {"add": entry}]
    (folder / "_delta_log/00000000000000000000.json").write_text("\n".join(map(json.dumps, lines)))
    return f"delta://{folder}"


def field(name: str, kind: Any, number: int = 0, physical: str = "") -> dict[str, Any]:
    known = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": physical} if physical else {}
    return {"name": name, "type": kind, "nullable": True, "metadata": known}


@pytest.mark.parametrize("mode", ["name", "id"])
def test_columns_that_go_by_other_names_in_the_files_are_found_and_no_others(tmp_path: Path, mode: str) -> None:
    prefix = "col" if mode == "name" else "written"
    stored = {f"{prefix}-1": [0, 1, 1], f"{prefix}-2": ["a", "b", "c"], "user": ["dropped"] * 3}
    schema = pa.schema(
        [
            pa.field(name, pa.array(values).type, metadata={"PARQUET:field_id": str(number)})
            for number, (name, values) in enumerate(stored.items(), start=1)
        ]
    )
    names = {"label": "long", "user": "string", "day": "string", "late": "long"}
    fields = [field(*each, number, f"col-{number}") for each, number in zip(names.items(), (1, 2, 4, 5), strict=True)]
    url = by_hand(
        tmp_path / "t", fields, {"delta.columnMapping.mode": mode}, table=pa.table(stored, schema), reader=2,
        partitions=("day",), add={"partitionValues": {"col-4": "2026-01-01"}},
    )  # fmt: skip
    assert rows(url, "label", "user", "day", "late") == [
        {"label": label, "user": user, "day": "2026-01-01", "late": None}
        for label, user in zip([0, 1, 1], "abc", strict=True)
    ]
    schema_found = resolve_schema(Job.from_dict({}), *find_shards([url]))
    assert set(schema_found.columns) == {"user", "day", "late"}


def test_mapped_names_inside_a_struct_are_refused(tmp_path: Path) -> None:
    inner = {"type": "struct", "fields": [field("city", "string", 3, "col-3")]}
    fields = [field("label", "long", 1, "col-1"), field("place", inner, 2, "col-2")]
    table = pa.table({"col-1": [1], "col-2": [{"col-3": "Rome"}]})
    url = by_hand(tmp_path / "t", fields, {"delta.columnMapping.mode": "name"}, table=table, reader=2)
    with pytest.raises(DataError, match=r"maps names of fields inside the column 'place'.*write a copy"):
        find_shards([url])


def test_a_column_whose_type_means_other_features_now_is_refused(tmp_path: Path) -> None:
    fields = [field("label", "long"), field("user", "long")]
    url = by_hand(tmp_path / "t", fields, features=("typeWidening",))
    with pytest.raises(DataError, match=r"holds the column 'user' as string, and its table has it as int64.*Rewrite"):
        find_shards([url])


def test_a_wider_integer_is_the_same_number(tmp_path: Path) -> None:
    narrow = pa.table({"label": pa.array([0, 1], pa.int8()), "user": ["a", "b"]})
    url = by_hand(tmp_path / "t", [field("label", "long"), field("user", "string")], table=narrow)
    assert rows(url, "label") == [{"label": 0}, {"label": 1}]


# ---------------------------------------------------------------------------------------------- refusals ----


def z85(data: bytes) -> str:
    letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    words = struct.unpack(f">{len(data) // 4}I", data)
    return "".join(letters[word // 85**power % 85] for word in words for power in (4, 3, 2, 1, 0))


def deletion_of(row: int) -> dict[str, Any]:
    """A deletion vector of one row, within the log: a 64-bit Roaring bitmap with one array container."""
    bitmap = struct.pack("<IIHHIH", 12346, 1, 0, 0, 16, row)
    data = struct.pack("<IQI", 1681511377, 1, 0) + bitmap
    data += b"\0" * (-len(data) % 4)
    return {"storageType": "i", "pathOrInlineDv": z85(data), "sizeInBytes": len(data), "cardinality": 1}


@pytest.mark.parametrize("vector", [deletion_of(1), {**deletion_of(1), "pathOrInlineDv": z85(b"\0" * 32)}])
def test_rows_deleted_by_a_vector_are_never_read(tmp_path: Path, vector: dict[str, Any]) -> None:
    fields, features = [field("label", "long"), field("user", "string")], ("deletionVectors",)
    url = by_hand(tmp_path / "t", fields, features=features, add={"deletionVector": vector})
    with pytest.raises(DataError, match=r"@v0 has deletion vectors.*REORG TABLE … APPLY \(PURGE\)"):
        find_shards([url])
    assert rows(by_hand(tmp_path / "u", fields, features=features), "user") == [{"user": u} for u in "abc"]


def test_a_feature_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    for feature, told in (("fancy", "cannot be read"), ("variantType", "variantType|cannot be read")):
        url = by_hand(tmp_path / feature, [field("label", "long"), field("user", "string")], features=(feature,))
        with pytest.raises(DataError, match=told):
            find_shards([url])


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    url = put(tmp_path / "t")
    with pytest.raises(DataError, match=r"has no version 9: its newest is 0"):
        find_shards([f"{url}@v9"])
    with pytest.raises(DataError, match=r"cannot be read as a table of Delta Lake.*_delta_log"):
        find_shards([f"delta://{tmp_path}/none"])
    deltalake.DeltaTable(str(tmp_path / "t")).delete()
    with pytest.raises(DataError, match=r"@v1 is a table without rows; name a version"):
        find_shards([url])
    next((tmp_path / "t").glob("*.parquet")).unlink()
    with pytest.raises(DataError, match=r"is gone, which this version of its table still lists.*name a newer version"):
        find_shards([f"{url}@v0"])


def test_without_the_library_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(tmp_path / "t")
    monkeypatch.setitem(__import__("sys").modules, "deltalake", None)
    with pytest.raises(SettingsError, match=r"needs the library deltalake: pip install .*\[delta\]"):
        find_shards([url])


def test_a_folder_that_is_a_table_names_its_spelling(tmp_path: Path) -> None:
    put(tmp_path / "t")
    with pytest.raises(DataError, match=rf"Name it delta://{tmp_path}/t, with @v"):
        find_shards([str(tmp_path / "t")])


def test_partitions_that_were_prepared_know_what_the_table_makes_of_a_file(tmp_path: Path) -> None:
    shard = find_shards([put(tmp_path / "t")])[0]
    other = Shard(
        shard.url, shard.size, shard.modified, shard.row_groups, (), (), (("label", "user"), ("user", "label"))
    )
    plain = Shard(shard.url, shard.size, shard.modified, shard.row_groups, ())
    keys = [json.dumps(units_key([Unit(each, 0, 3)])) for each in (shard, other, plain)]
    assert len(set(keys)) == 3
    name = shard.url.rsplit("/", 1)[-1]
    assert units_key([Unit(plain, 0, 3)]) == [[shard.url, shard.size, shard.modified, name, 0, 3]]
