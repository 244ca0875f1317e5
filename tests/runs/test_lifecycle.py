"""The table of a run's states is whole and without contradiction, and who reads or writes a record obeys it."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path

import pytest

from dfm.errors import SettingsError
from dfm.launch import on_dask, process
from dfm.runs import lifecycle
from dfm.runs import record as runs
from dfm.runs.lifecycle import CANCELLER, DRIVER, STATES, SUBMITTER, SUPERVISOR
from dfm.runs.log import RunLog
from dfm.runs.outcome import Outcome
from dfm.runs.record import RunRecord, read_run, write_run
from dfm.settings.job import Job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job.from_dict({"data": {"train": "x"}, "output": {"directory": f"{tmp_path}/out"}})


def old(state: str, seconds: float) -> RunRecord:
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    return RunRecord("run-1", state, host="elsewhere", updated=moment.isoformat())


def test_every_state_is_reached_left_or_concluded() -> None:
    assert {name for state in STATES.values() for name in state.after} <= {"", *lifecycle.WRITTEN}
    for state in STATES.values():
        assert bool(state.writers) == bool(state.after), state.name
        assert set(state.writers) <= {SUBMITTER, DRIVER, SUPERVISOR, CANCELLER}
        assert not (state.is_final and state.silence), f"{state.name}: nobody speaks after the end"
        assert (state.engine == lifecycle.WAIT) is not state.is_final, state.name
    reached, before = {""}, set()
    while reached != before:
        before = set(reached)
        reached |= {state.name for state in STATES.values() if reached & set(state.after)}
    assert reached == {"", *lifecycle.WRITTEN}


@pytest.mark.parametrize("name", ["finished", "failed", "cancelled", "interrupted"])
def test_no_end_takes_the_place_of_another(name: str) -> None:
    for writer in (DRIVER, SUPERVISOR, CANCELLER):
        for end in ("finished", "failed", "cancelled", "interrupted"):
            assert not lifecycle.may_follow(name, end, writer)


def test_only_what_the_table_allows_is_written_for_a_driver(job: Job) -> None:
    assert not runs.settle(job, "run-1", "failed", SUPERVISOR)  # there is no record
    runs.submitted(job, "run-1")
    assert not runs.settle(job, "run-2", "failed", SUPERVISOR)  # it is another run's
    assert not runs.settle(job, "run-1", "finished", SUPERVISOR)  # that is the driver's to say
    assert runs.settle(job, "run-1", "retrying", SUPERVISOR, {"message": "lost", "exit_code": 4})
    assert runs.settle(job, "run-1", "cancelled", CANCELLER)
    assert not runs.settle(job, "run-1", "failed", SUPERVISOR)
    record = read_run(job.output.directory)
    assert record is not None
    assert (record.state, record.is_over, bool(record.ended)) == ("cancelled", True, True)


@pytest.mark.parametrize("name", STATES)
def test_followers_waiters_and_submitters_agree_on_every_state(job: Job, name: str) -> None:
    state = STATES[name]
    assert Outcome(name, "", None).is_over is state.is_final
    fresh, silent = old(name, 1), old(name, (state.silence or lifecycle.START_SECONDS) + 1)
    assert fresh.is_over is state.is_final
    assert not fresh.is_stale()
    assert silent.is_stale() is (state.silence is not None)
    assert process.is_lost(silent) is (state.silence is not None)
    write_run(job.output.directory, fresh)
    if not state.is_final and state.writers:
        with pytest.raises(SettingsError, match=f"holds run run-1, which is {name}"):
            on_dask.check_free(job)
        write_run(job.output.directory, silent)
    on_dask.check_free(job)


def test_a_process_that_is_gone_between_two_attempts_is_not_lost(job: Job) -> None:
    with RunLog(job, "run-1") as log:
        here = replace(log.record, pid=1 << 30)
        log.on_event(
            {
                "event": "done",
                "model": "m",
                "parameters_sha256": "x",
                "validation": {},
                "rows": {},
                "interrupted": False,
            }
        )
    assert process.is_lost(here)
    assert not process.is_lost(replace(here, state="retrying"))


def test_a_state_of_a_later_version_is_waited_for() -> None:
    assert not RunRecord("run-1", "of tomorrow").is_over
