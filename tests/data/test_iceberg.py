"""Tables of Apache Iceberg in a catalogue of SQLite, made by the library; deletes that it cannot write, by hand."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfm.data.parquet import HIVE_NULL, find_shards
from dfm.data.snapshots import resolve
from dfm.errors import DataError, SettingsError
from tests.support.tables import rows

pyiceberg = pytest.importorskip("pyiceberg", reason="the extra `iceberg` is not installed")
ROWS = {"label": [0, 1, 1], "user": ["a", "b", "c"]}
URL = "iceberg://prod/ads.clicks"


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A catalogue that pyiceberg's configuration describes by the environment alone, as a job's process finds it."""
    from pyiceberg.catalog import load_catalog
    from pyiceberg.utils import config

    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__TYPE", "sql")
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__URI", f"sqlite:///{tmp_path}/catalogue.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__WAREHOUSE", f"file://{tmp_path}/warehouse")
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", config.Config())
    opened = load_catalog("prod")
    opened.create_namespace("ads")
    yield opened
    opened.engine.dispose()


def made(catalogue: Any, columns: dict[str, Any] = ROWS, **options: Any) -> Any:
    table = catalogue.create_table("ads.clicks", pa.table(columns).schema, **options)
    table.append(pa.table(columns))
    return table


def own_rows(table: Any, snapshot: int, *columns: str) -> list[dict[str, Any]]:
    """The same by the library."""
    return sorted(table.scan(snapshot_id=snapshot, selected_fields=columns).to_arrow().to_pylist(), key=str)


def test_every_snapshot_holds_the_rows_that_the_library_says(catalogue: Any) -> None:
    table = made(catalogue)
    table.append(pa.table({"label": [0, 0], "user": ["d", "e"]}))
    table.delete("user = 'a'")
    table.overwrite(pa.table({"label": [1], "user": ["z"]}))
    snapshots = [each.snapshot_id for each in table.metadata.snapshots]
    assert len(snapshots) >= 4
    for snapshot in snapshots:
        if expected := own_rows(table, snapshot, "label", "user"):
            assert rows(f"{URL}@{snapshot}", "label", "user") == expected
    assert rows(URL, "user") == [{"user": "z"}]


def test_the_newest_snapshot_a_tag_and_a_branch_get_their_number_and_their_time(catalogue: Any) -> None:
    table = made(catalogue)
    first = table.current_snapshot()
    table.manage_snapshots().create_tag(first.snapshot_id, "nightly").commit()
    table.append(pa.table(ROWS))
    newest = table.current_snapshot()
    for asked, snapshot in ((URL, newest), (f"{URL}@nightly", first), (f"{URL}@main", newest)):
        found = resolve(asked, {})
        assert found is not None
        assert (found.asked, found.url, found.version) == (
            asked,
            f"{URL}@{snapshot.snapshot_id}",
            str(snapshot.snapshot_id),
        )
        assert datetime.datetime.fromisoformat(found.timestamp).timestamp() * 1000 == pytest.approx(
            snapshot.timestamp_ms
        )


def test_partition_values_stand_in_the_metadata_for_files_that_do_not_store_them(
    catalogue: Any, tmp_path: Path
) -> None:
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.schema import Schema
    from pyiceberg.transforms import IdentityTransform, VoidTransform
    from pyiceberg.types import DateType, LongType, NestedField, StringType

    schema = Schema(
        NestedField(1, "label", LongType()), NestedField(2, "user", StringType()), NestedField(3, "day", DateType())
    )
    spec = PartitionSpec(
        PartitionField(3, 1000, IdentityTransform(), "day"), PartitionField(2, 1001, VoidTransform(), "user_void")
    )
    table = catalogue.create_table("ads.clicks", schema, partition_spec=spec)
    table.append(pa.table({**ROWS, "day": [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2), None]}))
    found = find_shards([URL])
    assert {dict(shard.partition)["day"] for shard in found} == {"2026-01-01", "2026-01-02", HIVE_NULL}
    assert {name for shard in found for name, _ in shard.partition} == {"day"}, "what a transform makes is no column"
    stored = rows(URL, "label", "user", "day")
    for shard in found:  # as Hive writes them, and `add_files` takes them over
        file = pq.ParquetFile(shard.url)
        pq.write_table(file.read().drop_columns(["day"]), shard.url)
    texts = [{**row, "day": None if row["day"] is None else str(row["day"])} for row in stored]
    assert rows(URL, "label", "user", "day") == sorted(texts, key=str)


def test_renamed_added_dropped_and_reborn_columns_are_told_by_their_numbers(catalogue: Any) -> None:
    table = made(catalogue, {**ROWS, "site": ["x", "y", "z"], "n": pa.array([1, 2, 3], pa.int32())})
    before = table.current_snapshot().snapshot_id
    with table.update_schema() as update:
        update.rename_column("user", "who")
        update.delete_column("site")
        update.update_column("n", field_type=pyiceberg.types.LongType())
    with table.update_schema() as update:
        update.add_column("site", pyiceberg.types.LongType())
        update.add_column("user", pyiceberg.types.StringType())
    new = {"label": [0], "who": ["d"], "n": [1 << 40], "site": [5], "user": ["new"]}
    table.append(pa.table(new))
    now = table.current_snapshot().snapshot_id
    names = ("label", "who", "n", "site", "user")
    assert rows(URL, *names) == own_rows(table, now, *names)
    assert [row["site"] for row in rows(URL, *names)].count(None) == 3, "the dropped site is not the new one"
    assert rows(f"{URL}@{before}", "label", "user", "site", "n") == own_rows(
        table, before, "label", "user", "site", "n"
    )
    with pytest.raises(DataError, match="has no column 'who'"):
        rows(f"{URL}@{before}", "who")


def test_files_that_were_taken_over_have_names_and_no_numbers(catalogue: Any, tmp_path: Path) -> None:
    table = catalogue.create_table("ads.clicks", pa.table(ROWS).schema)
    pq.write_table(pa.table(ROWS), tmp_path / "old.parquet")
    table.add_files([str(tmp_path / "old.parquet")])
    with table.update_schema() as update:
        update.rename_column("user", "who")
    table.append(pa.table({"label": [0], "who": ["d"]}))
    now = table.current_snapshot().snapshot_id
    assert rows(URL, "label", "who") == own_rows(table, now, "label", "who")
    assert {row["who"] for row in rows(URL, "who")} == set("abcd")


def test_fields_inside_a_struct_that_changed_are_refused(catalogue: Any) -> None:
    table = made(catalogue, {"label": [1], "place": [{"city": "Rome"}]})
    with table.update_schema() as update:
        update.rename_column(("place", "city"), "town")
    table.append(pa.table({"label": [1], "place": [{"town": "Oslo"}]}))
    with pytest.raises(DataError, match=r"holds the column 'place' as .*rewrite_data_files"):
        find_shards([URL])


def with_delete_file(catalogue: Any, table: Any, folder: Path) -> None:
    """Delete row 0 of the table's file by a file of positions, as engines do that merge on read."""
    from pyiceberg.manifest import (
        DataFile,
        DataFileContent,
        FileFormat,
        ManifestContent,
        ManifestEntry,
        ManifestEntryStatus,
        ManifestWriterV2,
        write_manifest_list,
    )  # fmt: skip
    from pyiceberg.table.snapshots import Operation, Snapshot, Summary
    from pyiceberg.table.update import AddSnapshotUpdate, SetSnapshotRefUpdate
    from pyiceberg.typedef import Record

    class DeletesWriter(ManifestWriterV2):
        def content(self) -> ManifestContent:
            return ManifestContent.DELETES

        @property
        def _meta(self) -> dict[str, str]:
            return {**super()._meta, "content": "deletes"}

    now, number = table.current_snapshot(), 4711
    (task,) = table.scan().plan_files()
    path = str(folder / "deletes.parquet")
    pq.write_table(pa.table({"file_path": [task.file.file_path], "pos": [0]}), path)
    deletes = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES, file_path=f"file://{path}", file_format=FileFormat.PARQUET,
        partition=Record(), record_count=1, file_size_in_bytes=Path(path).stat().st_size, spec_id=0,
    )  # fmt: skip
    output = table.io.new_output(f"file://{folder}/deletes.avro")
    with DeletesWriter(table.spec(), table.schema(), output, number, "null") as writer:
        entry = ManifestEntry.from_args(
            status=ManifestEntryStatus.ADDED, snapshot_id=number, sequence_number=None, file_sequence_number=None,
            data_file=deletes,
        )  # fmt: skip
        writer.add_entry(entry)
    listed = table.io.new_output(f"file://{folder}/list.avro")
    sequence = table.metadata.last_sequence_number + 1
    with write_manifest_list(2, listed, number, now.snapshot_id, sequence, "null") as lists:
        lists.add_manifests([*now.manifests(table.io), writer.to_manifest_file()])
    snapshot = Snapshot(
        snapshot_id=number, parent_snapshot_id=now.snapshot_id, sequence_number=sequence, manifest_list=listed.location,
        timestamp_ms=now.timestamp_ms + 1, summary=Summary(Operation.DELETE), schema_id=0,
    )  # fmt: skip
    reference = SetSnapshotRefUpdate(ref_name="main", type="branch", snapshot_id=number)
    catalogue.commit_table(table, (), (AddSnapshotUpdate(snapshot=snapshot), reference))


def test_rows_deleted_by_delete_files_are_never_read(catalogue: Any, tmp_path: Path) -> None:
    table = made(catalogue)
    before = table.current_snapshot().snapshot_id
    with_delete_file(catalogue, table, tmp_path)
    assert catalogue.load_table("ads.clicks").scan().to_arrow().num_rows == 2, "the library sees the deletion"
    with pytest.raises(DataError, match=r"@4711 has delete files.*rewrite_data_files with delete-file-threshold = 1"):
        find_shards([URL])
    assert len(rows(f"{URL}@{before}", "user")) == 3


def test_what_is_not_there_is_said_with_what_is(catalogue: Any, tmp_path: Path) -> None:
    table = catalogue.create_table("ads.clicks", pa.table(ROWS).schema)
    with pytest.raises(DataError, match=r"names no snapshot: the table has 0, of which the last are none"):
        find_shards([URL])
    table.append(pa.table(ROWS))
    for wrong in ("5", "weekly"):
        with pytest.raises(DataError, match=rf"names no snapshot.*{table.current_snapshot().snapshot_id}"):
            find_shards([f"{URL}@{wrong}"])
    with pytest.raises(DataError, match=r"cannot be opened: .*check the name of the table, ads.none"):
        find_shards(["iceberg://prod/ads.none"])
    with pytest.raises(DataError, match=r"PYICEBERG_CATALOG__NOBODY__URI"):
        find_shards(["iceberg://nobody/ads.clicks"])
    next((tmp_path / "warehouse").rglob("*.parquet")).unlink()
    with pytest.raises(DataError, match=r"is gone, which this version of its table still lists"):
        find_shards([URL])


def test_without_the_library_the_message_names_the_extra(catalogue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyiceberg.catalog", None)
    with pytest.raises(SettingsError, match=r"needs the library pyiceberg: pip install .*\[iceberg\]"):
        find_shards([URL])


def test_a_folder_that_is_a_table_says_how_to_name_it(catalogue: Any, tmp_path: Path) -> None:
    made(catalogue)
    folder = next((tmp_path / "warehouse").rglob("metadata")).parent
    with pytest.raises(DataError, match=r"Name it by its catalogue, iceberg://CATALOGUE/namespace.table"):
        find_shards([str(folder)])


def test_identities_are_json(catalogue: Any) -> None:
    made(catalogue)
    (shard,) = find_shards([URL])
    assert json.loads(json.dumps(shard.identity)) == shard.identity
