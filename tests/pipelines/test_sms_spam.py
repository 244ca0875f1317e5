"""The spam experiment as published: on the messages that ship with it."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from pipelines.sms_spam import run

MESSAGES = run.HERE / "SMSSpamCollection"


def test_the_machine_ranks_spam_at_least_as_well_as_logistic_regression_and_its_loss_falls():
    (machine, logistic), labels = run.experiment(MESSAGES)
    assert len(labels) == 1394
    assert machine.auc >= logistic.auc > 0.99
    assert len(machine.history) == 30
    assert run.is_falling(machine.history)


def test_a_loss_that_rises_once_is_noticed():
    assert not run.is_falling([{"train_loss": loss} for loss in (0.3, 0.2, 0.21, 0.1)])


def test_the_command_prints_both_models_and_saves_the_plot(tmp_path):
    done = CliRunner().invoke(run.main, ["--epochs", "2", "--output", str(tmp_path)], catch_exceptions=False)
    assert "dfm FMClassifier" in done.output
    assert "scikit-learn LogisticRegression" in done.output
    assert (tmp_path / "sms_spam.png").stat().st_size > 10_000
