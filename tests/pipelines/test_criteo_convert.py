"""The raw Criteo log becomes typed shards in time order; a line that is not of the format is named."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from dfm.errors import DataError, SettingsError
from pipelines.criteo import convert as criteo
from pipelines.criteo.convert import convert

NAMES = ["label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]


def line(number: int, **cells: str) -> str:
    """A row whose I5 is its own number, so that its place in the shards can be checked."""
    row = {
        "label": str(number % 2),
        "I2": "-1",
        "I5": str(number),
        "C1": "05db9164",
        "C9": f"{number:08x}",
        **cells,
    }
    return "\t".join(row.get(name, "") for name in NAMES) + "\n"


def raw_file(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(lines))
    return path


def shards(folder: Path) -> list[pa.Table]:
    return [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]


@pytest.fixture
def small_row_groups(monkeypatch):
    monkeypatch.setattr(criteo, "ROW_GROUP_ROWS", 10)
    # Smaller than a row group, so that one is put together from several blocks.
    monkeypatch.setattr(criteo, "BLOCK_BYTES", 300)


def test_cells_are_typed_and_blanks_are_null(tmp_path):
    source = raw_file(tmp_path / "train.txt", [line(1), line(2, I1="7", I3="23159456", C26='a"b', C2="")])
    convert(source, tmp_path / "out", validation_share=0.0)
    (table,) = shards(tmp_path / "out/train")
    assert table.schema.field("label").type == pa.int8()
    assert {table.schema.field(n).type for n in NAMES[1:14]} == {pa.int64()}
    assert {table.schema.field(n).type for n in NAMES[14:]} == {pa.string()}
    first, second = table.to_pylist()
    assert first == {name: None for name in NAMES} | {
        "label": 1,
        "I2": -1,
        "I5": 1,
        "C1": "05db9164",
        "C9": "00000001",
    }
    assert (second["label"], second["I1"], second["I3"], second["C26"]) == (0, 7, 23159456, 'a"b')
    assert second["C2"] is None


@pytest.mark.usefixtures("small_row_groups")
def test_shards_keep_the_order_of_time_and_the_last_rows_validate(tmp_path):
    source = raw_file(tmp_path / "train.txt", [line(n) for n in range(95)])
    rows = convert(source, tmp_path / "out", row_groups_per_shard=2, validation_share=0.2)
    train, validation = shards(tmp_path / "out/train"), shards(tmp_path / "out/validation")
    assert [len(table) for table in train] == [20, 20, 20, 16]
    assert [len(table) for table in validation] == [4, 15]
    assert rows == {"train": 76, "validation": 19}
    assert pa.concat_tables(train + validation)["I5"].to_pylist() == list(range(95))
    metadata = pq.ParquetFile(tmp_path / "out/train/part-00000.parquet").metadata
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [10, 10]


@pytest.mark.usefixtures("small_row_groups")
@pytest.mark.parametrize("row_groups_per_shard", [10, 5, 9])
def test_a_tenth_of_the_rows_validates_however_few_the_shards_are(tmp_path, row_groups_per_shard):
    source = raw_file(tmp_path / "train.txt", [line(n) for n in range(100)])
    rows = convert(source, tmp_path / "out", row_groups_per_shard=row_groups_per_shard)
    assert rows == {"train": 90, "validation": 10}
    sets = [pa.concat_tables(shards(tmp_path / "out" / name))["I5"].to_pylist() for name in ("train", "validation")]
    assert sets == [[*range(90)], [*range(90, 100)]]
    assert not (tmp_path / "out/.unfinished").exists()


def test_rows_that_are_too_few_for_both_sets_are_refused(tmp_path):
    source = raw_file(tmp_path / "train.txt", [line(n) for n in range(3)])
    for share, lacking in ((0.1, "validate"), (0.9, "train")):
        with pytest.raises(DataError, match=f"3 rows, of which a share of {share} leaves none to {lacking} on; choose"):
            convert(source, tmp_path / "out", validation_share=share)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("small_row_groups")
def test_a_gzipped_file_gives_the_same_shards(tmp_path):
    source = raw_file(tmp_path / "train.txt", [line(n) for n in range(95)])
    zipped = tmp_path / "train.txt.gz"
    zipped.write_bytes(gzip.compress(source.read_bytes()))
    convert(source, tmp_path / "plain")
    convert(zipped, tmp_path / "zipped")
    assert shards(tmp_path / "plain/train") == shards(tmp_path / "zipped/train")
    assert shards(tmp_path / "plain/validation") == shards(tmp_path / "zipped/validation")


@pytest.mark.usefixtures("small_row_groups")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("1\t2\t3\n", r"train\.txt, line 31: 3 columns instead of 40, in '1\\t2\\t3'"),
        (line(30).rstrip("\n") + "\textra\n", "line 31: 41 columns instead of 40"),
        (line(30, I4="many"), r"train\.txt: .*invalid value 'many'"),
        (line(30, label="2"), "line 31: label 2 is not 0 or 1"),
        (line(30, label=""), "line 31: label None is not 0 or 1"),
    ],
)
def test_a_line_that_is_not_of_the_format_is_named_and_nothing_is_left_behind(tmp_path, wrong, message):
    lines = [line(n) for n in range(40)]
    lines[30] = wrong
    with pytest.raises(DataError, match=message):
        convert(raw_file(tmp_path / "train.txt", lines), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="train"):
        convert(raw_file(tmp_path / "train.txt", []), tmp_path / "out")


def test_an_earlier_conversion_is_not_mixed_with_a_new_one(tmp_path):
    source = raw_file(tmp_path / "train.txt", [line(1)])
    convert(source, tmp_path / "out", validation_share=0.0)
    with pytest.raises(DataError, match="is not empty"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("wrong", [{"row_groups_per_shard": 0}, {"validation_share": 1.0}, {"validation_share": -0.1}])
def test_a_wrong_setting_is_refused(tmp_path, wrong):
    source = raw_file(tmp_path / "train.txt", [line(1)])
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        convert(source, tmp_path / "out", **wrong)


def test_the_command_reports_rows_and_fails_with_the_message(tmp_path):
    source = raw_file(tmp_path / "train.txt", [line(n) for n in range(3)])
    done = CliRunner().invoke(criteo.main, [str(source), str(tmp_path / "out"), "--validation-share", "0"])
    assert done.exit_code == 0
    assert "3 rows" in done.output
    again = CliRunner().invoke(criteo.main, [str(source), str(tmp_path / "out")])
    assert again.exit_code != 0
    assert "is not empty" in again.output
