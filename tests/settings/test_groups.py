"""Groups of fields: how many there are, who is in which, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from dfm.averaging.cost_model import job_times
from dfm.data.schema import resolve
from dfm.errors import SettingsError
from dfm.kernels.contract import KernelSpec
from dfm.kernels.tables import Layout
from dfm.model.objective import with_fields
from dfm.settings.groups import groups_of, names_of
from dfm.settings.job import load_job
from dfm.settings.tables import ModelSettings, Schema
from dfm.training.order import Order

FIELDS = ["site", "zone", "I1", "I2", "I3", "site&zone"]


def test_numbers_make_groups_of_equal_size_in_the_order_of_the_fields() -> None:
    assert groups_of(2, FIELDS) == (0, 0, 0, 1, 1, 1)
    assert groups_of(4, FIELDS) == groups_of("auto", FIELDS) == (0, 0, 1, 2, 2, 3)
    assert groups_of("auto", FIELDS[:3]) == groups_of(9, FIELDS[:3]) == (0, 1, 2)
    assert names_of("auto", (0, 1, 1)) == ["0", "1"]


def test_a_field_belongs_to_the_first_group_that_names_it() -> None:
    named = {"numbers": ["I*"], "place": ["site", "zone"], "others": ["*"]}
    assert groups_of(named, FIELDS) == (1, 1, 0, 0, 0, 2)
    assert names_of(named, groups_of(named, FIELDS)) == [*named]


def test_fields_without_a_group_and_groups_without_a_field_are_refused() -> None:
    with pytest.raises(SettingsError, match=r'no group for I1, I2, I3, site&zone; .*others = \["\*"\]'):
        groups_of({"place": ["site", "zone"]}, FIELDS)
    with pytest.raises(SettingsError, match=r"model.groups.item = .* has no field that no group before it has"):
        groups_of({"all": ["*"], "item": ["I1"]}, FIELDS)


def test_groups_are_for_families_that_have_some() -> None:
    with pytest.raises(SettingsError, match=r'groups = 3 needs model.family = ffm; .* family is "fm"'):
        ModelSettings(groups=3)
    spec = KernelSpec("logistic", "adagrad", 256)
    assert with_fields(spec, "auto", FIELDS) == spec
    aware = KernelSpec("logistic", "adagrad", 256, family="ffm")
    assert with_fields(aware, 2, FIELDS).groups == (0, 0, 0, 1, 1, 1)
    with pytest.raises(SettingsError, match=r"17 groups, each with model.n_factors = 256; .* up to 4096"):
        with_fields(aware, 17, [str(number) for number in range(17)])


def test_a_job_with_one_field_is_told_what_to_change_in_it() -> None:
    tables = {"data": {"train": "log"}, "schema": {"label": "y", "categorical": ["site"]}, "model": {"family": "fwfm"}}
    order = Order.of(load_job({**tables, "output": {"directory": "out"}}))
    with pytest.raises(SettingsError, match=r'name another column in \[schema\], or choose model.family = "fm"$'):
        order.of_fields(resolve(Schema(label="y", categorical=("site",)), ["y", "site"]))


def test_a_family_has_a_number_of_factors_of_its_own_where_the_job_names_none() -> None:
    assert (ModelSettings().n_factors, ModelSettings(family="ffm").n_factors) == (16, 4)
    assert (ModelSettings(family="ffm", n_factors=16).n_factors, ModelSettings(n_factors="auto").n_factors) == (16, 16)
    groups = {"place": ["site"], "others": ["*"]}
    job = load_job({"model": {"family": "ffm", "groups": groups}})
    assert job.to_dict()["model"]["groups"] == groups
    assert load_job(job.to_dict()) == job
    assert load_job({"model": {"family": "ffm"}}, ["model.groups=3"]).fingerprint() != job.fingerprint()


def test_a_feature_takes_the_room_of_as_many_factors_in_a_factorization_machine() -> None:
    aware, plain = Layout("adagrad", 4, "ffm", groups_of(4, FIELDS)), Layout("adagrad", 16)
    assert aware.shapes(10, 5) == plain.shapes(10, 5)
    times = [job_times(plan_with(n_groups), 2, 1).first_epoch for n_groups in (2, 4, 6)]
    assert times == sorted(times)
    assert times[0] < times[2], "a round sends what a feature has"


def plan_with(n_groups: int) -> dict[str, Any]:
    model = {"n_factors": 16, "family": "ffm", "groups": n_groups, "order": "auto", "hash_bits": 18, "n_models": 1}
    return {
        "job": {"model": model, "training": {"optimizer": "adagrad"}},
        **{"columns": dict.fromkeys(FIELDS, ""), "rows": 10**6, "replicas": 4, "rows_per_replica": 250_000},
        **{"rounds_per_epoch": 8, "later_rounds_per_epoch": 2, "epochs": 5},
    }


def test_an_order_more_takes_the_room_and_time_of_a_vector_more() -> None:
    assert Layout("adagrad", 16, "hofm").shapes(10, 5) == Layout("adagrad", 32).shapes(10, 5)
    third, plain = plan_with(4), plan_with(4)
    third["job"]["model"] |= {"family": "hofm", "order": 3}
    plain["job"]["model"] |= {"family": "fm", "n_factors": 32}
    assert job_times(third, 2, 1) == job_times(plain, 2, 1)


def test_several_models_take_the_time_of_as_many() -> None:
    one, four = plan_with(4), plan_with(4)
    four["job"]["model"]["n_models"] = 4
    assert job_times(four, 2, 1).later_epoch == pytest.approx(4 * job_times(one, 2, 1).later_epoch)
    assert job_times(four, 2, 1).preparation == job_times(one, 2, 1).preparation
