"""Every family trains like the first: the same bytes on any cluster, through a stop, from an earlier model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

from dfm import jobs
from dfm.distributed import backends, checkpointing
from dfm.distributed.backends import choose
from dfm.errors import RunCancelled, SettingsError
from dfm.kernels.contract import KernelSpec
from dfm.kernels.families.registry import DEFAULT, FAMILIES, family_of
from dfm.model.fm_model import FMModel
from dfm.settings.job import load_job
from tests.support.small_jobs import in_process_client, job_tables, read_log

OTHERS = [family for family in FAMILIES if family != DEFAULT]


def tables_of(family: str, log: Path, folder: Path, **training: Any) -> dict[str, Any]:
    model = {"family": family, "n_factors": 4, "hash_bits": 16}
    return job_tables(log, folder, model=model, training={"backend": "numba", **training})


@pytest.mark.parametrize("family", OTHERS)
def test_the_bytes_are_the_same_on_any_workers_and_through_a_stop(
    family: str, log: Path, client: Client, two_workers: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)
    expected = jobs.train(tables_of(family, log, tmp_path / "one"), client)
    model = FMModel.load(expected.model_url)
    assert model.table.layout.family == family
    for block in model.table.layout.own:
        assert len(np.unique(model.table[block.name])) > 10, "something was learnt"
    rounds = 0

    def stop(event: dict[str, Any]) -> None:
        nonlocal rounds
        rounds += event["event"] == "round"
        if rounds == 3 and event["event"] == "round":
            raise RunCancelled("asked to stop")

    tables = tables_of(family, log, tmp_path / "two")
    with pytest.raises(RunCancelled):
        jobs.train(tables, two_workers, on_event=stop)
    told: list[dict[str, Any]] = []
    resumed = jobs.train(tables, two_workers, on_event=told.append)
    assert any(event["event"] == "resumed" for event in told)
    assert resumed.parameters_sha256 == expected.parameters_sha256
    with in_process_client(5) as five_workers:
        assert jobs.train(tables_of(family, log, tmp_path / "five"), five_workers).parameters_sha256 == (
            expected.parameters_sha256
        )
    assert model.predict(read_log(log).slice(0, 50)).shape == (50,)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family_of(family).cuda is None])
def test_a_family_without_code_for_gpus_trains_on_processors_and_says_why(
    family: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, workers = KernelSpec("logistic", "adagrad", 4, family=family), list(client.scheduler_info()["workers"])
    assert choose(client, "auto", spec, workers).text == "training on processors: no worker has a GPU"
    there = {address: backends.GpuOfWorker("NVIDIA H200", "", 1, "") for address in workers}
    monkeypatch.setattr(backends, "_asked", lambda client, addresses: there)
    choice = choose(client, "auto", spec, workers)
    assert choice.backend.name == "numba"
    assert choice.text.startswith(f'training on processors: the GPU has no code for family = "{family}"')
    with pytest.raises(SettingsError, match=f'no code for family = "{family}".*backend = "numba"'):
        choose(client, "cupy", spec, workers)


@pytest.mark.parametrize("family", OTHERS)
def test_training_goes_on_from_a_model_of_the_same_family_only(
    family: str, log: Path, client: Client, tmp_path: Path
) -> None:
    first = jobs.train(tables_of(family, log, tmp_path / "first", n_epochs=1), client)
    warm = {"n_epochs": 1, "warm_start": first.model_url, "warm_start_decay": 0.0}
    again = jobs.train(tables_of(family, log, tmp_path / "again", **warm), client)
    assert again.parameters_sha256 != first.parameters_sha256
    with pytest.raises(SettingsError, match=rf"model.family = {DEFAULT}, but .* has {family}; use {family}"):
        jobs.train(tables_of(DEFAULT, log, tmp_path / "other", **warm), client)


def test_a_job_that_names_no_family_is_the_job_that_it_was(tmp_path: Path) -> None:
    tables = job_tables(tmp_path, tmp_path)
    plain = load_job(tables)
    assert "family" not in plain.determining_tables()["model"]
    assert load_job(tables, [f"model.family={DEFAULT}"]).fingerprint() == plain.fingerprint()
    prints = {load_job(tables, [f"model.family={family}"]).fingerprint() for family in FAMILIES}
    assert len(prints) == len(FAMILIES)
    with pytest.raises(SettingsError, match=f'model.family = "deep" is not legal: expected "{DEFAULT}"'):
        load_job(tables, ["model.family=deep"])
