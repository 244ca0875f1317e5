"""Turn the raw tab-separated log of the Criteo display advertising challenge into typed Parquet shards.

    python pipelines/criteo/convert.py train.txt pipelines/criteo/data

reads `train.txt` (or `train.txt.gz`) once, front to back, and writes OUTPUT/train/part-00000.parquet, … and
OUTPUT/validation/part-00000.parquet, … in the order of the file, which is the order of time. Memory does not
grow with the file: one row group is held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from dfm.errors import DataError, DfmError, SettingsError

SCHEMA = pa.schema(
    [
        ("label", pa.int8()),
        *((f"I{number}", pa.int64()) for number in range(1, 14)),
        *((f"C{number}", pa.string()) for number in range(1, 27)),
    ]
)
ROW_GROUP_ROWS = 131_072
BLOCK_BYTES = 16 * 1024 * 1024


def convert(
    source: Path, output: Path, *, row_groups_per_shard: int = 8, validation_share: float = 0.1
) -> dict[str, int]:
    """Write the rows of `source` below `output`; returns the rows of "train" and of "validation".

    The last rows, `validation_share` of them, become the validation set; the shard in which they begin is cut in
    two. A DataError names the first line that is not a label 0 or 1, 13 integers or blanks and 26 strings or
    blanks with tabs between, or says that there are too few rows for both sets; nothing is published then.
    """
    if row_groups_per_shard < 1:
        raise SettingsError(f"row_groups_per_shard = {row_groups_per_shard}: must be at least 1")
    if not 0.0 <= validation_share < 1.0:
        raise SettingsError(f"validation_share = {validation_share}: must be at least 0 and below 1")
    folders = {name: output / name for name in ("train", "validation")}
    for folder in folders.values():
        if folder.exists() and any(folder.iterdir()):
            raise DataError(f"{folder} is not empty; remove it, or choose another output folder")
    unfinished = output / ".unfinished"
    unfinished.mkdir(parents=True, exist_ok=True)
    try:
        rows_of = _write_shards(source, unfinished, row_groups_per_shard)
        n_train = _rows_to_train_on(source, sum(rows_of.values()), validation_share)
        return _publish(_cut(rows_of, n_train), folders, n_train)
    finally:
        for path in unfinished.iterdir():
            path.unlink()
        unfinished.rmdir()


def _rows_to_train_on(source: Path, n_rows: int, validation_share: float) -> int:
    """How many of all rows come before those that validate. DataError where one of the two sets has none."""
    n_train = n_rows - round(n_rows * validation_share)
    if n_train == 0 or (validation_share and n_train == n_rows):
        raise DataError(
            f"{source} has {n_rows:,} rows, of which a share of {validation_share:g} leaves none to "
            f"{'validate' if n_train else 'train'} on; choose another --validation-share, or 0 for no validation set"
        )
    return n_train


def _cut(rows_of: Mapping[Path, int], n_train: int) -> dict[Path, int]:
    """The same rows in shards of which none lies on both sides of row `n_train`; the rows of each."""
    cut: dict[Path, int] = {}
    for path, n_rows in rows_of.items():
        before = n_train - sum(cut.values())
        if 0 < before < n_rows:
            for first, last in ((0, before), (before, n_rows)):
                cut[_part(path, first, last)] = last - first
            path.unlink()
        else:
            cut[path] = n_rows
    return cut


def _part(path: Path, first: int, last: int) -> Path:
    """A new shard of the rows from `first` to before `last` of another one."""
    part = path.with_suffix(f".{first}.parquet")
    with pq.ParquetFile(path) as shard, pq.ParquetWriter(part, SCHEMA, compression="zstd") as writer:
        begin = 0
        for number in range(shard.num_row_groups):
            row_group = shard.read_row_group(number)
            start, stop = max(first - begin, 0), min(last - begin, len(row_group))
            if start < stop:
                writer.write_table(row_group.slice(start, stop - start), row_group_size=ROW_GROUP_ROWS)
            begin += len(row_group)
    return part


def _publish(rows_of: Mapping[Path, int], folders: Mapping[str, Path], n_train: int) -> dict[str, int]:
    """Move complete shards to their places; the rows of each set."""
    rows = dict.fromkeys(folders, 0)
    counts = dict.fromkeys(folders, 0)
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    for path, n_rows in rows_of.items():
        name = "train" if rows["train"] < n_train else "validation"
        path.replace(folders[name] / f"part-{counts[name]:05d}.parquet")
        rows[name] += n_rows
        counts[name] += 1
    return rows


def _write_shards(source: Path, folder: Path, row_groups_per_shard: int) -> dict[Path, int]:
    """Write all rows of `source` as shards in order; the rows of each."""
    rows_of: dict[Path, int] = {}
    row_groups = _regroup(_read(source), ROW_GROUP_ROWS)
    for first in row_groups:
        path = folder / f"{len(rows_of):08d}.parquet"
        rows_of[path] = 0
        with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
            for row_group in chain([first], islice(row_groups, row_groups_per_shard - 1)):
                writer.write_table(row_group, row_group_size=ROW_GROUP_ROWS)
                rows_of[path] += len(row_group)
    if not rows_of:
        raise DataError(f"{source} has no rows")
    return rows_of


def _regroup(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `rows` rows; only the last one may be shorter."""
    waiting = pa.Table.from_batches([], SCHEMA)
    for batch in batches:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch], SCHEMA)])
        while len(waiting) >= rows:
            yield waiting.slice(0, rows)
            waiting = waiting.slice(rows)
    if len(waiting):
        yield waiting


def _read(source: Path) -> Iterator[pa.RecordBatch]:
    """Typed batches of the raw file, checked; the name's ending tells whether it is compressed."""
    rows_before = 0

    def refuse(row: pyarrow.csv.InvalidRow) -> str:
        # Arrow forgets the message of an exception raised here, so it is kept for the handler below.
        wrong_lines.append(
            f"{source}, line {row.number}: {row.actual_columns} columns instead of {row.expected_columns}, "
            f"in {row.text[:60]!r}; a raw line is label, I1 to I13, C1 to C26, tabs between; no header line"
        )
        return "error"

    wrong_lines: list[str] = []
    try:
        # One thread: line numbers are only counted then, and it keeps up with the Parquet writer.
        reader = pyarrow.csv.open_csv(
            source,
            pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=SCHEMA.names),
            pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False, invalid_row_handler=refuse),
            pyarrow.csv.ConvertOptions(
                column_types=SCHEMA, null_values=[""], strings_can_be_null=True, check_utf8=True
            ),
        )
        for batch in reader:
            _check_labels(source, batch["label"], rows_before)
            rows_before += len(batch)
            yield batch
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(wrong_lines[0] if wrong_lines else f"{source}: {error}") from error


def _check_labels(source: Path, labels: pa.Array, rows_before: int) -> None:
    wrong = pc.fill_null(pc.invert(pc.is_in(labels, pa.array([0, 1], pa.int8()))), True)
    first = pc.index(wrong, True).as_py()
    if first >= 0:
        raise DataError(f"{source}, line {rows_before + first + 1}: label {labels[first].as_py()} is not 0 or 1")


@click.command(help=__doc__)
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option("--row-groups-per-shard", default=8, show_default=True, help=f"each of {ROW_GROUP_ROWS:,} rows")
@click.option("--validation-share", default=0.1, show_default=True, help="of the rows, the last in time")
def main(source: Path, output: Path, row_groups_per_shard: int, validation_share: float) -> None:
    try:
        rows = convert(source, output, row_groups_per_shard=row_groups_per_shard, validation_share=validation_share)
    except DfmError as error:
        raise click.ClickException(str(error)) from error
    for name, count in rows.items():
        click.echo(f"{count:12,} rows in {output / name}")


if __name__ == "__main__":
    main()
