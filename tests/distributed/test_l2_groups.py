"""training.l2_groups as a job: penalties of some columns are others, for SGD and for least squares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

from dfm import jobs
from dfm.distributed.trials import open_trials
from dfm.errors import SettingsError
from dfm.model.fm_model import FMModel
from dfm.settings.job import load_job
from dfm.settings.toml import to_toml
from dfm.training.order import Order
from tests.support.small_jobs import job_tables

SOME = {"C1": 400.0, "C2": [400.0, 1.0], "C3": [1.0, 400.0]}
SQUARES = {"solver": "als", "n_epochs": 3, "n_replicas": 3, "early_stopping": False}


def model_of(log: Path, folder: Path, client: Client, **training: Any) -> FMModel:
    tables = job_tables(log, folder, output={"directory": str(folder / "out"), "report": False})
    tables["model"] |= {"min_count": 1, "min_count_factors": 1}
    tables["training"] = {**(SQUARES if training.pop("exact", False) else tables["training"]), **training}
    return FMModel.load(jobs.train(tables, client).model_url)


def sizes(model: FMModel) -> dict[str, tuple[float, float]]:
    """By column the mean squares of w and of V of its features that training saw often."""
    names, found = [field.name for field in model.schema.fields], {}
    for number, name in enumerate(names):
        rows = np.flatnonzero((model.vocabulary.fields == number) & (model.vocabulary.counts >= 20))
        owners = rows[rows < model.table.n_factored]
        weights, factors = model.table.linear_weights[rows], model.table.factor_weights[owners]
        found[name] = float(np.square(weights).mean()), float(np.square(factors).mean())
    return found


@pytest.mark.parametrize("exact", [False, True], ids=["sgd", "als"])
def test_columns_with_penalties_of_their_own_have_smaller_parameters(
    log: Path, client: Client, two_workers: Client, tmp_path: Path, exact: bool
) -> None:
    alike = sizes(model_of(log, tmp_path / "alike", client, exact=exact))
    model = model_of(log, tmp_path / "own", client, exact=exact, l2_groups=SOME)
    again = model_of(log, tmp_path / "again", two_workers, exact=exact, l2_groups=SOME)
    assert model.parameters_sha256() == again.parameters_sha256()
    own = sizes(model)
    shrunk = {name: tuple(after / before for after, before in zip(own[name], alike[name], strict=True)) for name in own}
    assert shrunk["C1"][0] < 0.5 > shrunk["C2"][0]
    assert shrunk["C1"][1] < 0.5 > shrunk["C3"][1]
    others = np.array([shrunk[name] for name in shrunk if name not in SOME])
    assert (np.median(others, axis=0) > 0.6).all()
    assert shrunk["C2"][1] > 0.6 < shrunk["C3"][0]


def test_trials_of_settings_have_them_too(log: Path, client: Client, tmp_path: Path) -> None:
    tables = job_tables(log, tmp_path)
    tables["training"]["l2_groups"] = SOME
    job = load_job(tables)
    with open_trials(Order.of(job), client) as found:
        work = found._run_with(job).order.work
    assert work.spec.l2_by_field
    assert sorted(set(work.l2_scales)) == [(1.0, 1.0), (1.0, 400.0), (400.0, 1.0), (400.0, 400.0)]


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"l2_groups": {"D*": 2.0}}, r'l2_groups\."D\*" = 2\.0 fits no field'),
        ({"l2_groups": {"C*": 2.0, "C1": 3.0}}, r'l2_groups\."C1" = 3\.0 fits no field that none before it'),
        ({"l2_groups": {"C1": [1, 2, 3]}}, r'l2_groups\."C1" = \[1\.0, 2\.0, 3\.0\] has 3 numbers'),
        ({"l2_groups": {"C1": -1}}, "l2_groups"),
        ({"l2_groups": {"C1": 2}, "optimizer": "ftrl"}, "in closed form|of one L2"),
        ({"l2_groups": {"C1": 2}, "backend": "cupy"}, "needs processors"),
        ({"l2_groups": {"C1": 2}, "solver": "mcmc"}, "needs training.solver"),
    ],
)
def test_what_does_not_fit_is_told(log: Path, tmp_path: Path, training: dict[str, Any], message: str) -> None:
    tables = job_tables(log, tmp_path)
    tables["training"] = {"n_replicas": 3, **training}
    with pytest.raises(SettingsError, match=message):
        jobs.plan(tables)


def test_a_job_file_holds_them(log: Path, tmp_path: Path) -> None:
    tables = job_tables(log, tmp_path)
    plain = load_job(tables)
    tables["training"]["l2_groups"] = SOME
    job, path = load_job(tables), tmp_path / "job.toml"
    path.write_text(to_toml(job.to_dict()))
    assert load_job(path).training.l2_groups == job.training.l2_groups == {**SOME, "C2": (400, 1), "C3": (1, 400)}
    assert load_job(path, ['training.l2_groups={"I*" = 3}']).training.l2_groups == {"I*": 3.0}
    assert job.fingerprint() != plain.fingerprint()
