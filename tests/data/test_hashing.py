"""Hashing against the public xxhash package, and numbers that must never change: a saved model depends on them."""

from __future__ import annotations

import datetime
import decimal
import math

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from dfm.data import hashing
from dfm.data.schema import WIDENED
from dfm.data.transforms import LOG2_BUCKETS, NOTHING_KNOWN, TRANSFORMS, NumberStatistics
from dfm.errors import DataError
from dfm.storage.xxhash import hash_bytes, xxh64
from tests.support.tokens import bucket, category, cross, token

TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
INDEX_TYPES = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64()]


def tokens(column: str, texts: list[str | bytes | None]) -> list[int]:
    return [category(column, text) for text in texts]


def hashed(array: pa.Array, column: str = "C1", hash_bits: int = 20) -> list[int]:
    out = hashing.hash_category(array, column, hash_bits)
    assert out.dtype == np.uint32
    return out.tolist()


# ------------------------------------------------------------------------------------------- the hash itself ----


@pytest.mark.parametrize(
    ("value", "seed", "expected"),
    [
        (b"", 0, 0xEF46DB3751D8E999),
        (b"a", 0, 0xD24EC4F1A98C6E5B),
        (b"abc", 0, 0x44BC2CF5AD770999),
        (b"68fd1e64", 0, 0x5D3CCD85C9C22FE4),
        (b"68fd1e64", 2**64 - 1, 0x44D19B78357F94E0),
        (b"exactly four and twenty.", 1, 0xBFFB2649921BD8AB),
        (b"the bytes from thirty-two on go through four lanes at a time", 7, 0x9469ECD393D20DD6),
    ],
)
def test_xxh64_has_the_published_values(value, seed, expected):
    assert hash_bytes(value, seed) == expected == xxhash.xxh64_intdigest(value, seed)


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_xxh64_equals_the_xxhash_package(value, seed):
    assert hash_bytes(value, seed) == xxhash.xxh64_intdigest(value, seed)


@given(st.binary(max_size=40), st.binary(max_size=80), st.binary(max_size=40))
def test_xxh64_of_a_piece_sees_nothing_around_it(before, value, after):
    data = np.frombuffer(before + value + after + b".", np.uint8)
    whole = xxh64(data, len(before), len(before) + len(value), np.uint64(3))
    assert int(whole) == xxhash.xxh64_intdigest(value, 3)


# ----------------------------------------------------------------------------------------------- the tokens ----


def test_token_indices_are_pinned():
    """Whoever changes one of these numbers makes every saved model wrong."""
    assert hashing.HASH_NAME == "xxh64"
    assert int(hashing.column_seed("C1")) == 1953052475120754509
    pinned = {
        ("C1", b"68fd1e64", 20): 1030103,
        ("C1", b"68fd1e64", 30): 425703383,
        ("C2", b"68fd1e64", 20): 750819,
        ("C1", hashing.MISSING, 20): 1003401,
        ("C1", hashing.RARE, 20): 175232,
        ("I1", hashing.PRESENT, 20): 1027123,
        ("I1", hashing.bucket_token(0), 20): 970116,
        ("I1", hashing.bucket_token(7), 20): 938521,
        ("pr\u00e9nom", "Zo\u00eb".encode(), 20): 687328,
    }
    assert {known: hashing.token_index(*known) for known in pinned} == pinned
    assert {known: token(*known) for known in pinned} == pinned


@given(TEXTS, st.binary(max_size=40), st.integers(1, 30))
def test_fewer_hash_bits_keep_the_low_bits(column, value, hash_bits):
    index = hashing.token_index(column, value, hash_bits)
    assert index == token(column, value, hash_bits)
    assert index == hashing.token_index(column, value, 30) % 2**hash_bits


def test_the_same_value_in_another_column_is_another_feature():
    indices = {hashing.token_index(f"C{n}", b"same", 30) for n in range(1000)}
    assert len(indices) == 1000


def test_special_tokens_are_no_text_that_a_column_would_hold():
    special = [hashing.MISSING, hashing.RARE, hashing.PRESENT, *map(hashing.bucket_token, range(1, 50))]
    assert len(set(special)) == len(special)
    assert all(value.startswith(b"\x00") for value in special)
    assert hashed(pa.array(["missing"])) != hashed(pa.array([None], pa.string()))


# -------------------------------------------------------------------------------- columns of every Arrow type ----

FIVE = {
    "int8": pa.array([5, None, -7, 5], pa.int8()),
    "int16": pa.array([5, None, -7, 5], pa.int16()),
    "int32": pa.array([5, None, -7, 5], pa.int32()),
    "int64": pa.array([5, None, -7, 5], pa.int64()),
    "float32": pa.array([5.0, None, -7.0, 5.0], pa.float32()),
    "float64": pa.array([5.0, None, -7.0, 5.0], pa.float64()),
    "float64 with NaN for missing": pa.array([5.0, float("nan"), -7.0, 5.0], pa.float64()),
    "string": pa.array(["5", None, "-7", "5"], pa.string()),
    "string, empty for missing": pa.array(["5", "", "-7", "5"], pa.string()),
    "large_string": pa.array(["5", "", "-7", "5"], pa.large_string()),
    "string_view": pa.array(["5", None, "-7", "5"], pa.string_view()),
    "binary": pa.array([b"5", None, b"-7", b"5"], pa.binary()),
    "large_binary": pa.array([b"5", b"", b"-7", b"5"], pa.large_binary()),
    "binary_view": pa.array([b"5", None, b"-7", b"5"], pa.binary_view()),
    "decimal with zeros after the point": pa.array([5, None, -7, 5], pa.decimal128(9, 2)),
    "decimal256": pa.array([5, None, -7, 5], pa.decimal256(60, 20)),
    "decimal without digits after the point": pa.array([5, None, -7, 5], pa.decimal128(9, 0)),
    "dictionary of strings": pa.array(["5", None, "-7", "5"]).dictionary_encode(),
    "dictionary of integers": pa.array([5, None, -7, 5]).dictionary_encode(),
    "dictionary of floats": pa.array([5.0, None, -7.0, 5.0]).dictionary_encode(),
    "dictionary that holds null": pa.DictionaryArray.from_arrays([1, 0, 2, 1], pa.array([None, "5", "-7"])),
    "dictionary that holds empty text": pa.DictionaryArray.from_arrays([1, 0, 2, 1], pa.array(["", "5", "-7"])),
}


@pytest.mark.parametrize("array", FIVE.values(), ids=FIVE)
def test_a_category_is_the_same_whatever_type_a_system_wrote(array):
    expected = [965009, 1003401, 342107, 965009]
    assert hashed(array) == expected == tokens("C1", ["5", None, "-7", "5"])
    assert hashed(array.slice(1)) == expected[1:]
    assert hashed(array.slice(2, 1)) == expected[2:3]
    assert hashed(array.slice(4)) == []


def test_booleans_are_true_and_false():
    flags = pa.array([True, None, False])
    expected = tokens("C1", ["true", None, "false"])
    assert hashed(flags) == hashed(flags.dictionary_encode()) == hashed(pa.array(["true", "", "false"])) == expected
    assert hashed(flags.slice(1)) == expected[1:]


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)))
def test_integers_hash_as_their_decimal_text(numbers):
    texts = [None if number is None else str(number) for number in numbers]
    assert hashed(pa.array(numbers, pa.int64())) == tokens("C1", texts)


def test_integers_around_zero_and_at_the_ends_keep_their_signs():
    numbers = [-(2**63), -10, -9, -1, 0, 1, 9, 10, 2**63 - 1]
    assert hashed(pa.array(numbers, pa.int64())) == tokens("C1", [str(number) for number in numbers])


@given(st.lists(st.none() | st.integers(0, 2**64 - 1)))
def test_unsigned_integers_beyond_the_signed_range_hash_as_their_text(numbers):
    texts = [None if number is None else str(number) for number in numbers]
    assert hashed(pa.array(numbers, pa.uint64())) == tokens("C1", texts)


@pytest.mark.parametrize("kind", [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()])
def test_the_largest_unsigned_integer_of_each_width_keeps_its_sign(kind):
    most = 2**kind.bit_width - 1
    assert hashed(pa.array([most, 0], kind)) == tokens("C1", [str(most), "0"])


def test_fractions_hash_as_text_and_whole_numbers_among_them_as_integers():
    numbers = [0.5, 3.0, None, -0.0, -2.25, 2.0**52, 1e300, math.inf, math.nan]
    texts = ["0.5", "3", None, "0", "-2.25", str(2**52), str(int(1e300)), "inf", None]
    assert hashed(pa.array(numbers)) == tokens("C1", texts)
    assert hashed(pa.array(numbers).slice(1, 5)) == tokens("C1", texts[1:6])


def test_dates_times_and_decimals_hash_as_text():
    day, moment = datetime.date(2026, 11, 20), datetime.datetime(2026, 11, 20, 7, 5)
    columns = [
        (pa.array([day, None], pa.date32()), "2026-11-20"),
        (pa.array([day, None], pa.date64()), "2026-11-20"),
        (pa.array([moment, None], pa.timestamp("s")), "2026-11-20 07:05:00"),
        (pa.array([moment.time(), None], pa.time32("s")), "07:05:00"),
        (pa.array([decimal.Decimal("1.50"), None], pa.decimal128(9, 2)), "1.5"),
    ]
    for array, text in columns:
        assert hashed(array) == tokens("C1", [text, None]), array.type
        assert hashed(array.slice(1)) == tokens("C1", [None]), array.type


MOMENT = datetime.datetime(2026, 11, 20, 7, 5)
BERLIN = datetime.timezone(datetime.timedelta(hours=1))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "+01:00", "Europe/Berlin"])
def test_a_moment_is_the_same_category_whatever_its_unit_and_zone(unit, zone):
    """Spark writes moments in microseconds of UTC, pandas in nanoseconds without a zone."""
    moments = pa.array([MOMENT, None], pa.timestamp(unit)).cast(pa.timestamp(unit, zone))
    assert hashed(moments) == hashed(moments.dictionary_encode()) == [20547, 1003401]
    if unit != "s":
        fractions = pa.array([MOMENT.replace(microsecond=250_000)], pa.timestamp(unit)).cast(moments.type)
        assert hashed(fractions) == [613525]


def test_a_moment_of_python_is_the_category_that_a_shard_gave_it():
    aware = MOMENT.replace(hour=8, tzinfo=BERLIN)
    assert hashed(pa.array([MOMENT])) == hashed(pa.array([aware])) == tokens("C1", ["2026-11-20 07:05:00"]) == [20547]


def test_a_day_is_the_same_category_as_its_midnight():
    """pandas keeps days as moments, Spark and Parquet as dates."""
    midnight = pa.array([datetime.datetime(2026, 11, 20)])
    assert hashed(midnight) == hashed(pa.array([MOMENT.date()])) == tokens("C1", ["2026-11-20"])
    old = hashing.hash_category(midnight, "C1", 20, WIDENED).tolist()
    assert old == tokens("C1", ["2026-11-20 00:00:00"])


@pytest.mark.parametrize("kind", [pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")])
def test_a_time_of_day_is_the_same_category_whatever_its_unit(kind):
    assert hashed(pa.array([MOMENT.time(), None], kind)) == [463683, 1003401]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.decimal128(12, 3)])
def test_a_fraction_is_the_same_category_whatever_its_type(kind):
    as_written = decimal.Decimal if pa.types.is_decimal(kind) else float
    fractions = pa.array([as_written("0.1"), None, as_written("1.5")], kind)
    assert hashed(fractions) == [226200, 1003401, 24202] == tokens("C1", ["0.1", None, "1.5"])


def test_small_decimals_hash_without_an_exponent_and_round_ones_keep_their_zeros():
    numbers = [decimal.Decimal(text) for text in ("0.00000001", "0.00000010", "0", "100", "-1.10")]
    expected = tokens("C1", ["0.00000001", "0.0000001", "0", "100", "-1.1"])
    assert hashed(pa.array(numbers, pa.decimal128(12, 8))) == expected


@pytest.mark.parametrize("number", [2**53, -(2**53) - 2, 2**62, 2**63 - 1024, -(2**63)])
def test_whole_floats_up_to_the_range_of_int64_hash_as_the_integer(number):
    expected = hashed(pa.array([number, None]))
    assert hashed(pa.array([float(number), None])) == expected == tokens("C1", [str(number), None])
    assert hashed(pa.array([float(number), 0.5]))[0] == expected[0]


def test_bytes_that_are_no_utf8_are_categories_too():
    values = [b"\xff\x00\x80\x81", None, b"\xc3\x28\x00\x00"]
    for kind in (pa.binary(), pa.large_binary(), pa.binary(4), pa.binary_view()):
        assert hashed(pa.array(values, kind)) == tokens("C1", values), kind


@pytest.mark.parametrize("kind", [pa.null(), pa.string(), pa.int32(), pa.float64(), pa.bool_(), pa.date32()])
def test_a_column_of_nulls_is_all_missing_and_an_empty_one_is_empty(kind):
    assert hashed(pa.nulls(5, kind)) == tokens("C1", [None] * 5)
    assert hashed(pa.nulls(0, kind)) == []
    assert hashed(pa.nulls(5, pa.dictionary(pa.int8(), pa.string()))) == tokens("C1", [None] * 5)


def test_a_column_of_empty_texts_is_all_missing():
    assert hashed(pa.array(["", "", ""])) == tokens("C1", [None] * 3)


def test_a_type_that_is_no_category_is_refused_with_the_column_named():
    with pytest.raises(DataError, match=r"column 'C1' holds struct<a: int64>, which is no category"):
        hashed(pa.array([{"a": 1}]))


@given(st.data())
def test_a_dictionary_column_hashes_like_the_plain_one(data):
    distinct = data.draw(st.lists(st.none() | TEXTS, min_size=1, max_size=30))
    codes = data.draw(st.lists(st.none() | st.integers(0, len(distinct) - 1), max_size=60))
    start = data.draw(st.integers(0, len(codes)))
    length = data.draw(st.integers(0, len(codes)))
    indices = pa.array(codes, data.draw(st.sampled_from(INDEX_TYPES)))
    values = pa.array(distinct, data.draw(st.sampled_from([pa.string(), pa.large_string()])))
    encoded = pa.DictionaryArray.from_arrays(indices, values).slice(start, length)
    plain = [None if code is None else distinct[code] for code in codes][start : start + length]
    assert hashed(encoded) == hashed(pa.array(plain, pa.string())) == tokens("C1", plain)


def test_a_full_dictionary_of_small_codes_leaves_room_for_missing():
    texts = [f"v{n}" for n in range(128)]
    codes = pa.array([*range(128), None], pa.int8())
    assert hashed(pa.DictionaryArray.from_arrays(codes, pa.array(texts))) == tokens("C1", [*texts, None])


# -------------------------------------------------------------------------------------------------- numbers ----


def codes_of(numbers: list[float | None]) -> list[int]:
    present = np.array([number is not None for number in numbers], np.bool_)
    return (
        TRANSFORMS["log2-bucket"]
        .codes(np.array([n or 0.0 for n in numbers], np.float64), present, NOTHING_KNOWN)
        .tolist()
    )


def test_log2_buckets_begin_where_the_definition_says():
    assert codes_of([None, -3.5, -1e-300, 0.0, -0.0, 1e-300, 1.0, 1.0000001, 2.0]) == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    for step in range(1, 200):
        edge = math.exp(math.sqrt(step))
        assert codes_of([edge * (1 - 1e-9), edge * (1 + 1e-9)]) == [5 + step - 1, 5 + step], step
    assert codes_of([2.0000001, math.e - 1e-9, math.e + 1e-9]) == [5, 5, 6]


@given(st.floats(2.0, 1e19, exclude_min=True))
def test_a_log2_bucket_is_the_floor_of_the_squared_logarithm(number):
    squared = math.log(number) ** 2
    near = {5 + math.floor(squared * (1 - 1e-14)), 5 + math.floor(squared * (1 + 1e-14))}
    assert codes_of([number])[0] in near


def test_huge_numbers_share_the_last_log2_bucket():
    assert codes_of([1e19, 1e20, 1e300, 1.7e308]) == [5 + 1913, *[LOG2_BUCKETS - 1] * 3]


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=30),
    st.lists(st.floats(-4, 4), max_size=8, unique=True).map(sorted),
)
def test_a_quantile_bucket_counts_the_boundaries_below(numbers, boundaries):
    present = np.arange(len(numbers)) % 3 != 1
    codes = TRANSFORMS["quantile"].codes(np.array(numbers), present, NumberStatistics(tuple(boundaries)))
    slow = [1 + sum(b <= x for b in boundaries) if known else 0 for x, known in zip(numbers, present, strict=True)]
    assert codes.tolist() == slow
    assert codes.dtype == np.int32


def test_bucket_tables_hold_the_token_of_every_bucket_and_missing_is_that_of_a_category():
    table = hashing.bucket_table("I1", 12, 20)
    assert table.dtype == np.uint32
    assert table.tolist() == [bucket("I1", code) for code in range(12)]
    assert table[0] == hashed(pa.array([None], pa.string()), "I1")[0]


# --------------------------------------------------------------------------------------------------- crosses ----


@given(st.lists(st.tuples(st.integers(0, 2**30 - 1), st.integers(0, 2**30 - 1)), min_size=1), st.integers(1, 30))
def test_a_cross_is_the_hash_of_both_indices_as_sixteen_bytes(pairs, hash_bits):
    left, right = (np.array(side, np.uint32) for side in zip(*pairs, strict=True))
    out = np.empty(len(pairs), np.uint32)
    hashing.cross_indices(left, right, hashing.column_seed("C1&C2"), np.uint64(2**hash_bits - 1), out)
    assert out.tolist() == [cross("C1&C2", *pair, hash_bits) for pair in pairs]


# ------------------------------------------------------------------------------------------------ collisions ----


def test_expected_collisions_match_a_draw():
    assert hashing.expected_collisions(0, 20) == hashing.expected_collisions(1, 20) == 0.0
    assert hashing.expected_collisions(2, 10) == pytest.approx(1 / 1024)
    drawn = np.random.default_rng(0).integers(0, 1 << 16, 50_000)
    _, counts = np.unique(drawn, return_counts=True)
    shared = counts[counts > 1].sum() / len(drawn)
    assert hashing.expected_collisions(50_000, 16) == pytest.approx(shared, rel=0.02)


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int32(), pa.int64()])
@pytest.mark.parametrize("code", [3, 4, 100, -1])
def test_a_code_outside_of_its_dictionary_is_damage(kind, code):
    if code < 0 and pa.types.is_unsigned_integer(kind):
        code = 1000
    codes = pa.array([0, None, code], kind)
    damaged = pa.DictionaryArray.from_arrays(codes, pa.array(["a", "b", "c"]), safe=False)
    with pytest.raises(DataError, match=rf"out of range \({min(code, 0)} to {max(code, 0)}, of 3 values\)"):
        hashed(damaged)


@given(st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=40), st.integers(0, 20))
def test_a_part_of_a_dictionary_array_hashes_as_its_texts(texts, start):
    encoded = pa.array(texts, pa.string()).dictionary_encode().slice(start)
    assert hashed(encoded) == hashed(pa.array(texts[start:], pa.string()))
