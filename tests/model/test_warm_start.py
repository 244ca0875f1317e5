"""Rows of a new table move towards an earlier model: matched by id, decayed towards the initial values."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dfm.data.schema import WIDENED
from dfm.data.transforms import NumberStatistics
from dfm.errors import ModelError, SettingsError
from dfm.kernels.tables import InitialValues, Layout, initialise
from dfm.model.fm_model import FMModel
from dfm.model.warm_start import find_start, warm_table
from dfm.settings.groups import groups_of
from dfm.settings.job import load_job
from tests.support.small_models import PLAIN, STATISTICS, make_model

INITIAL = InitialValues(seed=2, init_stdev=0.1, initial_accumulator=1.5, bias=0.4)


def tables(url: str, **changes: dict[str, object]) -> dict[str, dict[str, object]]:
    chosen: dict[str, dict[str, object]] = {
        "model": {"n_factors": 3, "hash_bits": 18},
        "training": {"warm_start": url},
    }
    for name, table in changes.items():
        chosen[name] = {**chosen.get(name, {}), **table}
    return chosen


@pytest.fixture
def model() -> FMModel:
    return make_model(PLAIN)


@pytest.fixture
def published(model: FMModel, tmp_path: Path) -> str:
    model.save(str(tmp_path / "model"))
    return str(tmp_path / "model")


def fresh(ids: np.ndarray, n_factored: int):
    return initialise(Layout("adagrad", 3), ids, n_factored, INITIAL)


def by_id(model: FMModel) -> dict[int, int]:
    return {int(feature): row for row, feature in enumerate(model.vocabulary.ids)}


@pytest.mark.parametrize("decay", [0.0, 0.25, 1.0])
def test_weights_move_by_one_minus_decay_of_the_way_from_initial_to_earlier(model: FMModel, decay: float):
    unknown = np.setdiff1d(np.arange(2**18, dtype=np.uint32), model.vocabulary.ids)[:7]
    ids = np.random.default_rng(1).permutation(np.concatenate([model.vocabulary.ids[:40], unknown]))
    start = fresh(ids, 30)
    warm = warm_table(start, ids, model, decay)
    rows = by_id(model)
    for row, feature in enumerate(ids):
        earlier = rows.get(int(feature))
        weight = 0.0 if earlier is None else (1 - decay) * model.table.linear_weights[earlier]
        assert warm.linear_weights[row] == pytest.approx(weight, abs=1e-7)
        if row < 30:
            expected = start.factor_weights[row].astype(float)
            if earlier is not None and earlier < model.table.n_factored:
                expected += (1 - decay) * (model.table.factor_weights[earlier] - expected)
            np.testing.assert_allclose(warm.factor_weights[row], expected, atol=1e-6)
    assert warm.bias[0] == pytest.approx(0.4 + (1 - decay) * (-0.7 - 0.4), abs=1e-6)


def test_optimizer_state_starts_afresh_and_the_untrained_table_is_left_alone(model: FMModel):
    ids = model.vocabulary.ids
    start = fresh(ids, model.table.n_factored)
    before = start.copy()
    warm = warm_table(start, ids, model, 0.0)
    np.testing.assert_array_equal(warm.linear[:, 1:], np.float32(1.5))
    np.testing.assert_array_equal(warm.factors[:, 4:], np.float32(1.5))
    np.testing.assert_array_equal(start.linear, before.linear)
    np.testing.assert_array_equal(start.factors, before.factors)


def test_blocks_make_up_the_same_table_as_one_block(model: FMModel):
    ids = model.vocabulary.ids
    whole = warm_table(fresh(ids, 20), ids, model, 0.3)
    head, tail = (warm_table(fresh(part, n), part, model, 0.3) for part, n in ((ids[:12], 12), (ids[12:], 8)))
    np.testing.assert_array_equal(np.concatenate([head.linear, tail.linear]), whole.linear)
    np.testing.assert_array_equal(np.concatenate([head.factors, tail.factors]), whole.factors)


def test_a_start_that_fits_takes_over_the_statistics(model: FMModel, published: str):
    start = find_start(load_job(tables(published, training={"warm_start_decay": 0.2})), model.schema)
    assert start is not None
    assert start.decay == 0.2
    assert start.statistics["price"] == model.statistics["price"]
    assert start.load().parameters_sha256() == model.parameters_sha256()
    assert start.describe()["model"] == published
    assert start.n_features == model.vocabulary.n_features
    assert find_start(load_job({}), model.schema) is None


def test_a_start_tells_what_the_pilot_of_each_model_chose(model: FMModel, tmp_path: Path):
    three = {"model": {"n_factors": 1, "n_models": 3, "hash_bits": 18}}
    first = {"automatic": {"chosen": "a"}}
    for name, metadata, expected in (
        ("one", first, ("a",)),
        ("three", {**first, "models": [{"chosen": "a"}, {"chosen": "b"}, {"chosen": ""}]}, ("a", "b", "")),
        ("old", {**first, "models": [{}, {}, {}]}, ("a", "a", "a")),
        ("untold", {}, ("",)),
    ):
        url = str(tmp_path / name)
        dataclasses.replace(model, metadata=metadata).save(url)
        start = find_start(load_job(tables(url, **(three if "models" in metadata else {}))), model.schema)
        assert start is not None
        assert start.candidates == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"n_factors": 4}}, r"model.n_factors = 4, but .* has 3; use 3"),
        ({"model": {"family": "ffm"}}, r"model.family = ffm, but .* has fm; use fm"),
        ({"model": {"hash_bits": 20}}, r"model.hash_bits = 20, but .* has 18"),
        ({"model": {"task": "regression"}}, r"model.task = regression, but .* has classification"),
        ({"training": {"optimizer": "ftrl"}}, "which makes its weights of sums"),
    ],
)
def test_a_job_of_another_kind_is_refused(model: FMModel, published: str, changes, message):
    with pytest.raises(SettingsError, match=message):
        find_start(load_job(tables(published, **changes)), model.schema)


def test_other_groups_of_fields_are_refused(model: FMModel, tmp_path: Path):
    layout = Layout("sgd", 3, "ffm", groups_of(2, [field.name for field in model.schema.fields]))
    table = initialise(layout, model.vocabulary.ids, model.vocabulary.n_factored, INITIAL)
    dataclasses.replace(model, table=table).save(str(tmp_path / "aware"))
    job = {"family": "ffm", "groups": 2}
    assert find_start(load_job(tables(str(tmp_path / "aware"), model=job)), model.schema) is not None
    with pytest.raises(SettingsError, match=r"model.groups = \[0, 1, 2, 3\], but .* has \[0, 0, 1, 1\]"):
        find_start(load_job(tables(str(tmp_path / "aware"), model={**job, "groups": "auto"})), model.schema)


def test_another_order_is_refused(model: FMModel, tmp_path: Path):
    layout = Layout("sgd", 3, "hofm")
    table = initialise(layout, model.vocabulary.ids, model.vocabulary.n_factored, INITIAL)
    dataclasses.replace(model, table=table).save(str(tmp_path / "third"))
    assert find_start(load_job(tables(str(tmp_path / "third"), model={"family": "hofm"})), model.schema) is not None
    with pytest.raises(SettingsError, match=r"model.order = 4, but .* has 3; use 3"):
        find_start(load_job(tables(str(tmp_path / "third"), model={"family": "hofm", "order": 4})), model.schema)


def test_another_schema_is_refused_with_the_field_that_differs(model: FMModel, published: str):
    fields = list(model.schema.fields)
    changed = {
        "has no field 'new'": [*fields, dataclasses.replace(fields[0], name="new", columns=("new",))],
        "field 'visits' is missing": [field for field in fields if field.name != "visits"],
        "'visits' is auto there": [
            dataclasses.replace(field, transform="raw") if field.name == "visits" else field for field in fields
        ],
        f"field '{fields[0].name}' is missing": fields[1:],
        "its fields have another order": fields[::-1],
    }
    for message, others in changed.items():
        numbered = tuple(dataclasses.replace(field, index=number) for number, field in enumerate(others))
        with pytest.raises(SettingsError, match=message):
            find_start(load_job(tables(published)), dataclasses.replace(model.schema, fields=numbered))


def test_another_loss_is_refused(model: FMModel, published: str):
    with pytest.raises(SettingsError, match="the loss differs"):
        find_start(load_job(tables(published)), model.schema, {"name": "hinge"})


def test_a_model_that_is_missing_or_was_replaced_is_no_start(model: FMModel, published: str, tmp_path: Path):
    with pytest.raises(ModelError, match="no model at"):
        find_start(load_job(tables(str(tmp_path / "nothing"))), model.schema)
    start = find_start(load_job(tables(published)), model.schema)
    assert start is not None
    make_model(PLAIN, min_count=1).save(published)
    with pytest.raises(ModelError, match="was replaced"):
        start.load()


def test_boundaries_of_a_model_that_widened_numbers_are_taken_over_as_the_numbers_they_mean(tmp_path: Path):
    model = make_model(PLAIN)
    widened = (float(np.float32(0.1)), float(np.float32(0.7)), 2.5)
    statistics = {**STATISTICS, "price": NumberStatistics(widened)}
    old = dataclasses.replace(model, schema=dataclasses.replace(model.schema, numbers=WIDENED), statistics=statistics)
    old.save(str(tmp_path / "old"))
    start = find_start(load_job(tables(str(tmp_path / "old"))), model.schema)
    assert start is not None
    assert start.statistics["price"].boundaries == (0.1, 0.7, 2.5)
