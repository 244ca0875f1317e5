"""The table of families: planted logs are what they say, and one command trains every family on each."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipelines.families import run
from tests.support.small_jobs import in_process_client


def test_strengths_of_twenty_pairs_of_fields_are_planted_and_those_of_an_fm_are_equal():
    strengths = run.strong_pairs(np.random.default_rng(0))
    assert np.count_nonzero(strengths) == run.N_STRONG
    assert not np.tril(strengths).any()
    assert (strengths > 0).any()
    assert (strengths < 0).any()
    assert run.equal_pairs(np.random.default_rng(0)).sum() == 45


@pytest.mark.parametrize("name", run.PLANTED)
def test_nobody_knows_the_labels_better_than_the_truth(name, tmp_path):
    log = run.planted_log(name, tmp_path, 4_000)
    labels = pq.read_table(log.validation)["label"].to_numpy()
    assert len(labels) == 1_000
    rate = labels.mean()
    always = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert 0.2 < log.bayes < always - 0.1
    assert sum(pq.read_metadata(path).num_rows for path in tmp_path.rglob("*.parquet")) == 5_000


def test_the_command_prints_every_family_on_every_log(tmp_path, monkeypatch):
    with in_process_client(1) as client:
        original = run.compare
        monkeypatch.setattr(run, "compare", lambda log, folder, epochs: original(log, folder, epochs, client))
        arguments = ["--rows", "3000", "--epochs", "1", "--output", str(tmp_path)]
        done = CliRunner().invoke(run.main, arguments, catch_exceptions=False, env={"DFM_CRITEO": ""})
    for name in run.PLANTED:
        assert f"\n{name}" in done.output
    for family in run.FAMILIES:
        assert done.output.count(f"\n{family} ") == len(run.PLANTED)
    assert done.output.count("\nthe truth ") >= len(run.PLANTED)
