"""Requests to a store fail in each way: the run ends as if none had, or with a named error and then so."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.support.failing_requests import WAYS, Trials, a_store, chosen

pytestmark = pytest.mark.patient


def test_requests_that_fail_do_not_change_what_is_learnt(tmp_path: Path) -> None:
    pytest.importorskip("moto")
    with a_store(tmp_path) as (url, faults), contextlib.closing(Trials(tmp_path, url, faults)) as trials:
        for at, way in chosen(len(trials.requests), sample=len(WAYS)):
            trial = trials.run(at, way)
            assert trial.is_right(trials.expected), trial
