"""Names that other tools give to a knob lead to it."""

from __future__ import annotations

import pytest

from dfm.errors import SettingsError
from dfm.settings.job import MATTER_FIRST, describe, load_job
from dfm.settings.synonyms import SYNONYMS, meant_by
from dfm.settings.tables import TABLES

KNOBS = {one.name for one in describe()}


def test_every_synonym_means_a_knob_that_is_there_and_is_none_itself() -> None:
    assert {knob for knobs in SYNONYMS.values() for knob in knobs} <= KNOBS
    assert {*MATTER_FIRST} <= KNOBS
    own = {name.split(".")[1] for name in KNOBS}
    for name in SYNONYMS:
        assert name == name.lower().replace("-", "_")
        assert name not in own


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("training.lr", "training.learning_rate"),
        ("training.eta", "training.learning_rate"),
        ("training.epochs", "training.n_epochs"),
        ("training.batch-size", "training.rows_per_round"),
        ("training.batch_size", "training.rows_per_round"),
        ("model.k", "model.n_factors"),
        ("training.k", "model.n_factors"),
        ("model.Embedding_Dim", "model.n_factors"),
        ("training.alpha", "training.learning_rate or training.l2_linear or training.l2_factors"),
        ("training.weight_decay", "training.l2_linear or training.l2_factors"),
        ("schema.target", "schema.label"),
        ("cluster.n_jobs", "cluster.workers"),
    ],
)
def test_a_name_of_another_tool_suggests_ours(written: str, meant: str) -> None:
    table, key = written.split(".")
    for tables, overrides in (({table: {key: 1}}, []), ({}, [f"{written}=1"])):
        with pytest.raises(SettingsError) as refused:
            load_job(tables, overrides)
        assert str(refused.value) == f"{written} is unknown. Did you mean {meant}?"


def test_a_key_outside_of_any_table_leads_to_its_table() -> None:
    with pytest.raises(SettingsError, match=r"\[lr\] is unknown\. Did you mean training\.learning_rate\?"):
        load_job({"lr": 0.1})
    with pytest.raises(SettingsError, match=r"Write for example training\.learning_rate=VALUE"):
        load_job({}, ["lr=0.1"])


def test_a_name_that_is_near_one_of_ours_is_no_synonym() -> None:
    assert meant_by("learning_rat") == ()
    assert all(not meant_by(key) for kind in TABLES.values() for key in kind.knobs())
