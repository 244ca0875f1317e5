"""Rows that a model has seen are none to judge it on: neither its own nor those of the models that it goes on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from dfm.data.parquet import Shard, Unit, find_shards
from dfm.errors import DataError
from dfm.settings.job import Job
from dfm.workflow import steps, unseen_rows
from tests.support.small_jobs import LAST_DAY, job_tables

SEEN, DAY = "2026-11-14", "2026-11-15"


def shards_of(log: Path, day: str) -> list[Shard]:
    return find_shards([str(log / f"day={day}")])


@pytest.fixture(scope="module")
def chain(log: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of three nights, each of which goes on from the one before; the first has seen another day."""
    folder, start = tmp_path_factory.mktemp("chain"), ""
    for night, day in enumerate((SEEN, DAY, DAY)):
        training = {"n_epochs": 1, "warm_start": start}
        output = {"directory": str(folder / f"{night}"), "report": False}
        data = {"train": str(log / f"day={day}"), "validation_from": ""}
        tables = job_tables(log, folder, data=data, training=training, output=output)
        start = steps.train_once(Job.from_dict(tables), f"night-{night}", steps.Where(client))["model"]
    return folder


@pytest.fixture
def copied(chain: Path, tmp_path: Path) -> Path:
    """The same chain, to be changed: each model goes on from the one beside it."""
    shutil.copytree(chain, tmp_path / "chain")
    for night in (1, 2):
        changed(tmp_path / "chain", night, warm_start={"model": str(tmp_path / "chain" / f"{night - 1}" / "model")})
    return tmp_path / "chain"


def changed(folder: Path, night: int, **tables: dict[str, Any]) -> None:
    """Change tables of a model's metadata."""
    path = folder / f"{night}" / "model" / "model.json"
    manifest = json.loads(path.read_text())
    for name, table in tables.items():
        known = manifest["metadata"]
        for part in name.split("__"):
            known = known[part]
        known.update(table)
    path.write_text(json.dumps(manifest))


def told_by(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Messages of dfm: Dask has some of its own on a busy machine."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("dfm")]


@pytest.mark.parametrize("night", [1, 2])
def test_what_a_model_that_is_gone_on_from_was_trained_on_is_refused(
    chain: Path, log: Path, caplog: pytest.LogCaptureFixture, night: int
) -> None:
    model = str(chain / f"{night}" / "model")
    with pytest.raises(DataError, match=rf"goes on from the one at {chain}/0/model, which was trained on .*{SEEN}"):
        unseen_rows.check(model, shards_of(log, SEEN))
    unseen_rows.check(model, shards_of(log, LAST_DAY))
    assert not told_by(caplog)


@pytest.mark.parametrize("how", ["gone", "replaced"])
def test_an_earlier_model_that_is_gone_is_told_in_one_warning(
    copied: Path, log: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    if how == "gone":
        shutil.rmtree(copied / "1")
    else:
        shutil.copytree(copied / "2" / "model", copied / "1" / "model", dirs_exist_ok=True)
    unseen_rows.check(str(copied / "2" / "model"), shards_of(log, SEEN))
    (told,) = told_by(caplog)
    assert f"{copied}/1/model: it is gone, or another model lies in its place" in told


def test_an_earlier_model_that_is_all_but_forgotten_is_not_asked(copied: Path, log: Path) -> None:
    changed(copied, 1, warm_start={"decay": 0.95})
    with pytest.raises(DataError):
        unseen_rows.check(str(copied / "2" / "model"), shards_of(log, SEEN))
    changed(copied, 2, warm_start={"decay": 0.9})
    unseen_rows.check(str(copied / "2" / "model"), shards_of(log, SEEN))


def test_no_more_earlier_models_are_asked_than_a_month_has(
    copied: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unseen_rows, "_MOST_STARTS", 2)
    with pytest.raises(DataError):
        unseen_rows.check(str(copied / "2" / "model"), shards_of(log, SEEN))
    monkeypatch.setattr(unseen_rows, "_MOST_STARTS", 1)
    unseen_rows.check(str(copied / "2" / "model"), shards_of(log, SEEN))


def test_models_that_go_on_from_each_other_are_asked_once(copied: Path, log: Path) -> None:
    first, last = (json.loads((copied / night / "model" / "model.json").read_text()) for night in ("0", "2"))
    start = {"model": str(copied / "2" / "model"), "sha256": last["files"]["parameters"]["sha256"], "decay": 0.0}
    first["metadata"]["warm_start"] = start
    (copied / "0" / "model" / "model.json").write_text(json.dumps(first))
    for night in (1, 2):
        changed(copied, night, warm_start={"decay": 0.0})
    unseen_rows.check(str(copied / "2" / "model"), shards_of(log, LAST_DAY))


def test_days_that_came_after_an_earlier_model_are_none_of_its_own(
    copied: Path, log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its job names the whole log, which has grown since; where it grew at its begin, too, nothing tells what it has
    seen.
    """
    grown = tmp_path / "log"
    shutil.copytree(log / f"day={SEEN}", grown / f"day={SEEN}")
    then = unseen_rows._fingerprint(find_shards([str(grown)]))
    changed(copied, 0, settings__data={"train": [f"{grown}/*"]})
    manifest = copied / "0" / "model" / "model.json"
    known = json.loads(manifest.read_text())
    known["metadata"]["data_fingerprint"] = then
    manifest.write_text(json.dumps(known))
    model = str(copied / "1" / "model")
    with pytest.raises(DataError, match="goes on from"):
        unseen_rows.check(model, shards_of(grown, SEEN))
    shutil.copytree(log / f"day={LAST_DAY}", grown / f"day={LAST_DAY}")
    unseen_rows.check(model, shards_of(grown, LAST_DAY))
    assert not told_by(caplog)
    shutil.copytree(log / f"day={DAY}", grown / "day=2026-11-13")
    unseen_rows.check(model, shards_of(grown, LAST_DAY))
    assert "other data are found by now than it was trained on" in caplog.text
    caplog.clear()
    changed(copied, 0, settings__data={"validation_from": LAST_DAY})
    unseen_rows.check(model, shards_of(grown, LAST_DAY))
    assert not told_by(caplog)
    with pytest.raises(DataError, match="goes on from"):
        unseen_rows.check(model, shards_of(grown, SEEN))


def renamed(folder: Path, night: int, fingerprint: str, **data: Any) -> str:
    """The model of a night, of which settings and data are changed as if it had been trained so."""
    changed(folder, night, settings__data=data)
    manifest = folder / f"{night}" / "model" / "model.json"
    known = json.loads(manifest.read_text())
    known["metadata"]["data_fingerprint"] = fingerprint
    manifest.write_text(json.dumps(known))
    return str(manifest.parent)


def test_days_that_came_after_a_model_are_none_of_its_own(
    copied: Path, log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its job names the whole log, and no moment from which on rows validate: the log has grown since."""
    grown = tmp_path / "log"
    shutil.copytree(log / f"day={SEEN}", grown / f"day={SEEN}")
    then = unseen_rows._fingerprint(find_shards([str(grown)]))
    model = renamed(copied, 0, then, train=[str(grown)], validation_fraction=0.0)
    for day in (LAST_DAY, DAY):
        shutil.copytree(log / f"day={day}", grown / f"day={day}")
        unseen_rows.check(model, shards_of(grown, LAST_DAY))
        assert not told_by(caplog)
        with pytest.raises(DataError, match=rf"was trained on .*{SEEN}"):
            unseen_rows.check(model, shards_of(grown, SEEN))
    shutil.copytree(log / f"day={DAY}", grown / "day=2026-11-13")
    unseen_rows.check(model, shards_of(grown, LAST_DAY))
    (told,) = told_by(caplog)
    assert "other data are found by now than it was trained on" in told


@pytest.mark.parametrize("named", ["days", "shards"])
def test_what_a_job_names_itself_was_trained_on_whatever_became_of_the_rest(
    named: str, copied: Path, log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One of its days was written again, so that nobody finds what it was trained on; what is named does not grow."""
    copy = tmp_path / "log"
    for day in (SEEN, DAY):
        shutil.copytree(log / f"day={day}", copy / f"day={day}")
    train = [str(copy / f"day={day}") for day in (SEEN, DAY)]
    train = train if named == "days" else [shard.url for day in train for shard in find_shards([day])]
    model = renamed(copied, 0, "of then", train=train, validation_fraction=0.0)
    with pytest.raises(DataError, match=rf"was trained on .*{DAY}"):
        unseen_rows.check(model, shards_of(copy, DAY))
    assert not told_by(caplog)


def test_a_day_that_came_late_is_none_of_a_models_own(
    copied: Path, log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It lies between days that the model was trained on."""
    grown = tmp_path / "log"
    for day in (SEEN, LAST_DAY):
        shutil.copytree(log / f"day={day}", grown / f"day={day}")
    then = unseen_rows._fingerprint(find_shards([str(grown)]))
    model = renamed(copied, 0, then, train=[str(grown)], validation_fraction=0.0)
    shutil.copytree(log / f"day={DAY}", grown / f"day={DAY}")
    unseen_rows.check(model, shards_of(grown, DAY))
    assert not told_by(caplog)


def test_shards_that_came_after_a_model_into_one_folder_are_none_of_its_own(
    copied: Path, log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grown = tmp_path / "log"
    grown.mkdir()
    for number, day in enumerate((SEEN, DAY, "2026-11-16", LAST_DAY)):
        shutil.copyfile(next((log / f"day={day}").glob("*.parquet")), grown / f"{number}.parquet")
    then = unseen_rows._fingerprint(find_shards([str(grown / "0.parquet"), str(grown / "1.parquet")]))
    model = renamed(copied, 0, then, train=[str(grown)], validation_fraction=0.0)
    changed(copied, 0, settings__schema={"time": ""})
    unseen_rows.check(model, find_shards([str(grown / "3.parquet")]))
    assert not told_by(caplog)
    with pytest.raises(DataError, match=r"was trained on .*/1.parquet"):
        unseen_rows.check(model, find_shards([str(grown / "1.parquet")]))


def test_the_latest_folder_of_then_is_found_though_another_one_is_the_latest_now(
    copied: Path, log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Three days, of which the last one validated; two came since, and move by themselves from where on rows do."""
    grown, days = tmp_path / "log", ("2026-11-14", "2026-11-15", "2026-11-16")
    for day in days:
        shutil.copytree(log / f"day={day}", grown / f"day={day}")
    then = unseen_rows._fingerprint([shard for day in days[:2] for shard in shards_of(grown, day)])
    model = renamed(copied, 0, then, train=[str(grown)], validation_fraction=0.2)
    changed(copied, 0, settings__schema={"time": "day"})
    for day in ("2026-11-17", "2026-11-18"):
        shutil.copytree(log / f"day={LAST_DAY}", grown / f"day={day}")
    for day in ("2026-11-16", "2026-11-17", "2026-11-18"):
        unseen_rows.check(model, shards_of(grown, day))
    assert not told_by(caplog)
    for day in days[:2]:
        with pytest.raises(DataError, match=rf"was trained on .*{day}"):
            unseen_rows.check(model, shards_of(grown, day))


def test_settings_that_are_legal_no_more_are_told_and_refuse_nothing(
    copied: Path, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed(copied, 0, settings__training={"precision": 2.0})
    unseen_rows.check(str(copied / "2" / "model"), shards_of(log, SEEN))
    (told,) = told_by(caplog)
    assert "only that reads it" in told


def test_a_chain_of_models_reads_each_shard_once(chain: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of one name for all nights, of which each validated on the latest day."""
    read, plain = [], unseen_rows.read_unit

    def counted(unit: Unit, *others: Any) -> Any:
        read.append(unit.shard.url)
        return plain(unit, *others)

    monkeypatch.setattr(unseen_rows, "read_unit", counted)
    later: unseen_rows._Later = {}
    shards = shards_of(log, LAST_DAY)
    for moment in (LAST_DAY, "2026-11-16", "2026-11-15"):
        assert unseen_rows._before(shards, unseen_rows._Bound("day", moment, ()), "model", None, later) == []
    assert sorted(read) == sorted(shard.url for shard in shards)
