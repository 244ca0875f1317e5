"""From Parquet to partitions on one core, beside scikit-learn's FeatureHasher on the same rows.

    .venv/bin/python benchmarks/bench_hashing.py [--rows 1000000] [--repeats 3] [--log synth] [--smoke]

Both read the same shards: of `dfm synth` (39 columns), of six columns of text in which no value comes twice
(`--log distinct`), or of 39 columns of integers that are categories (`--log integers`). dfm decodes, hashes, counts
features, orders the vocabulary, compacts, shuffles and writes partitions; FeatureHasher gets "column=value" strings
made from the decoded columns, and gives a CSR matrix.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import machine_line

from dfm.data.chunks import hash_units
from dfm.data.parquet import arrow_schema, find_shards
from dfm.data.preparation import load_slices
from dfm.data.reading import Reading
from dfm.data.row_lookup import RowLookup
from dfm.data.schema import ResolvedSchema, resolve
from dfm.data.synthetic import generate
from dfm.data.vocabulary import build_vocabulary, merge_counts
from dfm.settings.tables import Schema, TrainingSettings
from dfm.training.plan import plan_training

HASH_BITS = 22


def dfm_stages(paths: list[str], cache: Path) -> dict[str, float]:
    """Seconds of each stage for all rows, in this process alone."""
    shutil.rmtree(cache, ignore_errors=True)
    started = time.perf_counter()
    shards = find_shards(paths)
    schema = schema_of(shards[0])
    plan = plan_training(shards, TrainingSettings(n_replicas=1, averages_per_epoch=8), 0)
    reading = Reading(schema, HASH_BITS, "classification", cache=str(cache))
    found = time.perf_counter()
    chunks = [hash_units(reading, units, 8, (0, 0, i)) for i, units in enumerate(plan.replicas[0])]
    hashed = time.perf_counter()
    counts = merge_counts([chunk.counts for chunk in chunks], HASH_BITS)
    vocabulary = build_vocabulary(counts, [field.name for field in schema.fields], HASH_BITS, 2, 10)
    lookup = RowLookup(vocabulary)
    ordered = time.perf_counter()
    load_slices(reading, plan.replicas[0], 8, (0, 0), vocabulary, "benchmark", lookup)
    built = time.perf_counter()
    return {
        "footers": found - started,
        "decode, hash, count": hashed - found,
        "vocabulary": ordered - hashed,
        "compact, shuffle, write": built - ordered,
        "all": built - started,
    }


def make_log(kind: str, folder: Path, rows: int) -> list[Path]:
    """Shards of a kind."""
    if kind == "synth":
        generate(folder, rows=rows, days=1, shards_per_day=4)
        return sorted(folder.glob("*/*.parquet"))
    folder.mkdir()
    random = np.random.default_rng(0)
    columns = {"label": pa.array(random.integers(0, 2, rows), pa.int8())}
    for j in range(6 if kind == "distinct" else 39):
        numbers = random.permutation(rows) if kind == "distinct" else random.integers(0, 10 ** (1 + j % 6), rows)
        columns[f"C{j}"] = pa.array([f"u{number}" for number in numbers]) if kind == "distinct" else pa.array(numbers)
    table, each = pa.table(columns), -(-rows // 4)
    for number in range(4):
        pq.write_table(table.slice(number * each, each), folder / f"{number}.parquet", row_group_size=1 << 17)
    return sorted(folder.glob("*.parquet"))


def schema_of(shard: object) -> ResolvedSchema:
    """The fields of a log."""
    names = arrow_schema(shard).names  # type: ignore[arg-type]
    return resolve(Schema(categorical=("C*",), numeric=("I*",) if "I1" in names else ()), names)


def feature_hasher_seconds(path: Path, rows: int) -> float:
    """Seconds that FeatureHasher takes for the first `rows` rows of a shard, decoding included."""
    from sklearn.feature_extraction import FeatureHasher

    started = time.perf_counter()
    table = pq.read_table(path, partitioning=None).slice(0, rows)
    names = [name for name in table.column_names if name != "label"]
    columns = [[f"{name}={value}" for value in table.column(name).to_pylist()] for name in names]
    tokens: Iterator[tuple[str, ...]] = zip(*columns, strict=True)
    FeatureHasher(2**HASH_BITS, input_type="string", alternate_sign=False).transform(tokens)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--log", choices=("synth", "distinct", "integers"), default="synth")
    parser.add_argument("--smoke", action="store_true", help="tiny and untimed: does it still run?")
    arguments = parser.parse_args()
    rows, repeats = (4000, 1) if arguments.smoke else (arguments.rows, arguments.repeats)
    pa.set_cpu_count(1)
    print(machine_line())
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "clicks"
        shard, *_ = make_log(arguments.log, log, rows)
        started = time.perf_counter()
        dfm_stages([str(shard)], Path(folder) / "cache")
        print(f"first shard, compilation included: {time.perf_counter() - started:.1f} s (left out below)")
        runs = [dfm_stages([str(log)], Path(folder) / "cache") for _ in range(repeats)]
        middle = sorted(runs, key=lambda run: run["all"])[len(runs) // 2]
        few = min(rows // 4, 50_000)
        peer = sorted(feature_hasher_seconds(shard, few) for _ in range(repeats))[repeats // 2]
    if arguments.smoke:
        return
    print(f"{rows:,} rows of the log {arguments.log!r}, hash_bits {HASH_BITS}, one core, median of {repeats} runs")
    for stage, seconds in middle.items():
        print(f"  dfm, {stage:24} {seconds:7.2f} s  {rows / seconds:12,.0f} rows/s")
    print(f"  FeatureHasher ({few:,} rows)        {peer:7.2f} s  {few / peer:12,.0f} rows/s")
    print(f"  ratio {rows / middle['all'] / (few / peer):.1f}")


if __name__ == "__main__":
    main()
