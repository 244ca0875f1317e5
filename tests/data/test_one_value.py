"""One value, one prediction: whatever type a value comes in, and whatever way it takes to the model."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dfm.data import canonical, row_encoder
from dfm.data.columns import parse_numbers
from dfm.data.number_sketches import merge_sketches, sketch_values
from dfm.data.parquet import Unit, find_shards, read_unit
from dfm.data.row_encoder import MOST_ROWS
from dfm.data.schema import SHORTEST, WIDENED, resolve
from dfm.data.transforms import NumberStatistics
from dfm.data.vocabulary import Vocabulary
from dfm.errors import ModelError
from dfm.estimators.chunks import Scores, predict_lazily
from dfm.kernels.tables import Layout, allocate
from dfm.model.fm_model import FMModel
from dfm.settings.tables import Schema

HASH_BITS = 12
COLUMNS = ["label", "weight", "category", "other", "bucket", "quantile", "scaled", "raw", "list"]
CATEGORY = {
    "categorical": ("category", "other"),
    "lists": ("list",),
    "crosses": (("category", "other"),),
}
NUMBER = {
    "categorical": ("other",),
    "numeric": ("bucket", "quantile", "scaled", "raw"),
    "transforms": {"quantile": "quantile", "scaled": "standardize", "raw": "raw"},
    "crosses": (("quantile", "other"),),
}
PLAIN_NUMBER = {**NUMBER, "numeric": ("bucket", "quantile"), "transforms": {"quantile": "quantile"}, "crosses": ()}
"""What the row encoder takes."""
DRAWN = settings(phases=(Phase.explicit, Phase.generate))
"""Draws are small as they come; to shrink one takes minutes."""


def random_model(fields: Mapping[str, Any], statistics: Mapping[str, NumberStatistics]) -> FMModel:
    """A model that knows every hashed index, each with weights of its own: another index is another prediction."""
    schema = resolve(Schema(**fields), COLUMNS)
    n_features = 1 << HASH_BITS
    table = allocate(Layout("sgd", 2), n_features, n_features)
    rng = np.random.default_rng(1)
    table.linear[:, 0] = rng.normal(0, 1, n_features)
    table.factors[:, :2] = rng.normal(0, 0.5, (n_features, 2))
    ids = np.arange(n_features, dtype=np.uint32)
    vocabulary = Vocabulary(
        ids,
        np.ones(n_features, np.int64),
        np.zeros(n_features, np.uint16),
        np.full(len(schema.fields), -1),
        n_features,
        HASH_BITS,
    )
    return FMModel(schema, "regression", vocabulary, table, statistics)


def statistics_of(trained: pa.Array) -> dict[str, NumberStatistics]:
    """What training learns of a column of the value, and of one below and one above it."""
    values, _, _ = parse_numbers(trained, "quantile")
    size = max(abs(values[0]), 1e-30)
    known = merge_sketches([sketch_values(np.array([values[0] - size, values[0], values[0] + size]))], 3)
    return {"quantile": known, "scaled": NumberStatistics((), float(values[0]) / 3 + 1, float(size))}


# ---------------------------------------------------------------------------------- representations ----


@dataclass(frozen=True)
class Form:
    """One representation of a value: a Python or NumPy scalar, or an Arrow array of one row."""

    name: str
    value: Any

    def __repr__(self) -> str:
        value = self.value
        return f"{self.name}: {value.to_pylist() if isinstance(value, pa.Array) else repr(value)}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Hypothesis shows draws by this."""
        printer.text(repr(self))


def numbers(d: Decimal) -> list[Form]:
    """The scalars and arrays that hold a number: what rounds to it, or holds it exactly if it is whole."""
    forms = [Form("decimal", d)]
    whole = d == d.to_integral_value()
    if whole:
        forms += [Form("int", int(d))]
        for kind in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64):
            if np.iinfo(kind).min <= d <= np.iinfo(kind).max:
                forms += [
                    Form(f"numpy {kind.__name__}", kind(int(d))),
                    Form(f"arrow {kind.__name__}", pa.array([kind(int(d))])),
                ]
    for kind in (np.float64, np.float32, np.float16):
        if holds(d, kind):
            forms += [Form(f"numpy {kind.__name__}", kind(d)), Form(f"arrow {kind.__name__}", pa.array([kind(d)]))]
    if holds(d, np.float64):
        forms += [Form("float", float(d))]
    if holds(d, np.float32):
        forms += [
            Form("widened float32", float(np.float32(d))),
            Form("arrow widened", pa.array([float(np.float32(d))])),
        ]
    places = max(0, -int(d.normalize().as_tuple().exponent))
    if places <= 30 and abs(d) < Decimal(10) ** (70 - places):
        forms += [Form("decimal256", pa.array([d], pa.decimal256(76, places)))]
    if places <= 20 and abs(d) < Decimal(10) ** (36 - places):
        forms += [Form("decimal128", pa.array([d], pa.decimal128(38, places + 2)))]
    return forms + [
        Form(f"dictionary of {form.name}", form.value.dictionary_encode())
        for form in forms
        if isinstance(form.value, pa.Array) and not pa.types.is_float16(form.value.type)
    ]


def holds(d: Decimal, kind: Any) -> bool:
    """Whether a float type holds a number: exactly where it is whole, else as its shortest text."""
    with np.errstate(over="ignore"):
        held = kind(d)
    if not np.isfinite(held):
        return False
    return int(held) == d if d == d.to_integral_value() else Decimal(str(held)) == d


def texts(text: str) -> list[Form]:
    """A text as scalars and arrays."""
    plain = pa.array([text])
    return [
        Form("text", text),
        Form("numpy text", np.str_(text)),
        Form("arrow text", plain),
        Form("arrow large text", plain.cast(pa.large_string())),
        Form("arrow bytes", plain.cast(pa.binary())),
        Form("dictionary of text", plain.dictionary_encode()),
        Form("dictionary of large text", plain.cast(pa.large_string()).dictionary_encode()),
    ]


def flags(flag: bool) -> list[Form]:
    return [Form("bool", flag), Form("numpy bool", np.bool_(flag)), Form("arrow bool", pa.array([flag]))]


def dates(day: datetime.date) -> list[Form]:
    plain, midnight = pa.array([day]), datetime.datetime.combine(day, datetime.time())
    return [
        Form("date", day),
        Form("numpy day", np.datetime64(day)),
        Form("date32", plain),
        Form("date64", plain.cast(pa.date64())),
        *(
            Form("midnight", midnight),
            Form("timestamp", pa.array([midnight])),
            Form("pandas day", pd.Timestamp(midnight)),
        ),
        *texts(day.isoformat()),
    ]


def moments(moment: datetime.datetime) -> list[Form]:
    """A moment without a zone is one of UTC."""
    aware = moment.replace(tzinfo=datetime.UTC)
    elsewhere = aware.astimezone(datetime.timezone(datetime.timedelta(hours=5, minutes=30)))
    fraction = f".{moment.microsecond:06d}".rstrip("0") if moment.microsecond else ""
    forms = [
        *(Form("datetime", moment), Form("datetime of UTC", aware), Form("datetime elsewhere", elsewhere)),
        *(Form("numpy datetime", np.datetime64(moment)), Form("pandas timestamp", pd.Timestamp(elsewhere))),
        *texts(f"{moment:%Y-%m-%d %H:%M:%S}{fraction}".removesuffix(" 00:00:00")),
    ]
    for unit, zone in itertools.product(("s", "ms", "us", "ns"), (None, "UTC", "Asia/Kolkata")):
        if moment.microsecond % {"s": 10**6, "ms": 1000}.get(unit, 1) == 0:
            array = pa.array([aware], pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, zone or "UTC"))
            forms.append(Form(f"timestamp {unit} {zone}", array if zone else array.cast(pa.timestamp(unit))))
    return forms


def missing() -> list[Form]:
    kinds = (pa.null(), pa.string(), pa.int64(), pa.float32(), pa.bool_(), pa.decimal128(5, 1))
    return [
        *(Form("none", None), Form("empty text", ""), Form("arrow empty text", pa.array([""]))),
        *(Form(f"null of {kind}", pa.nulls(1, kind)) for kind in kinds),
        Form("null code", pa.array([None], pa.dictionary(pa.int32(), pa.string()))),
    ]


def shown(d: Decimal) -> str:
    """A number without exponent and without zeros at the end; -0 is 0."""
    text = f"{d:f}" if d else "0"
    return text.rstrip("0").rstrip(".") if "." in text else text


def meant(x: float) -> Decimal:
    """The number that a float means: a float32 is its shortest text."""
    narrow = np.float32(x)
    return Decimal(str(narrow)) if narrow == x and x % 1 else Decimal(repr(x))


SINGLE = st.floats(width=32, allow_nan=False, allow_infinity=False).map(np.float32)
FRACTIONS = st.one_of(
    st.decimals(-(10**6), 10**6, places=1),
    st.decimals(-(10**4), 10**4, places=3),
    st.decimals(0, 1, places=8),
    st.floats(-1e9, 1e9).map(meant),
    st.floats(width=16, allow_nan=False, allow_infinity=False).map(meant),
    st.floats(-60000, 60000, width=16).map(lambda x: Decimal(str(np.float16(x)))),
    SINGLE.filter(lambda x: x % 1 != 0).map(lambda x: Decimal(str(x))),
    st.sampled_from([0.1, 1e-7, -0.0, 2.5]).map(meant),
)
WHOLE = st.one_of(
    st.integers(-300, 300),
    st.integers(-(2**54), 2**54),
    st.integers(2**53 - 9, 2**53 + 9),
    st.integers(2**62, 2**64),
    st.integers(-(10**30), 10**30),
    st.integers(0, 37).map(lambda e: 10**e),
    st.integers(0, 120).map(lambda e: 2**e),
).map(Decimal)
NUMBERS = (FRACTIONS | WHOLE).map(lambda d: Decimal(shown(d)))
PLAIN_TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=12)
MOMENTS = st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)).flatmap(
    lambda m: st.sampled_from([m, m.replace(microsecond=0), m.replace(microsecond=m.microsecond // 1000 * 1000)])
)
CATEGORIES = st.one_of(
    NUMBERS.map(lambda d: numbers(d) + texts(shown(d))),
    PLAIN_TEXT.map(texts),
    st.booleans().map(lambda flag: flags(flag) + texts("true" if flag else "false")),
    MOMENTS.map(moments),
    st.dates(datetime.date(1700, 1, 1), datetime.date(2200, 1, 1)).map(dates),
    st.just(
        [*missing(), Form("nan", math.nan), Form("arrow nan", pa.array([math.nan])), Form("nan32", np.float32("nan"))]
    ),
)
QUANTITIES = st.one_of(
    NUMBERS.map(lambda d: numbers(d) + texts(shown(d)) + texts(f" {d:E}\t")),
    st.booleans().map(lambda flag: flags(flag) + numbers(Decimal(int(flag)))),
    st.just([*missing(), Form("blank", "  ")]),
)


# --------------------------------------------------------------------------------------------- paths ----


def columns(form: Form, n_rows: int) -> dict[str, Any]:
    """The value in every column, as it is: lists of scalars, or arrays."""
    one = form.value
    if isinstance(one, pa.Array):
        many = pa.concat_arrays([one] * n_rows)
        listed: Any = pa.ListArray.from_arrays(pa.array(range(n_rows + 1), pa.int32()), many)
    else:
        many, listed = [one] * n_rows, [[one] for _ in range(n_rows)]
    return {
        **dict.fromkeys(["category", "bucket", "quantile", "scaled", "raw"], many),
        "list": listed,
        "other": ["x"] * n_rows,
    }


def as_table(form: Form) -> pa.Table:
    """An Arrow table of one row."""
    found = columns(form, 1)
    if isinstance(form.value, pa.Array):
        return pa.table(found)
    value = form.value.astype(object) if isinstance(form.value, np.datetime64) else form.value
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = Decimal(value)
    array = pa.array(pd.Series([value], dtype=object), from_pandas=False) if value is not None else pa.nulls(1)
    return as_table(Form(form.name, array))


def by_row(model: FMModel, form: Form) -> Any:
    return model.predict(columns(form, 1))


def by_many(model: FMModel, form: Form) -> Any:
    return model.predict(columns(form, MOST_ROWS + 1))


def by_numpy(model: FMModel, form: Form) -> Any:
    if isinstance(form.value, pa.Array):
        return None
    one = np.array([form.value]) if not isinstance(form.value, datetime.date) else np.array([form.value], object)
    return model.predict(
        {**columns(form, 1), **dict.fromkeys(["category", "bucket", "quantile", "scaled", "raw"], one)}
    )


def by_mixed_list(model: FMModel, form: Form) -> Any:
    """Beside other numbers, as a log of several writers has them."""
    if (
        isinstance(form.value, pa.Array)
        or not isinstance(form.value, int | float | np.number | Decimal)
        or "bool" in form.name
    ):
        return None
    if isinstance(form.value, float | np.floating) and math.isnan(form.value):
        return None
    beside = [0.5, Decimal("0.1"), 7, np.float32(0.1)]
    data = {name: [*values, *beside] for name, values in columns(form, 1).items() if name not in ("list", "other")}
    rows = {**data, "other": ["x"] * 5, "list": [*columns(form, 1)["list"], *[[0.5]] * 4]}
    if isinstance(form.value, Decimal):
        rows["list"] = [[float(form.value)], *[[0.5]] * 4] if holds(form.value, np.float64) else [[form.value]] * 5
    return model.predict(rows)[:1]


def by_table(model: FMModel, form: Form) -> Any:
    return model.predict(as_table(form))


def by_batch(model: FMModel, form: Form) -> Any:
    return model.predict(as_table(form).to_batches()[0])


def by_pylist(model: FMModel, form: Form) -> Any:
    """The rows of a table as Python values: a float16 alone comes out as another number."""
    table = as_table(form)
    return None if "float16" in form.name else model.predict(table.to_pydict())


def by_pandas(model: FMModel, form: Form) -> Any:
    return model.predict(
        pd.DataFrame({name: pd.Series(as_column(values)) for name, values in columns(form, 1).items()})
    )


def as_column(values: Any) -> Any:
    return values.to_pandas() if isinstance(values, pa.Array) else values


def by_gaps(model: FMModel, form: Form) -> Any:
    """Beside a gap, for which pandas makes floats of integers (that float64 holds)."""
    value = form.value.to_pylist()[0] if isinstance(form.value, pa.Array) else form.value
    if (isinstance(value, int | np.integer) and abs(int(value)) > 2**53) or value is None:
        return None
    frame = pd.DataFrame({name: pd.Series([*as_column(values), None]) for name, values in columns(form, 1).items()})
    return model.predict(frame)[:1]


def by_dask(model: FMModel, form: Form) -> Any:
    import dask
    import dask.dataframe as dd

    frame = pd.DataFrame({name: pd.Series(as_column(values)) for name, values in columns(form, 1).items()})
    with dask.config.set({"dataframe.convert-string": False}):
        wanted = Scores("predict", (), np.float32)
        lazy = predict_lazily(dd.from_pandas(frame, npartitions=1), model, wanted)
        return lazy.compute(scheduler="synchronous")


def by_shard(model: FMModel, form: Form) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(as_table(form), Path(folder) / "part.parquet")
        (shard,) = find_shards([folder])
        (batch,) = read_unit(Unit(shard, 0, 1), list(model.schema.columns))
        return model.objective.link.predict(model.score(model.encode(batch.data)))


PATHS: tuple[Callable[[FMModel, Form], Any], ...] = (
    by_row,
    by_many,
    by_numpy,
    by_mixed_list,
    by_table,
    by_batch,
    by_pylist,
    by_pandas,
    by_gaps,
    by_dask,
    by_shard,
)


def check_one_prediction(kinds: tuple[Mapping[str, Any], ...], forms: list[Form], draw: st.DataObject) -> None:
    """A model trained on one representation gives the same prediction for some others on some paths."""
    trained = as_table(draw.draw(st.sampled_from(forms), label="trained"))
    for fields in kinds:
        known = statistics_of(trained.column("quantile").combine_chunks()) if "numeric" in fields else {}
        model = random_model(fields, known)
        (expected,) = model.predict(trained)
        for _ in range(3):
            form, path = (
                draw.draw(st.sampled_from(forms), label="form"),
                draw.draw(st.sampled_from(PATHS), label="path"),
            )
            found = path(model, form)
            if found is not None:
                np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6, err_msg=f"{form} {path.__name__}")


@DRAWN
@given(CATEGORIES, st.data())
def test_a_category_has_one_prediction(forms, data):
    check_one_prediction((CATEGORY,), forms, data)


@DRAWN
@given(QUANTITIES, st.data())
def test_a_number_has_one_prediction(forms, data):
    check_one_prediction((NUMBER, PLAIN_NUMBER), forms, data)


@pytest.mark.slow
@settings(DRAWN, max_examples=2500)
@given(CATEGORIES, st.data())
def test_thousands_of_categories_have_one_prediction_each(forms, data):
    check_one_prediction((CATEGORY,), forms, data)


@pytest.mark.slow
@settings(DRAWN, max_examples=2500)
@given(QUANTITIES, st.data())
def test_thousands_of_numbers_have_one_prediction_each(forms, data):
    check_one_prediction((NUMBER, PLAIN_NUMBER), forms, data)


def test_models_that_do_not_say_how_numbers_are_compared_keep_comparing_them_widened(tmp_path):
    """As they were trained: boundaries of a float32 column are its widened numbers, and 0.1 is below that of 0.1."""
    boundaries = tuple(np.float32([0.1, 0.7]).astype(float).tolist())
    model = random_model(PLAIN_NUMBER, {"quantile": NumberStatistics(boundaries)})
    old = dataclasses.replace(model, schema=dataclasses.replace(model.schema, numbers=WIDENED))
    single, served = ({**columns(Form("", kind(0.1)), 1), "bucket": [1]} for kind in (np.float32, float))
    old.save(str(tmp_path / "old"), pa.table(single))
    manifest = json.loads((tmp_path / "old" / "model.json").read_text())
    assert manifest["format"] == 1
    assert "numbers" not in manifest["schema"]
    loaded = FMModel.load(str(tmp_path / "old"))
    assert loaded.schema.numbers == WIDENED
    assert loaded.predict(single) != loaded.predict(served)
    assert loaded.predict(served) == loaded.predict({**served, "quantile": [0.0999]})


def test_models_of_today_say_how_numbers_are_compared(tmp_path):
    model = random_model(NUMBER, statistics_of(pa.array([0.1], pa.float32())))
    model.save(str(tmp_path / "new"), as_table(Form("", np.float32(0.1))))
    manifest = json.loads((tmp_path / "new" / "model.json").read_text())
    assert (manifest["format"], manifest["schema"]["numbers"]) == (3, SHORTEST)
    assert FMModel.load(str(tmp_path / "new")).schema == model.schema


def test_golden_rows_are_scored_as_a_service_sends_them(tmp_path, monkeypatch):
    """A model whose rows score another way as Python values than as a table is not loaded."""
    model = random_model(PLAIN_NUMBER, statistics_of(pa.array([0.1], pa.float32())))
    model.save(str(tmp_path / "new"), as_table(Form("", np.float32(0.1))))
    FMModel.load(str(tmp_path / "new"))
    monkeypatch.setattr(row_encoder, "_number", lambda value: 1e6)
    with pytest.raises(ModelError, match="scores its golden rows differently"):
        FMModel.load(str(tmp_path / "new"))


def test_the_shortest_text_of_a_float32_is_that_of_numpy():
    bits = np.random.default_rng(3).integers(0, 2**32, 20_000, np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    expected = [float(str(value)) for value in values]
    np.testing.assert_array_equal(canonical.shortest(values.astype(np.float64)), expected)
