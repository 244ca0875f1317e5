"""The gate lets better models through, the alias changes in one step, and going back is possible and remembered."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest

from dfm.errors import GateError, ModelError, SettingsError
from dfm.model.calibration import Calibration
from dfm.storage import files
from dfm.workflow.gate import Gate, Verdict, judge
from dfm.workflow.registry import champion, is_left_behind, model_of, promote, rollback, versions
from tests.support.small_models import PLAIN, make_model

GOOD = {
    "log_loss": 0.40, "normalized_entropy": 0.8, "calibration": 1.02, "base_rate": 0.25, "rows": 5000, "weight": 5000.0,
}  # fmt: skip
PASSED = Verdict((), dict(GOOD))


def changed(**values: Any) -> dict[str, Any]:
    return {**GOOD, **values}


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """Three models of different parameters."""
    urls = [str(tmp_path / f"day {number}" / "model") for number in (1, 2, 3)]
    for url, min_count in zip(urls, (1, 2, 3), strict=True):
        make_model(PLAIN, min_count=min_count).save(url)
    return urls


@pytest.fixture(params=["local", "memory"])
def alias(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "champion") if request.param == "local" else f"memory://{tmp_path.name}/champion"


# --- the gate -------------------------------------------------------------------------------------------


def test_the_first_good_candidate_passes_and_an_equal_one_after_it():
    assert judge(GOOD, None, Gate()).passed
    assert judge(GOOD, GOOD, Gate()).passed


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (changed(log_loss=0.41), "1.0250 times the champion's 0.40000; the gate allows 1"),
        (changed(normalized_entropy=1.0), "as bad as always answering the click rate"),
        (changed(calibration=0.85), "it predicts 0.850 clicks for each one that came"),
        (changed(calibration=1.2), "the gate allows 0.9 to 1.1"),
        (changed(calibration=None), "it predicts None clicks"),
        (changed(log_loss=None), "the window does not define log_loss"),
    ],
)
def test_each_threshold_refuses_with_its_numbers(candidate: dict[str, Any], reason: str):
    verdict = judge(candidate, GOOD, Gate())
    assert not verdict.passed
    assert reason in verdict.refusals[0]
    assert verdict.champion["log_loss"] == 0.40


@pytest.mark.parametrize("undefined", [None, math.nan, math.inf])
@pytest.mark.parametrize("name", ["log_loss", "normalized_entropy", "calibration"])
def test_what_is_not_defined_is_refused(name: str, undefined: float | None):
    assert not judge(changed(**{name: undefined}), None, Gate()).passed
    assert not judge(changed(**{name: undefined}), GOOD, Gate()).passed


@pytest.mark.parametrize("undefined", [None, math.nan])
def test_a_champion_without_the_metric_is_not_beaten(undefined: float | None):
    assert "the champion has no log_loss on these rows" in judge(GOOD, changed(log_loss=undefined), Gate()).refusals[0]
    ranked = {"loss": 0.3, "auc": 0.7, "base_rate": 0.25, "rows": 5000, "weight": 5000.0}
    assert judge(ranked, ranked, Gate()).passed
    assert "the champion has no log_loss" in judge(GOOD, ranked, Gate()).refusals[0]


def test_a_perfect_champion_is_not_beaten_by_an_error():
    perfect = changed(log_loss=0.0)
    assert "is above the champion's 0.00000" in judge(GOOD, perfect, Gate()).refusals[0]


def test_a_small_window_decides_nothing():
    assert "fewer than min_rows = 6000" in judge(GOOD, GOOD, Gate(min_rows=6000)).refusals[0]


def test_thresholds_are_the_users():
    assert judge(changed(log_loss=0.41), GOOD, Gate(log_loss_ratio=1.03)).passed
    assert judge(changed(calibration=1.2), GOOD, Gate.from_dict({"calibration_high": 1.3})).passed
    with pytest.raises(SettingsError, match=r"no threshold 'auc'; it has log_loss_ratio"):
        Gate.from_dict({"auc": 0.7})
    with pytest.raises(SettingsError, match="min_rows = -1"):
        Gate(min_rows=-1)
    with pytest.raises(SettingsError, match=r"calibration_low = 1.2 lies above"):
        Gate(calibration_low=1.2)


def test_evaluations_of_different_rows_are_not_compared():
    with pytest.raises(SettingsError, match=r"on different rows \(base_rate is 0.25 and 0.26\)"):
        judge(GOOD, changed(base_rate=0.26), Gate())


def test_models_of_pairs_are_compared_by_the_order_within_groups():
    def ordered(group_auc: float | None, **more: float) -> dict[str, Any]:
        return {"auc": 0.6, "group_auc": group_auc, "base_rate": 0.25, "rows": 5000, "weight": 5000.0, **more}

    assert judge(ordered(0.7), ordered(0.7), Gate()).passed
    assert judge(ordered(0.7), {**GOOD, "group_auc": 0.69}, Gate()).passed, "a champion of single rows"
    refusal = judge(ordered(0.7), ordered(0.75), Gate()).refusals[0]
    assert refusal.startswith("its 1 - group_auc 0.30000 is 1.2000 times the champion's 0.25000")
    assert "times as bad as any order" in judge(ordered(0.4), None, Gate()).refusals[0]
    assert judge(ordered(None), None, Gate()).refusals[0].startswith("the window does not define 1 - group_auc")


def test_regression_is_compared_by_rmse():
    champion_metrics = {"rmse": 2.0, "r2": 0.5, "rows": 5000, "weight": 5000.0}
    assert judge({**champion_metrics, "rmse": 1.9}, champion_metrics, Gate()).passed
    assert not judge({**champion_metrics, "rmse": 2.1}, champion_metrics, Gate()).passed
    assert "always answering the mean" in judge({**champion_metrics, "r2": -0.1}, None, Gate()).refusals[0]


def test_regression_of_another_loss_is_compared_by_that_loss():
    """A quantile says nothing of squares: 1 - r2 may be 5 for the best model there is."""
    quantile = {"loss": 0.2, "rmse": 4.0, "r2": -4.0, "rows": 5000, "weight": 5000.0}
    assert judge(quantile, None, Gate()).passed
    assert judge({**quantile, "loss": 0.19, "rmse": 5.0}, quantile, Gate()).passed
    refusal = judge({**quantile, "loss": 0.25, "rmse": 2.0, "r2": 0.1}, quantile, Gate()).refusals[0]
    assert refusal.startswith("its loss 0.25000 is 1.2500 times the champion's 0.20000")
    counts = {"loss": -10.0, "rmse": 3.0, "r2": 0.3, "rows": 5000, "weight": 5000.0}
    assert judge({**counts, "loss": -10.1}, counts, Gate(log_loss_ratio=1.02)).passed, "Poisson's may be below 0"
    assert judge({**counts, "loss": -9.9}, counts, Gate(log_loss_ratio=1.02)).passed
    refusal = judge({**counts, "loss": -9.7}, counts, Gate(log_loss_ratio=1.02)).refusals[0]
    assert refusal.startswith("its loss -9.70000 is above the champion's")
    assert not judge({**counts, "loss": -9.9}, counts, Gate(log_loss_ratio=0.99)).passed
    squared = {name: value for name, value in quantile.items() if name != "loss"}
    assert judge(quantile, squared, Gate()).refusals[0].startswith("the champion was trained for another loss")
    assert "the champion has no loss" in judge(quantile, {**quantile, "loss": None}, Gate()).refusals[0]
    of_both = {**quantile, "log_loss": 0.4, "normalized_entropy": 0.8, "calibration": 1.0}
    assert judge({**of_both, "loss": 9.0}, of_both, Gate()).passed, "probabilities have their log loss"


def test_slices_of_another_loss_are_compared_by_rmse() -> None:
    def with_slice(rmse: float) -> dict[str, Any]:
        records = [{"slice": {"site": "a"}, "rows": 2000, "rmse": rmse}]
        return {"loss": 0.2, "rmse": 4.0, "r2": 0.1, "rows": 5000, "weight": 5000.0, "slices": {"site": records}}

    (refusal,) = judge(with_slice(3.0), with_slice(2.0), Gate(slices=("site",))).refusals
    assert refusal.startswith("where site = a its rmse is 1.500 times the champion's on 2,000 rows")


# --- the alias ------------------------------------------------------------------------------------------


def test_promotions_and_rollbacks_are_versions_and_the_last_one_counts(alias: str, models: list[str]):
    assert champion(alias) is None
    for number, model in enumerate(models, start=1):
        entry = promote(alias, model, PASSED, order=f"2026-11-0{number}", seen=number - 1)
        assert (entry.number, entry.model, entry.order) == (number, model, f"2026-11-0{number}")
        assert model_of(alias) == model
    assert rollback(alias, "complaints").model == models[1]
    assert rollback(alias).model == models[0]
    with pytest.raises(GateError, match="no champion to go back to; it has 5 versions"):
        rollback(alias)
    present = champion(alias)
    assert present is not None
    assert (present.number, present.model, present.previous) == (5, models[0], 0)
    assert [entry.action for entry in versions(alias)] == ["promote"] * 3 + ["rollback"] * 2
    assert versions(alias)[3].reason == "complaints"
    assert model_of(models[2]) == models[2]


def test_promoting_the_champion_again_changes_nothing(alias: str, models: list[str]):
    first = promote(alias, models[0], PASSED)
    assert promote(alias, models[0], PASSED, seen=0) == first
    assert len(versions(alias)) == 1
    promote(alias, models[1], PASSED, order="2026-11-02")
    assert promote(alias, models[0], PASSED, order="2026-11-01") == first
    assert model_of(alias) == models[1]


def test_a_champion_of_before_is_left_behind_until_it_is_gone_back_to(alias: str, models: list[str]) -> None:
    promote(alias, models[0], PASSED)
    assert is_left_behind(alias, models[0], "") == ""
    promote(alias, models[1], PASSED)
    told = f"it was version 1, and the champion is version 2 now: {models[1]}"
    assert is_left_behind(alias, models[0], "") == is_left_behind(alias, models[0], "2026-12-01") == told
    rollback(alias)
    assert is_left_behind(alias, models[0], "") == ""
    assert promote(alias, models[0], PASSED).number == 3


def test_a_refused_candidate_leaves_the_alias_alone(alias: str, models: list[str]):
    promote(alias, models[0], PASSED)
    with pytest.raises(GateError, match=r"does not become the champion .* too bad"):
        promote(alias, models[1], Verdict(("too bad",), {}))
    assert model_of(alias) == models[0]


def test_an_older_day_does_not_set_the_alias_back_in_time(alias: str, models: list[str]):
    promote(alias, models[1], PASSED, order="2026-11-02")
    with pytest.raises(GateError, match="data end at 2026-11-01, those of the champion at 2026-11-02"):
        promote(alias, models[0], PASSED, order="2026-11-01")
    promote(alias, models[2], PASSED, order="2026-11-02")


def test_a_champion_whose_order_cannot_be_compared_is_replaced_with_a_warning(
    alias: str, models: list[str], caplog: pytest.LogCaptureFixture
):
    promote(alias, models[0], PASSED, order="2026-11-02")
    promote(alias, models[1], PASSED)
    promote(alias, models[2], PASSED, order="night 7")
    assert caplog.records == [], "one of the two has no order"
    promote(other := f"{alias}-2", models[0], PASSED, order="2026-11-02")
    promote(other, models[1], PASSED, order="night 7")
    assert f"nothing says whether a model whose order is 'night 7' is older than the champion of {other}" in caplog.text
    assert "2026-11-02" in caplog.text


def test_a_withdrawn_model_does_not_come_back(alias: str, models: list[str]):
    promote(alias, models[0], PASSED)
    promote(alias, models[1], PASSED)
    rollback(alias, "wrong prices")
    with pytest.raises(GateError, match=r"withdrawn by version 3 \(wrong prices\)"):
        promote(alias, models[1], PASSED)


def test_a_verdict_against_another_champion_does_not_count(alias: str, models: list[str]):
    promote(alias, models[0], PASSED)
    with pytest.raises(GateError, match="from version 0 to 1 in the meantime"):
        promote(alias, models[1], PASSED, seen=0)


def test_of_many_publications_at_once_one_succeeds(tmp_path: Path, models: list[str]):
    alias = str(tmp_path / "champion")
    promote(alias, models[0], PASSED)
    start, outcomes = threading.Barrier(8), []

    def publish(number: int) -> None:
        start.wait()
        try:
            outcomes.append(promote(alias, models[1 + number % 2], PASSED, seen=1).model)
        except GateError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(versions(alias)) == 2
    winner = model_of(alias)
    assert {o for o in outcomes if not o.startswith("/") or o != winner} <= {
        f"{alias} went from version 1 to 2 in the meantime; compare with the new champion and try again"
    }


def test_a_damaged_model_is_never_published(alias: str, models: list[str]):
    parameters = next(Path(models[0]).glob("parameters-*"))
    parameters.write_bytes(parameters.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelError, match="damaged"):
        promote(alias, models[0], PASSED)
    assert champion(alias) is None


def test_a_damaged_version_is_named(tmp_path: Path, models: list[str]):
    alias = str(tmp_path / "champion")
    promote(alias, models[0], PASSED)
    files.write_bytes(f"{alias}/v000002.json", b"{}")
    with pytest.raises(ModelError, match=r"v000002.json is no version of an alias"):
        champion(alias)


def test_a_slice_that_got_worse_is_refused_by_name() -> None:
    def with_slices(**losses: float) -> dict[str, Any]:
        records = [{"slice": {"site": name}, "rows": 2000, "log_loss": loss} for name, loss in losses.items()]
        return changed(slices={"site": records})

    gate = Gate.from_dict({"slices": ["site"], "slice_loss_ratio": 1.02})
    champion = with_slices(a=0.4, b=0.3, gone=0.2)
    assert judge(with_slices(a=0.405, b=0.306, new=0.9), champion, gate).passed
    verdict = judge(with_slices(a=0.41, b=0.36), champion, gate)
    (refusal,) = verdict.refusals
    assert refusal.startswith("where site = b its log_loss is 1.200 times the champion's on 2,000 rows, and 1 more")
    assert refusal.endswith("the gate allows 1.02")
    assert judge(with_slices(a=0.41, b=0.36), champion, Gate()).passed


def test_slices_are_found_however_their_columns_are_written() -> None:
    def with_slices(loss: float) -> dict[str, Any]:
        return changed(slices={"dev,site": [{"slice": {"dev": "a", "site": "b"}, "rows": 2000, "log_loss": loss}]})

    for columns in ("dev,site", "dev, site", " dev ,site "):
        for gate in (
            Gate(slices=(columns,)),
            Gate.from_dict({"slices": columns}),
            Gate.from_dict({"slices": [columns]}),
        ):
            assert gate.slices == ("dev,site",)
            (refusal,) = judge(with_slices(0.6), with_slices(0.4), gate).refusals
            assert refusal.startswith("where dev = a, site = b its log_loss is 1.500 times the champion's")
    assert Gate(slices=("dev, site", "dev,site", "dev")).slices == ("dev,site", "dev")


def test_slices_that_nobody_looked_at_are_an_error_and_not_a_pass() -> None:
    gate, sliced = Gate(slices=("site",)), changed(slices={"site": []})
    for candidate, other in ((GOOD, sliced), (sliced, GOOD), (GOOD, None), (changed(slices={"dev": []}), sliced)):
        with pytest.raises(SettingsError, match="gate slices = 'site' is no kind of slice of an evaluation"):
            judge(candidate, other, gate)
    assert judge(sliced, sliced, gate).passed, "no slice has enough rows"


# --- a folder that another model was written into -------------------------------------------------------


def calibrated(url: str, min_count: int) -> None:
    line = Calibration("platt", (0.0,), (-0.4,), 0.7)
    dataclasses.replace(make_model(PLAIN, min_count=min_count), calibration=line).save(url)


def test_a_champion_that_was_overwritten_is_an_error_and_not_another_model(alias: str, models: list[str]) -> None:
    promote(alias, models[0], PASSED)
    make_model(PLAIN, min_count=3).save(models[0])
    with pytest.raises(ModelError, match=r"was overwritten \(parameters .*begin anew with another alias.*of its own"):
        model_of(alias)
    assert model_of(models[0]) == models[0], "who names the folder means what is there"
    make_model(PLAIN, min_count=1).save(models[0])
    assert model_of(alias) == models[0], "put back in its place"


def test_nobody_goes_back_to_a_folder_that_another_model_lies_in(alias: str, models: list[str]) -> None:
    """Every night is trained into the same folder: the champion before is gone, whatever the folder is called."""
    promote(alias, models[0], PASSED)
    make_model(PLAIN, min_count=2).save(models[0])
    promote(alias, models[0], PASSED)
    with pytest.raises(ModelError, match=r"version 1 of .* names the model at .* was overwritten"):
        rollback(alias)
    assert len(versions(alias)) == 2
    assert model_of(alias) == models[0]


def test_a_champion_that_was_overwritten_may_be_gone_back_from(alias: str, models: list[str]) -> None:
    promote(alias, models[0], PASSED)
    promote(alias, models[1], PASSED)
    make_model(PLAIN, min_count=3).save(models[1])
    assert rollback(alias).model == models[0] == model_of(alias)


def test_models_that_differ_in_calibration_alone_are_two(alias: str, models: list[str]) -> None:
    calibrated(models[1], min_count=1)
    first, second = promote(alias, models[0], PASSED), promote(alias, models[1], PASSED)
    assert first.parameters_sha256 == second.parameters_sha256
    rollback(alias, "too bold")
    with pytest.raises(GateError, match=r"withdrawn by version 3 \(too bold\)"):
        promote(alias, models[1], PASSED)
    assert promote(alias, models[0], PASSED) == versions(alias)[-1], "it was not withdrawn"
    calibrated(models[0], min_count=1)
    with pytest.raises(ModelError, match="the same parameters, with another calibration"):
        model_of(alias)


def test_versions_of_an_earlier_dfm_are_known_by_their_parameters(tmp_path: Path, models: list[str]) -> None:
    alias = str(tmp_path / "champion")
    promote(alias, models[0], PASSED)
    promote(alias, models[1], PASSED, order="2026-11-02")
    for path in Path(alias).iterdir():
        entry = json.loads(path.read_text())
        del entry["model_sha256"]
        path.write_text(json.dumps({**entry, "of_a_later_dfm": 1}))
    assert model_of(alias) == models[1]
    assert promote(alias, models[0], PASSED, order="2026-11-01").number == 1
    assert is_left_behind(alias, models[0], "2026-11-01").startswith("it was version 1, and the champion is version 2")
    assert is_left_behind(alias, models[1], "2026-11-02") == ""
    rollback(alias)
    with pytest.raises(GateError, match="withdrawn by version 3"):
        promote(alias, models[1], PASSED, order="2026-11-03")
    make_model(PLAIN, min_count=3).save(models[0])
    with pytest.raises(ModelError, match="was overwritten"):
        model_of(alias)
