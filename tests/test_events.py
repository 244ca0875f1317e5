"""Events are what their records say: in the code that makes them, in a training, in the site."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dfm
from dfm import events, jobs
from dfm.data import synthetic
from dfm.distributed import monitoring
from dfm.events import METRICS, RECORDS, STAMPS, faults_of, line_of, markdown_table, sent
from dfm.model.drift import N_BINS, Sights
from dfm.model.group_auc import GroupedTally, rows_by_group
from dfm.model.metrics import ClassificationTally, MarginTally, RegressionTally
from dfm.model.objective import LossTally
from dfm.runs.record import read_events
from tests.support.site import made
from tests.support.small_jobs import in_process_client, job_tables
from tests.support.small_models import make_model

SOURCES = sorted(Path(dfm.__file__).parent.rglob("*.py"))
ROUND = {"event": "round", "epoch": 1, "round": 2, "rounds": 8, "rows_per_second": 1e6}


def literal_events() -> list[Any]:
    """Every dict with a key "event" in the package's source: its names, its other keys, whether more are spread in."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Dict) or path.name == "events.py":
                continue
            keys = [key.value if isinstance(key, ast.Constant) else "" for key in node.keys]
            if "event" in keys:
                value = node.values[keys.index("event")]
                choices = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
                names = [choice.value for choice in choices if isinstance(choice, ast.Constant)]
                where = f"{path.relative_to(path.parents[1])}:{node.lineno}"
                found.append(pytest.param(names, {*keys} - {"event", ""}, None in node.keys, id=where))
    return found


@pytest.mark.parametrize(("names", "keys", "more_follow"), literal_events())
def test_code_that_makes_an_event_keeps_to_a_record_of_it(names: list[str], keys: set[str], more_follow: bool) -> None:
    known = [record for record in RECORDS if record.name in names]
    assert {record.name for record in known} == {*names}
    fitting = [
        record
        for record in known
        if keys <= {field.name for field in record.fields} | {field.name for field in STAMPS}
        and (more_follow or {field.name for field in record.fields if not field.may_be_absent} <= keys)
    ]
    assert fitting, f"{names} with {sorted(keys)} is in no record of dfm/events.py"


def test_every_event_that_is_recorded_is_made_somewhere() -> None:
    made = {name for entry in literal_events() for name in entry.values[0]}
    assert made >= {record.name for record in RECORDS}


def test_events_leave_through_one_door() -> None:
    """Whatever turns an event into JSON by itself would leave its version out."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "json.dumps" and path.name != "events.py":
                told = {leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)}
                assert "event" not in told, f"{path}:{node.lineno}: use events.line_of"


def test_records_are_complete_and_say_one_thing_once() -> None:
    for record in RECORDS:
        names = [field.name for field in record.fields]
        assert len(set(names)) == len(names), record.name
        assert all((record.meaning, record.emitter, *(field.meaning for field in record.fields)))
        assert all(field.kind in ("flag", "integer", "number", "text", "list", "record") for field in record.fields)
    assert len({(record.name, record.emitter) for record in RECORDS}) == len(RECORDS)


def test_metrics_are_those_of_the_tallies() -> None:
    tallies = [kind.from_scores([0.5, -1.0], [1, 0]) for kind in (ClassificationTally, MarginTally, RegressionTally)]
    told = {**LossTally(1.0, 1.0, tallies[0]).metrics(), **tallies[1].metrics(), **tallies[2].metrics()}
    told |= GroupedTally(tallies[0], rows_by_group(["a", "a"], [0.5, -1.0], [1, 0], [1, 1])).metrics()
    assert told.keys() == {field.name for field in METRICS}
    assert not faults_of({"event": "average", "epoch": 1, "average": 1, **told})


@pytest.mark.parametrize(
    ("event", "fault"),
    [
        ({**ROUND, "rows": 3}, "round.rows is in no record of it"),
        ({key: value for key, value in ROUND.items() if key != "rounds"}, "round.rounds is missing"),
        ({**ROUND, "round": 2.5}, "round.round = 2.5 is no integer"),
        ({**ROUND, "round": True}, "round.round = True is no integer"),
        ({**ROUND, "rows_per_second": None}, "round.rows_per_second = None is no number"),
        ({"event": "rounds"}, "'rounds' is the name of no event"),
        ({}, "None is the name of no event"),
    ],
)
def test_what_is_wrong_with_an_event_is_named(event: dict[str, Any], fault: str) -> None:
    assert faults_of(ROUND) == []
    assert faults_of(event) == [fault]


def test_an_event_leaves_with_the_version_of_its_record_and_without_numbers_that_json_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sent({**ROUND, "rows_per_second": float("nan")}) == {**ROUND, "event_version": 1, "rows_per_second": None}
    assert json.loads(line_of(ROUND)) == sent(ROUND)
    assert sent({**ROUND, "event_version": 7})["event_version"] == 7  # read from a file that another dfm wrote
    newer = [dataclasses.replace(record, version=2) if record.name == "round" else record for record in RECORDS]
    monkeypatch.setattr(events, "RECORDS", newer)
    assert sent(ROUND)["event_version"] == 2
    assert sent({"event": "done"})["event_version"] == 1


def test_a_training_that_worsens_tells_what_the_records_say(tmp_path: Path) -> None:
    worsens = {"validate": "average", "early_stopping": True, "patience": 1, "rollbacks": 1, "n_epochs": 9}
    worsens["learning_rate"] = 0.4
    log = tmp_path / "clicks"
    synthetic.generate(log, rows=3_000, days=4, shards_per_day=1, seed=3)
    told: list[dict[str, Any]] = []
    with in_process_client(1) as client:
        jobs.train(job_tables(log, tmp_path, training=worsens), client=client, on_event=told.append)
        on_topic = [message for _, message in client.get_events(monitoring.TOPIC)]
    kept = read_events(str(tmp_path / "out"))
    seen = {event["event"] for event in told}
    assert seen >= {"progress", "plan", "placement", "vocabulary", "prepared", "round", "average", "epoch"}
    assert seen >= {"rolled_back", "stopped", "done"}
    for event in (*told, *kept, *on_topic):
        assert faults_of(event) == [], event
    assert all(event["event_version"] == 1 for event in (*kept, *on_topic))
    assert [event["event"] for event in kept][-2:] == ["done", "ended"]
    assert "epoch" in {message["event"] for message in on_topic}


def test_the_reference_names_what_is_told_of_drift() -> None:
    model = make_model()
    (record, *_) = model.watcher.records(Sights(np.zeros((len(model.schema.fields), N_BINS), np.int64)), model.schema)
    told = {key for key in record if not key.startswith("training_")} - {"column", "values"}
    meanings = [field.meaning for each in RECORDS for field in each.fields if field.name == "drift"]
    assert len(meanings) == 2
    for meaning in meanings:
        assert told <= {*re.findall(r"\w+", meaning)}


def test_the_page_of_the_site_is_the_records() -> None:
    page = made("events")
    assert markdown_table() in page
    for record in RECORDS:
        assert f"\n`{record.name}`, {record.emitter}: " in page
