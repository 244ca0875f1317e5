"""What is learnt does not depend on the unit of a label or of weights, and what is told is in the unit of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dfm import jobs
from dfm.data.accounting import LabelMoments, RowAccount
from dfm.data.units import LabelUnit, units_of
from dfm.errors import DataError, SettingsError
from dfm.model.fm_model import FMModel
from dfm.training.label_units import in_own_unit
from tests.support.small_jobs import job_tables
from tests.support.small_models import PLAIN, make_model, random_table

N_ROWS = 4_000
RNG = np.random.default_rng(1)
USER, SITE = RNG.integers(0, 50, N_ROWS), RNG.integers(0, 20, N_ROWS)
PAIR = (RNG.normal(size=(50, 2))[USER] * RNG.normal(size=(20, 2))[SITE]).sum(1)
SCORE = RNG.normal(size=50)[USER] + RNG.normal(size=20)[SITE] + PAIR
LABEL = SCORE + 0.3 * RNG.normal(size=N_ROWS)
CLICK = (RNG.random(N_ROWS) < 1 / (1 + np.exp(-SCORE))).astype(int)


def trained(folder: Path, client: Client, label: Any, weight: Any = None, model: Any = None, **training: Any) -> Any:
    """A job on three quarters of the rows that validates on the last one, with the defaults of every knob."""
    columns = {"label": label, "user": USER, "site": SITE} | ({} if weight is None else {"w": weight})
    table = pa.table(columns)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.slice(0, 3_000), folder / "train.parquet")
    pq.write_table(table.slice(3_000), folder / "validation.parquet")
    tables = job_tables(folder, folder)
    tables["data"] = {"train": str(folder / "train.parquet"), "validation": str(folder / "validation.parquet")}
    tables["schema"] = {"weight": "" if weight is None else "w"}
    tables["model"], tables["training"] = model or {}, {"n_replicas": 2, "n_epochs": 4, **training}
    return jobs.train(tables, client)


@pytest.mark.parametrize("loss", ["squared", "quantile"])
def test_labels_of_0_are_left_out_of_relative_errors_as_evaluation_leaves_them(
    loss: str, client: Client, tmp_path: Path
) -> None:
    """Brought back from the unit of training they are 1e-8 or so, by which an error would be divided."""
    labels = np.where(RNG.random(N_ROWS) < 0.1, 0.0, np.round(LABEL * 40) / 10 + 20)
    result = trained(tmp_path, client, labels, model={"task": "regression", "loss": loss})
    assert np.count_nonzero(labels[3_000:] == 0) > 0
    found = jobs.evaluate(result.model, str(tmp_path / "validation.parquet"), client=client)
    assert result.validation["mape"] == pytest.approx(found["mape"], rel=1e-5)
    predicted = result.model.predict({"user": USER[3_000:].tolist(), "site": SITE[3_000:].tolist()})
    there = labels[3_000:] != 0
    errors = np.abs(predicted[there] / labels[3_000:][there].astype(np.float32) - 1)
    assert result.validation["mape"] == pytest.approx(errors.mean(), rel=1e-4)


@pytest.mark.parametrize("loss", ["squared", "quantile"])
@pytest.mark.parametrize(("scale", "shift"), [(1e5, 0.0), (1e5, 1e6), (1e-3, 0.0)])
def test_a_label_in_another_unit_is_learnt_as_well(
    loss: str, scale: float, shift: float, client: Client, tmp_path: Path
) -> None:
    model = {"task": "regression", "loss": loss}
    plain = trained(tmp_path / "plain", client, LABEL, model=model)
    scaled = trained(tmp_path / "scaled", client, LABEL * scale + shift, model=model)
    assert plain.validation["r2"] > 0.1
    assert scaled.validation["r2"] == pytest.approx(plain.validation["r2"], abs=0.005)
    told = "train_rmse" if loss == "squared" else "train_loss"
    for name, ours, theirs in [
        ("rmse", scaled.validation, plain.validation),
        ("mae", scaled.validation, plain.validation),
        (told, scaled.history[-1], plain.history[-1]),
    ]:
        assert ours[name] == pytest.approx(theirs[name] * scale, rel=0.01)
    rows = {"user": USER[3_000:].tolist(), "site": SITE[3_000:].tolist()}
    predicted = scaled.model.predict(rows)
    errors = predicted.astype(np.float64) - (LABEL[3_000:] * scale + shift)
    assert np.sqrt((errors**2).mean()) == pytest.approx(scaled.validation["rmse"], rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "scale", "told"),
    [
        ("huber", 1e3, "column 'label': labels have the deviation 2.08e+03, and the loss huber takes them"),
        ("huber", 1.0, ""),
        ("squared", 1e3, ""),
    ],
)
def test_a_loss_that_has_a_unit_says_where_labels_have_another(
    loss: str, scale: float, told: str, client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "dfm"):
        trained(tmp_path, client, LABEL * scale, model={"task": "regression", "loss": loss}, n_epochs=1)
    assert ("take" in caplog.text, told in caplog.text) == (bool(told), True)


@pytest.mark.parametrize("weight", [1e-3, 500.0])
def test_weights_count_relative_to_their_mean(weight: float, client: Client, tmp_path: Path) -> None:
    uneven = np.where(USER % 2, 0.5, 1.5)
    plain = trained(tmp_path / "plain", client, CLICK, uneven)
    scaled = trained(tmp_path / "scaled", client, CLICK, uneven * weight)
    assert plain.validation["log_loss"] < 0.68
    assert scaled.validation["log_loss"] == pytest.approx(plain.validation["log_loss"], abs=1e-3)
    assert scaled.validation["weight"] == pytest.approx(plain.validation["weight"] * weight, rel=1e-5)


def test_equal_weights_are_no_weights(client: Client, tmp_path: Path) -> None:
    without = trained(tmp_path / "without", client, CLICK)
    ones = trained(tmp_path / "ones", client, CLICK, np.full(N_ROWS, 4.0))
    assert ones.parameters_sha256 == without.parameters_sha256


@pytest.mark.parametrize(("label", "model"), [(LABEL, {"task": "regression"}), (CLICK, {})])
def test_the_labels_of_rows_of_weight_0_change_nothing(
    label: Any, model: dict[str, str], client: Client, tmp_path: Path
) -> None:
    weight = np.where(np.arange(N_ROWS) % 5, 1.0, 0.0)
    strange = np.where(weight, label, -999.0 if model else 1)
    plain = trained(tmp_path / "plain", client, label, weight, model=model)
    marked = trained(tmp_path / "marked", client, strange, weight, model=model)
    assert marked.parameters_sha256 == plain.parameters_sha256


def test_rows_of_weight_0_do_not_make_others_count_for_several() -> None:
    labels, weights = np.arange(6, dtype=np.float32), np.array([2, 0, 4, 0, 0, 3], np.float32)
    account = RowAccount(6, 6, labels=LabelMoments.of(labels, weights))
    assert units_of(account, standardizes=False, has_weights=True).weight == 3.0
    assert units_of(account, standardizes=False, has_weights=False).weight == 1.0


def test_a_model_of_another_unit_is_gone_on_from(client: Client, tmp_path: Path) -> None:
    model = {"task": "regression"}
    first = trained(tmp_path / "first", client, LABEL * 1e4 + 7e4, model=model)
    start = {"warm_start": first.model_url, "warm_start_decay": 0.0, "n_epochs": 1, "learning_rate": 1e-6}
    second = trained(tmp_path / "second", client, LABEL * 1e4 + 7e4, model=model, **start)
    assert second.validation["rmse"] == pytest.approx(first.validation["rmse"], rel=0.01)


def test_predictions_stay_within_the_labels_of_training(client: Client, tmp_path: Path) -> None:
    label = np.where(np.arange(N_ROWS) < 3_000, np.clip(LABEL, -1.0, 1.0), LABEL)
    model = {"task": "regression", "clip": True, "min_count": 1}
    result = trained(tmp_path, client, label, model=model)
    found = FMModel.load(result.model_url)
    low, high = float(label[:3_000].min()), float(label[:3_000].max())
    assert found.clip == pytest.approx((low, high))
    free = dataclasses.replace(found, clip=None)
    rows = {"user": USER.tolist(), "site": SITE.tolist()}
    unclipped = free.predict(rows)
    assert unclipped.max() > high
    np.testing.assert_array_equal(found.predict(rows), np.clip(unclipped, np.float32(low), np.float32(high)))
    held_out = str(tmp_path / "validation.parquet")
    told = jobs.evaluate(result.model_url, held_out, client=client)
    assert told["rmse"] == pytest.approx(result.validation["rmse"], rel=1e-5)
    jobs.predict(result.model_url, held_out, str(tmp_path / "scored"), client=client)
    scored = pq.read_table(next((tmp_path / "scored").glob("part-*.parquet"))).column("prediction").to_numpy()
    np.testing.assert_allclose(scored, found.predict(rows)[3_000:], rtol=1e-6)
    with pytest.raises(SettingsError, match=r'model\.clip = true needs model\.task = "regression"'):
        trained(tmp_path, client, CLICK, model={"clip": True})


def test_a_unit_and_its_inverse_leave_a_model_as_it_is() -> None:
    model = make_model(PLAIN)
    unit = LabelUnit(40.0, 12.5)
    there = in_own_unit(model.table, unit)
    back = in_own_unit(there, unit.inverse)
    moved, rows = dataclasses.replace(model, table=there), random_table(50)
    scores, others = model.decision_function(rows), moved.decision_function(rows)
    np.testing.assert_allclose(others, scores * 12.5 + 40.0, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(back.linear_weights, model.table.linear_weights, rtol=1e-5)
    np.testing.assert_allclose(back.factor_weights, model.table.factor_weights, rtol=1e-5)


def test_rows_without_the_weights_of_training_are_evaluated_alike_and_a_warning_says_so(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained(tmp_path / "weighted", client, CLICK, np.linspace(0.5, 2.0, len(CLICK))).model_url
    columns = {"label": CLICK, "user": USER, "site": SITE}
    pq.write_table(pa.table(columns), tmp_path / "bare.parquet")
    pq.write_table(pa.table({**columns, "w": np.ones(len(CLICK))}), tmp_path / "equal.parquet")
    with caplog.at_level("WARNING", "dfm"):
        equal = jobs.evaluate(model, str(tmp_path / "equal.parquet"), client=client)
        assert not [record for record in caplog.records if record.name.startswith("dfm")]
        bare = jobs.evaluate(model, str(tmp_path / "bare.parquet"), client=client)
    assert bare == equal
    assert "no shard has the column 'w', which weighed the rows in training" in caplog.text
    with pytest.raises(DataError, match=r"bare\.parquet has no column 'w'"):
        jobs.evaluate(model, str(tmp_path / "*.parquet"), client=client)


FORMS: dict[str, Callable[[pa.Table], Any]] = {
    "table": lambda rows: rows,
    "frame": lambda rows: rows.to_pandas(),
    "dicts": lambda rows: rows.to_pylist(),
    "dict": lambda rows: rows.to_pydict(),
    "Dask frame": lambda rows: dd.from_pandas(rows.to_pandas(), npartitions=3),
}


def test_rows_of_which_only_some_have_a_weight_are_refused_whichever_comes_first() -> None:
    plain = make_model(PLAIN)
    model = dataclasses.replace(plain, schema=dataclasses.replace(plain.schema, weight="w"))
    bare, *others = random_table(3).to_pylist()
    for rows in ([bare, *({**row, "w": 2.0} for row in others)], [{**bare, "w": 2.0}, *others]):
        with pytest.raises(DataError, match="'w'"):
            jobs.evaluate(model, rows)


@pytest.mark.parametrize("form", FORMS)
def test_so_are_rows_in_memory(form: str, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    plain = make_model(PLAIN)
    model = dataclasses.replace(plain, schema=dataclasses.replace(plain.schema, weight="w"))
    bare, given = random_table(300), FORMS[form]
    equal = bare.append_column("w", pa.array(np.ones(300)))
    wanted: dict[str, Any] = {"by": ["zone"], "min_rows": 1}
    with caplog.at_level("WARNING", "dfm"):
        expected = jobs.evaluate(model, given(equal), client=client, **wanted)
        assert "weighed the rows" not in caplog.text
        assert jobs.evaluate(model, given(bare), client=client, **wanted) == expected
        assert "the rows lack the column 'w', which weighed the rows in training: all rows count alike" in caplog.text
        if form != "Dask frame":
            found = jobs.importance(model, given(bare), repeats=2)
            assert found["columns"] == jobs.importance(model, given(equal), repeats=2)["columns"]
