"""The synthetic log is reproducible, looks like Criteo's, and its truth is the truth of the rows it wrote."""

from __future__ import annotations

import hashlib
import json
import math
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm.data import synthetic
from dfm.data.transforms import NOTHING_KNOWN, TRANSFORMS
from dfm.errors import DataError, SettingsError, StorageError
from dfm.storage.ownership import SYNTHETIC, Ledger

MASK_64 = (1 << 64) - 1
MASK_32 = (1 << 32) - 1
# What undoes the two multiplications of MurmurHash3's 32-bit finalizer.
INVERSE_1 = pow(0x85EBCA6B, -1, 1 << 32)
INVERSE_2 = pow(0xC2B2AE35, -1, 1 << 32)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("log")
    synthetic.generate(directory, rows=40_000, days=2, shards_per_day=2, seed=7)
    return directory


@pytest.fixture(scope="module")
def rows(log: Path) -> pa.Table:
    return read(log)


def read(log: Path) -> pa.Table:
    return pa.concat_tables(pq.ParquetFile(path).read() for path in sorted(log.glob("*/*.parquet")))


def digests(log: Path) -> dict[str, str]:
    files = (path for path in sorted(log.rglob("*")) if path.is_file())
    return {str(path.relative_to(log)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- The planted model, again, by definition and in Python's own integers ---


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK_64
    return x ^ (x >> 31)


def rank_of(column: int, text: str) -> int:
    """Undo the spelling of a category: MurmurHash3's finalizer, backwards."""
    x = int(text, 16)
    x ^= x >> 16
    x = (x * INVERSE_2) & MASK_32
    x ^= (x >> 13) ^ (x >> 26)
    x = (x * INVERSE_1) & MASK_32
    x ^= x >> 16
    return (x - column * 0x9E3779B1) & MASK_32


def bucket_of(count: int) -> int:
    if count > 2:
        return 5 + int(math.log(count) ** 2)
    return max(count, -1) + 2


def planted_weights(seed: int, column: int, token: int, half_token: float) -> tuple[float, list[float]]:
    shrink = math.sqrt(3.0) / (1.0 + token / half_token)
    first = mix(((seed ^ 0x9E3779B97F4A7C15) + ((column + 1) << 40) + token) & MASK_64)
    bits = mix(first)
    digits = [(bits >> (10 * factor)) & 1023 for factor in range(synthetic.RANK)]
    w = synthetic._LINEAR_STDEV * shrink * ((first >> 11) / 2.0**52 - 1.0)
    return w, [synthetic._FACTOR_STDEV * shrink * (digit * 2.0 / 1023.0 - 1.0) for digit in digits]


def planted_logit(truth: synthetic.Truth, row: dict[str, int | str | None]) -> float:
    counts = [row[name] for name in synthetic.COUNT_COLUMNS]
    categories = [row[name] for name in synthetic.CATEGORY_COLUMNS]
    tokens = [0 if count is None else bucket_of(int(count)) for count in counts]
    tokens += [0 if text is None else rank_of(number, str(text)) for number, text in enumerate(categories)]
    halves = synthetic._EFFECTS["half_token"]
    weights = [planted_weights(truth.seed, c, token, halves[c]) for c, token in enumerate(tokens)]
    pairs = sum(sum(a * b for a, b in zip(v, u, strict=True)) for (_, v), (_, u) in combinations(weights, 2))
    return truth.bias + sum(w for w, _ in weights) + pairs


def test_every_day_has_the_marker_that_sensors_wait_for_and_it_goes_with_the_log(tmp_path: Path) -> None:
    synthetic.generate(tmp_path / "log", rows=40, days=3, shards_per_day=1)
    assert len([*(tmp_path / "log").glob("day=*/_SUCCESS")]) == 3
    synthetic.generate(tmp_path / "log", rows=40, days=2, shards_per_day=1, overwrite=True)
    assert len([*(tmp_path / "log").glob("day=*/_SUCCESS")]) == len([*(tmp_path / "log").glob("day=*")]) == 2


def test_the_truth_is_the_log_loss_of_the_planted_model_on_the_written_rows(tmp_path):
    truth = synthetic.generate(tmp_path, rows=300, days=1, shards_per_day=2, seed=3)
    rows = read(tmp_path).to_pylist()
    logits = [planted_logit(truth, row) for row in rows]
    losses = [math.log1p(math.exp(-z if row["label"] else z)) for z, row in zip(logits, rows, strict=True)]
    assert truth.days[0].log_loss == pytest.approx(sum(losses) / len(rows), rel=1e-9)
    scored = list(zip(logits, (row["label"] for row in rows), strict=True))
    wins = sum(p > n for p, click in scored if click for n, other in scored if not other)
    pairs = truth.days[0].clicks * (len(rows) - truth.days[0].clicks)
    assert truth.days[0].auc == pytest.approx(wins / pairs, abs=1e-9)


def test_the_planted_probabilities_are_calibrated(log):
    """The log loss met on the clicks drawn is what the planted logits make expect, to within 4 sigma."""
    truth = synthetic.read_truth(log)
    _, tokens = synthetic._draw(truth.seed, 0, truth.rows)
    logits = synthetic._planted_logits(np.uint64(truth.seed), tokens, synthetic._EFFECTS) + truth.bias
    p = 1.0 / (1.0 + np.exp(-logits))
    expected = -(p * np.log(p) + (1.0 - p) * np.log1p(-p))
    sigma = math.sqrt(np.sum(p * (1.0 - p) * logits**2)) / truth.rows
    met = sum(day.log_loss * day.rows for day in truth.days) / truth.rows
    assert abs(met - expected.mean()) < 4.0 * sigma
    assert sum(day.clicks for day in truth.days) / truth.rows == pytest.approx(synthetic.CLICK_RATE, abs=0.01)


def test_clicks_depend_on_no_column_but_through_the_planted_probability(log, rows):
    """Within every frequent token clicks are as many as expected, to 5 sigma: no cell shares their draw."""
    truth = synthetic.read_truth(log)
    _, tokens = synthetic._draw(truth.seed, 0, truth.rows)
    logits = synthetic._planted_logits(np.uint64(truth.seed), tokens, synthetic._EFFECTS) + truth.bias
    p = 1.0 / (1.0 + np.exp(-logits))
    surplus = rows["label"].to_numpy() - p
    for column in tokens:
        for token in np.flatnonzero(np.bincount(column[column < 100]) >= 1_000):
            there = column == token
            assert abs(surplus[there].sum()) < 5.0 * math.sqrt((p * (1.0 - p))[there].sum())


def test_the_truth_beats_the_click_rate_by_far_and_half_of_that_needs_the_pairs(log):
    truth = synthetic.read_truth(log)
    for day in truth.days:
        assert day.log_loss < 0.8 * day.click_rate_log_loss
        assert day.auc > 0.8
    _, tokens = synthetic._draw(truth.seed, 0, truth.rows)
    linear_only = synthetic._EFFECTS.copy()
    linear_only["factor"] = 0.0
    both = synthetic._planted_logits(np.uint64(truth.seed), tokens, synthetic._EFFECTS)
    linear = synthetic._planted_logits(np.uint64(truth.seed), tokens, linear_only)
    assert 0.35 < np.var(both - linear) / np.var(both) < 0.65


def test_day_records_count_the_rows_and_clicks_of_their_folders(log):
    truth = synthetic.read_truth(log)
    assert [day.day for day in truth.days] == ["2026-11-14", "2026-11-15"]
    for day in truth.days:
        labels = ds.dataset(log / f"day={day.day}").to_table(columns=["label"])["label"]
        rate = day.clicks / day.rows
        assert (len(labels), pc.sum(labels).as_py()) == (day.rows, day.clicks)
        assert day.click_rate_log_loss == pytest.approx(-rate * math.log(rate) - (1 - rate) * math.log(1 - rate))
    assert truth.day("2026-11-15") == truth.days[1]
    with pytest.raises(DataError, match="2026-11-16"):
        truth.day("2026-11-16")


def test_columns_are_plain_nullable_integers_and_strings(rows):
    assert rows.schema.field("label").type == pa.int8()
    assert {rows.schema.field(name).type for name in synthetic.COUNT_COLUMNS} == {pa.int64()}
    assert {rows.schema.field(name).type for name in synthetic.CATEGORY_COLUMNS} == {pa.string()}
    for name in synthetic.CATEGORY_COLUMNS:
        assert pc.all(pc.match_substring_regex(rows[name].drop_null(), "^[0-9a-f]{8}$")).as_py()


def test_counts_have_heavy_tails_nulls_and_where_asked_negatives(rows):
    for name, (missing, negative, median, _, limit) in zip(synthetic.COUNT_COLUMNS, synthetic._COUNT_LAWS, strict=True):
        present = rows[name].drop_null().to_numpy()
        assert rows[name].null_count / len(rows) == pytest.approx(missing, abs=0.015)
        assert np.mean(present < 0) == pytest.approx(negative, abs=0.015)
        assert present.max() <= limit
        if negative == 0.0:
            assert abs(np.median(present) - median) <= 0.1 * median + 1.0
    assert pc.max(rows["I5"]).as_py() > 100 * pc.approximate_median(rows["I5"]).as_py()


def test_categories_follow_their_zipf_law(rows):
    for number, (name, law) in enumerate(zip(synthetic.CATEGORY_COLUMNS, synthetic._CATEGORY_LAWS, strict=True)):
        cardinality, missing, exponent, offset = law
        present = rows[name].drop_null().to_pylist()
        ranks = np.array([rank_of(number, text) for text in present])
        assert 1 - len(present) / len(rows) == pytest.approx(missing, abs=0.015)
        assert ranks.min() >= 1
        assert ranks.max() <= cardinality
        # The share of the integral of the law below rank 2 and below rank 10.
        for bound in (2, 10):
            mass = [(x + offset) ** (1 - exponent) for x in (1, min(bound, cardinality + 1), cardinality + 1)]
            share = (mass[0] - mass[1]) / (mass[0] - mass[2])
            assert np.mean(ranks < bound) == pytest.approx(share, abs=0.015)
    assert len(pc.unique(rows["C9"])) == 3
    assert len(pc.unique(rows["C3"])) > 10_000


def test_a_count_is_planted_by_the_bucket_that_the_transform_gives_it():
    counts = np.array([*range(-3, 3_000), 23_159_456], np.int64)
    codes = TRANSFORMS["log2-bucket"].codes(counts.astype(np.float64), np.ones(len(counts), np.bool_), NOTHING_KNOWN)
    tokens = np.array([synthetic._bucket(count) for count in counts])
    for here, there in ((codes, tokens), (tokens, codes)):
        assert all(len(set(there[here == value])) == 1 for value in set(here))


def test_the_same_seed_gives_the_same_bytes_however_many_processes_write_them(tmp_path):
    size = dict(rows=2_000, days=2, shards_per_day=2)
    synthetic.generate(tmp_path / "one", **size, seed=5, processes=1)
    synthetic.generate(tmp_path / "two", **size, seed=5, processes=2)
    synthetic.generate(tmp_path / "other", **size, seed=6)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert read(tmp_path / "one") != read(tmp_path / "other")


def test_neither_shards_nor_row_groups_change_the_rows(tmp_path, monkeypatch):
    synthetic.generate(tmp_path / "whole", rows=1_001, days=1, shards_per_day=1)
    monkeypatch.setattr(synthetic, "ROW_GROUP_ROWS", 64)
    cut = synthetic.generate(tmp_path / "cut", rows=1_001, days=3, shards_per_day=2)
    assert read(tmp_path / "cut") == read(tmp_path / "whole")
    assert sorted(day.rows for day in cut.days) == [333, 334, 334]
    group_rows = [
        pq.ParquetFile(path).metadata.row_group(0).num_rows for path in (tmp_path / "cut").glob("*/*.parquet")
    ]
    assert group_rows == [64] * 6


def test_progress_counts_up_to_all_rows(tmp_path):
    seen: list[int] = []
    synthetic.generate(tmp_path, rows=1_000, days=2, shards_per_day=3, progress=seen.append)
    assert len(seen) == 6
    assert seen[-1] == 1_000
    assert all(earlier < later for earlier, later in pairwise(seen))


def test_an_earlier_log_is_kept_unless_overwriting_is_allowed(tmp_path):
    synthetic.generate(tmp_path, rows=100, days=2, shards_per_day=1, seed=1)
    (tmp_path / "notes.txt").write_text("mine")
    before = digests(tmp_path)
    with pytest.raises(DataError, match="already holds a log"):
        synthetic.generate(tmp_path, rows=100, days=1, shards_per_day=1, seed=2)
    assert digests(tmp_path) == before
    truth = synthetic.generate(tmp_path, rows=60, days=1, shards_per_day=1, seed=2, overwrite=True)
    assert synthetic.read_truth(tmp_path) == truth
    assert len(read(tmp_path)) == 60
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interrupted_log_has_no_truth(tmp_path):
    def interrupt(done_rows: int) -> None:
        raise KeyboardInterrupt

    synthetic.generate(tmp_path, rows=50, days=1, shards_per_day=1)
    with pytest.raises(KeyboardInterrupt):
        synthetic.generate(tmp_path, rows=100, days=2, shards_per_day=1, overwrite=True, progress=interrupt)
    with pytest.raises(DataError, match="cut short"):
        synthetic.read_truth(tmp_path)


def test_a_log_that_was_overtaken_replaces_no_shard_of_the_later_one(tmp_path):
    """Both write shards of the same names, and the first more days; the second begins and ends while it is at work."""
    of_second = {}

    def overtaken(done_rows: int) -> None:
        synthetic.generate(tmp_path, rows=60, days=1, shards_per_day=2, seed=2, overwrite=True)
        of_second.update(digests(tmp_path))

    with pytest.raises(StorageError, match="another run claimed the same files"):
        synthetic.generate(tmp_path, rows=400, days=2, shards_per_day=2, seed=1, progress=overtaken)
    assert digests(tmp_path) == of_second
    assert len(read(tmp_path)) == 60
    assert synthetic.read_truth(tmp_path).seed == 2


def test_a_shard_that_came_while_the_next_log_made_room_is_none_of_its_own(tmp_path, monkeypatch):
    Ledger(str(tmp_path), SYNTHETIC).claim(["day=2026-11-20/part-00000.parquet"])
    claim = Ledger.claim

    def late(*arguments):
        (tmp_path / "day=2026-11-20").mkdir()
        (tmp_path / "day=2026-11-20" / "part-00000.parquet").write_bytes(b"late")
        return claim(*arguments)

    monkeypatch.setattr(Ledger, "claim", late)
    synthetic.generate(tmp_path, rows=60, days=1, shards_per_day=1)
    assert [path.name for path in tmp_path.glob("day=*")] == ["day=2026-11-14"]


def test_a_damaged_truth_is_refused(tmp_path):
    synthetic.generate(tmp_path, rows=50, days=1, shards_per_day=1)
    path = tmp_path / synthetic.TRUTH_FILE
    fields = json.loads(path.read_text())
    del fields["bias"]
    path.write_text(json.dumps(fields))
    with pytest.raises(DataError, match="bias"):
        synthetic.read_truth(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": 7}, "rows = 7"),
        ({"days": 0}, "days = 0"),
        ({"shards_per_day": 0}, "shards_per_day = 0"),
        ({"processes": 0}, "processes = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"first_day": "14.11.2026"}, r"first_day = '14\.11\.2026'"),
    ],
)
def test_a_wrong_size_is_refused_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(SettingsError, match=message):
        synthetic.generate(tmp_path / "log", **{"rows": 100, "days": 2, **wrong})
    assert not (tmp_path / "log").exists()


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=12))
def test_auc_is_the_share_of_pairs_in_the_right_order(rows):
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p, click in rows if click for n, other in rows if not other]
    scores = np.array([score for score, _ in rows], np.float32)
    clicked = np.array([click for _, click in rows], np.bool_)
    assert synthetic._exact_auc(scores, clicked) == pytest.approx(sum(wins) / len(wins) if wins else 0.5)
