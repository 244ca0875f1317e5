"""What was tuned in a notebook carries over to a job: defaults, encodings and numbers are the same, or spelled out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dfm import jobs
from dfm.errors import SettingsError
from dfm.estimators import FMClassifier, FMRegressor, LinearClassifier, LinearRegressor, notes
from dfm.estimators.recipes import RowsToFit
from dfm.kernels.losses import DEFAULT_LOSSES
from dfm.settings.job import Job, load_job
from dfm.settings.tables import DataSettings, ModelSettings, Schema, TrainingSettings
from dfm.settings.toml import to_toml
from tests.support.small_jobs import in_process_client

N_ROWS = 3_000
MEANT_TO_DIFFER: dict[str, tuple[Any, Any]] = {
    "numeric_transform": ("standardize", "auto"),  # a notebook's tables have columns that the label is linear in
    "min_count": (1, 2),  # and a category that was seen once may be the point of it
    "n_replicas": (None, 8),  # None: one in this process, eight on a cluster
    "backend": ("numba", "auto"),  # a fit in this process is not to take a GPU by itself
    "patience": (5, 1),  # epochs of small sets are short, and their validation is noisy
    "early_stopping": ("auto", True),  # auto: not with fewer than 1,000 rows
    "validation_fraction": (0.1, "auto"),
    "warm_start": (False, ""),  # scikit-learn's word: from the last fit; a job: from another model
    "loss_parameter": (None, "auto"),
    "regularizer": (None, "l2"),
}
"""Default of the estimators and of the job, with the reason."""
SAME_BY_ANOTHER_NAME = {"loss": {"auto", *DEFAULT_LOSSES.values()}}


def plain(value: Any) -> Any:
    """A default as it is compared: nothing named is nothing named."""
    return None if value in ((), {}, "", None) and value is not False else value


@pytest.mark.parametrize("kind", [FMClassifier, FMRegressor, LinearClassifier, LinearRegressor])
def test_every_parameter_that_is_a_knob_too_has_its_default_or_is_meant_to_differ(kind: type) -> None:
    own = kind().get_params()
    if kind in (LinearClassifier, LinearRegressor):
        own.pop("n_factors", None)
    knobs = {
        name: knob.default
        for table in (DataSettings, Schema, ModelSettings, TrainingSettings)
        for name, knob in table.knobs().items()
    }
    common = own.keys() & knobs.keys()
    assert len(common) > 20
    for name in sorted(common):
        if name in MEANT_TO_DIFFER:
            assert (own[name], knobs[name]) == MEANT_TO_DIFFER[name], name
        elif name in SAME_BY_ANOTHER_NAME:
            assert {own[name], knobs[name]} <= SAME_BY_ANOTHER_NAME[name], name
        else:
            assert plain(own[name]) == plain(knobs[name]), name


def rows(seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "site": random.choice([f"s{n}" for n in range(40)], N_ROWS),
            "ad": random.zipf(1.7, N_ROWS) % 500,
            "price": np.round(random.exponential(5.0, N_ROWS), 2),
            "tags": [list(random.choice(["a", "b", "c"], n)) for n in random.integers(0, 3, N_ROWS)],
            "clicked": random.integers(0, 2, N_ROWS),
        }
    )


def test_a_job_of_an_estimator_reads_the_same_rows_as_the_same_features_with_the_same_numbers(tmp_path: Path) -> None:
    frame = rows()
    X, y = frame.drop(columns="clicked"), frame["clicked"]
    frame.to_parquet(tmp_path / "clicks.parquet")
    tuned = FMClassifier(
        n_factors=3, n_epochs=1, numeric_transform="auto", crosses=[["site", "ad"]], min_count=2, hash_bits=14,
        l2_linear=0.02, n_replicas=1, early_stopping=False, tune="none", random_state=7,
    ).fit(X, y)  # fmt: skip
    tables = tuned.job(str(tmp_path / "clicks.parquet"), "clicked", str(tmp_path / "results"))
    assert tables["model"] == {"n_factors": 3, "hash_bits": 14, "seed": 7}
    (tmp_path / "job.toml").write_text(to_toml(tables))
    assert load_job(tmp_path / "job.toml") == Job.from_dict(tables)
    with in_process_client(1) as client:
        result = jobs.train(tables | {"cluster": {"cache": str(tmp_path / "cache")}}, client)
    ours, theirs = tuned.model_, result.model
    assert ours.schema.fields == theirs.schema.fields
    assert ours.statistics == theirs.statistics
    for name in ("ids", "fields", "counts", "rare"):
        assert np.array_equal(getattr(ours.vocabulary, name), getattr(theirs.vocabulary, name)), name
    assert ours.table.n_factored == theirs.table.n_factored
    known = RowsToFit(N_ROWS, tuned._features.rows(X).entries, validates=False)
    step, found = tuned._recipe(known, float(y.mean()), tuned._outputs[0].unit).work.step, theirs.metadata["automatic"]
    assert step.learning_rate == pytest.approx(found["learning_rate"], rel=1e-6)
    assert (step.l2_linear, step.l2_factors) == (0.02, found["l2_factors"])


def test_a_job_of_default_parameters_spells_out_what_jobs_do_otherwise() -> None:
    tables = FMRegressor().job(["a.parquet", "b.parquet"], "y", "results", weight="w", validation="c.parquet")
    assert tables == {
        "data": {"train": ["a.parquet", "b.parquet"], "validation": ["c.parquet"]},
        "schema": {"label": "y", "weight": "w", "numeric_transform": "standardize"},
        "model": {"task": "regression", "min_count": 1},
        "output": {"directory": "results"},
    }


def test_a_job_keeps_what_a_fit_would_do_with_these_parameters_or_refuses() -> None:
    def told(**given: Any) -> dict[str, Any]:
        return FMClassifier(**given).job("a.parquet", "y", "results")

    with pytest.raises(SettingsError, match=r"class_weight = \{0: 1, 1: 20\} does not reach shards: write the weights"):
        told(class_weight={0: 1, 1: 20})
    with pytest.raises(SettingsError, match="validation_fraction = 2 is not legal"):
        told(validation_fraction=2)
    assert told(validation_fraction=0.3)["data"] == {"train": ["a.parquet"], "validation_fraction": 0.3}
    assert told(tol=None)["data"]["validation_fraction"] == 0.1, "as fit does, though a job that never stops would not"
    assert "validation_fraction" not in told(tol=None, early_stopping=False)["data"]
    assert "validation_fraction" not in told(validation_fraction=0.3, early_stopping=False)["data"]
    named = FMClassifier(validation_fraction=0.3).job("a.parquet", "y", "results", validation="b.parquet")
    assert "validation_fraction" not in named["data"]
    assert told(standardize=False)["schema"]["numeric_transform"] == "raw"
    assert told(solver="als")["training"]["patience"] == 5
    assert told(solver="als", patience=20)["training"]["patience"] == 20
    assert "training" not in told(patience=20), "a plateau has no patience"
    for solver in ("sgd", "als"):
        assert told(solver=solver, tol=None)["training"]["early_stopping"] is False, "all epochs"
    assert told(schedule="plateau", tol=None)["training"] == {"schedule": "plateau"}
    assert told(solver="mcmc")["data"] == {"train": ["a.parquet"], "validation_fraction": 0.0}
    assert "patience" not in told(solver="mcmc")["training"]
    assert told(solver="mcmc", early_stopping=True, validation_fraction=0.2)["data"]["validation_fraction"] == 0.2
    judged = FMClassifier(solver="mcmc").job("a.parquet", "y", "results", validation="b.parquet")
    assert "validation_fraction" not in judged["data"]
    assert told(standardize=False, numeric_transform="quantile")["schema"]["numeric_transform"] == "quantile"


def test_columns_that_are_left_out_or_say_nothing_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    notes._log_once.cache_clear()
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "request": np.arange(500),
            "when": pd.Timestamp("2026-11-01") + pd.to_timedelta(np.arange(500), "min"),
            "one": ["a"] * 500,
            "fee": [0.1] * 500,
            "site": random.choice(["x", "y"], 500),
        }
    )
    with caplog.at_level(logging.WARNING, "dfm"):
        for _ in range(2):
            FMClassifier(n_factors=2, n_epochs=1).fit(frame, random.integers(0, 2, 500))
    left_out, *silent = caplog.messages
    assert left_out.startswith("columns that become no feature: 'when' (it holds timestamp")
    assert left_out.endswith('derive={"hour": "hour(when)"}')
    assert len(silent) == 3
    assert any("of the values of column 'request' were seen no second time" in text for text in silent)
    for name in ("one", "fee"):
        assert any(f"column '{name}' has one value" in text and "schema." not in text for text in silent)


def test_features_have_names_in_the_order_of_their_weights() -> None:
    frame = rows()
    model = LinearClassifier(n_epochs=1).fit(frame[["site", "price"]], frame["clicked"])
    names = model.get_feature_names_out(frame[["site", "price"]])
    assert names.shape == model.coef_[0].shape
    (weight,) = model.model_.weights("site", ["s7"])
    assert model.coef_[0][[*names].index("site=s7")] == pytest.approx(weight)
    assert sum(name.startswith("site=#") for name in model.get_feature_names_out()) == 40
    plain = LinearClassifier(n_epochs=1).fit(frame[["price"]].to_numpy(), frame["clicked"])
    assert [*plain.get_feature_names_out()] == ["x0"]
    assert [*plain.get_feature_names_out(["cost"])] == ["cost"]
    with pytest.raises(ValueError, match="not equal to the 1 columns"):
        plain.get_feature_names_out(["a", "b"])
