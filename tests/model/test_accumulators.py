"""Sums of squared slopes come back from one number a column: where they grew with the entries of features, exactly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dfm.data.vocabulary import Vocabulary
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise
from dfm.model.accumulators import REMEMBERED, Growth, Known

RNG = np.random.default_rng(4)
N_FEATURES, N_FACTORED, N_FIELDS = 40, 25, 3
IDS = np.arange(N_FEATURES, dtype=np.uint32)
COUNTS = np.sort(RNG.integers(1, 500, N_FEATURES))[::-1].astype(np.int64)
FIELDS = RNG.integers(0, N_FIELDS, N_FEATURES).astype(np.uint16)
VOCABULARY = Vocabulary(IDS, COUNTS, FIELDS, np.full(N_FIELDS, -1), N_FACTORED, 18)
ALL = Known(np.arange(N_FEATURES), COUNTS, FIELDS)
PER_ENTRY = np.array([0.25, 0.0625, 0.5])
START = 1.5


def fresh(optimizer: str, family: str = "fm") -> ParameterTable:
    layout = Layout(optimizer, 3, family)
    initial = InitialValues(seed=1, init_stdev=0.1, initial_accumulator=START)
    return initialise(layout, IDS, N_FACTORED, initial, N_FIELDS)


def grown(optimizer: str) -> ParameterTable:
    """A table whose accumulators grew in proportion to the entries of features."""
    table, growth = fresh(optimizer), PER_ENTRY[FIELDS] * COUNTS
    table.linear[:, 1] += growth
    table.bias[1] += 77
    if optimizer == "adagrad-row":
        table.linear[:N_FACTORED, 2] += 0.5 * growth[:N_FACTORED]
        table.bias[2] += 7
    else:
        lanes = table.layout.lanes
        table.factors[:, lanes : lanes + 3] += 0.5 * growth[:N_FACTORED, None]
    return table


@pytest.mark.parametrize("optimizer", ["adagrad", "adagrad-row"])
def test_what_grew_with_the_entries_comes_back(optimizer: str) -> None:
    before = grown(optimizer)
    growth = Growth.of([before], VOCABULARY, START, 1)
    assert growth is not None
    assert growth.by_field["linear"][0] == pytest.approx(PER_ENTRY, rel=1e-5)
    again, rows = fresh(optimizer), np.arange(N_FEATURES)
    growth.add(again, Known(rows, COUNTS, FIELDS), share=1.0)
    for name in ("bias", "linear", "factors"):
        np.testing.assert_allclose(again[name], before[name], rtol=1e-5)


def test_it_is_told_by_the_epoch() -> None:
    growth = Growth.of([grown("adagrad")], VOCABULARY, START, n_epochs=4)
    assert growth is not None
    assert growth.by_field["linear"][0] == pytest.approx(PER_ENTRY / 4, rel=1e-5)
    assert growth.shared["bias"] == pytest.approx([77 / 4], rel=1e-5)


def warm(optimizer: str, family: str = "fm") -> tuple[ParameterTable, Growth]:
    """A table that began with what features of an earlier model had made, some of them unknown to it; and that."""
    earlier, table = Growth.of([grown(optimizer)], VOCABULARY, START, 1), fresh(optimizer, family)
    assert earlier is not None
    known = Known(np.arange(3, N_FEATURES), 2 * COUNTS[3:], FIELDS[3:])
    earlier.add(table, known, REMEMBERED)
    return table, earlier.handed_on(table.layout, VOCABULARY, known, REMEMBERED)


def numbers_of(growth: Growth) -> np.ndarray:
    """All of it, one after the other."""
    by_field = [value for name in sorted(growth.by_field) for fields in growth.by_field[name] for value in fields]
    return np.array([*by_field, *(value for name in sorted(growth.shared) for value in growth.shared[name])])


@pytest.mark.parametrize("optimizer", ["adagrad", "adagrad-row"])
def test_what_is_handed_on_is_what_a_warm_table_begins_with(optimizer: str) -> None:
    table, begun = warm(optimizer)
    found = Growth.of([table], VOCABULARY, START, 1)
    assert found is not None
    assert numbers_of(begun).min() > 0
    np.testing.assert_allclose(numbers_of(begun), numbers_of(found), rtol=1e-5)


@pytest.mark.parametrize("n_epochs", [0.125, 0.5, 1, 3])
@pytest.mark.parametrize("optimizer", ["adagrad", "adagrad-row"])
def test_what_was_inherited_is_not_divided_by_the_epochs_of_a_night(optimizer: str, n_epochs: float) -> None:
    table, begun = warm(optimizer)
    for name, array in grown(optimizer).arrays.items():
        table[name][...] += np.float32(n_epochs) * (array - fresh(optimizer)[name])
    found = Growth.of([table], VOCABULARY, START, n_epochs, begun)
    an_epoch = Growth.of([grown(optimizer)], VOCABULARY, START, 1)
    assert found is not None
    assert an_epoch is not None
    np.testing.assert_allclose(numbers_of(found), numbers_of(begun) + numbers_of(an_epoch), rtol=1e-4)


def test_a_night_whose_start_is_its_best_hands_on_what_it_was_given() -> None:
    """Nothing was added, so nothing has to make room."""
    table, begun = warm("adagrad")
    found = Growth.of([table], VOCABULARY, START, 0.0, begun)
    assert found is not None
    np.testing.assert_allclose(REMEMBERED * numbers_of(found), numbers_of(begun), rtol=1e-5)


@pytest.mark.parametrize("n_epochs", [1 / 16, 1 / 12, 1 / 2, 1.0, 3.0])
def test_nights_of_any_length_come_to_the_accumulators_of_nights_of_an_epoch(n_epochs: float) -> None:
    """Where each night adds its share, G - G_0 comes to four times what an epoch adds."""
    growth = None
    for _ in range(60):
        table = fresh("adagrad")
        begun = None
        if growth is not None:
            growth.add(table, ALL, REMEMBERED)
            begun = growth.handed_on(table.layout, VOCABULARY, ALL, REMEMBERED)
        table.linear[:, 1] += np.float32(n_epochs) * (PER_ENTRY[FIELDS] * COUNTS).astype(np.float32)
        growth = Growth.of([table], VOCABULARY, START, n_epochs, begun)
        assert growth is not None
    ratio = np.array(growth.by_field["linear"][0]) / PER_ENTRY
    told = min(8 * n_epochs, 1.0)
    np.testing.assert_allclose(ratio, told / (1 - REMEMBERED**told), rtol=1e-3)
    assert (ratio > 3.4).all()


def test_a_rival_without_factors_hands_on_none_of_theirs() -> None:
    table, begun = warm("adagrad")
    vocabulary = dataclasses.replace(VOCABULARY, n_factored=0)
    linear = initialise(table.layout, IDS, 0, InitialValues(seed=1, initial_accumulator=START), N_FIELDS)
    found = Growth.of([linear], vocabulary, START, 1, begun)
    assert found is not None
    assert found.by_field["factors"] == [[0.0] * N_FIELDS]


def test_a_share_of_it_reaches_the_rows_that_are_named_and_no_others() -> None:
    growth = Growth.of([grown("adagrad")], VOCABULARY, START, 1)
    assert growth is not None
    table, rows = fresh("adagrad"), np.array([3, 30])
    growth.add(table, Known(rows, COUNTS[rows], FIELDS[rows]), share=0.5)
    expected = np.full(N_FEATURES, START)
    expected[rows] += 0.5 * PER_ENTRY[FIELDS[rows]] * COUNTS[rows]
    np.testing.assert_allclose(table.linear[:, 1], expected, rtol=1e-5)
    np.testing.assert_array_equal(table.linear[:, 0], 0)
    assert (table.factors[3, 4:7] > START).all()
    np.testing.assert_array_equal(np.delete(table.factors[:, 4:7], 3, axis=0), np.float32(START))


def test_the_cut_of_a_table_changes_nothing() -> None:
    whole = grown("adagrad")
    whole.linear[:, 1] *= RNG.random(N_FEATURES).astype(np.float32) + 1
    parts = [
        ParameterTable(
            whole.layout,
            {**whole.arrays, "linear": whole.linear[a:b], "factors": whole.factors[a : min(b, N_FACTORED)]},
        )
        for a, b in ((0, 7), (7, 24), (24, 40))
    ]
    assert Growth.of(parts, VOCABULARY, START, 1) == Growth.of([whole], VOCABULARY, START, 1)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop", "ftrl"])
def test_other_optimizers_have_nothing_to_hand_on(optimizer: str) -> None:
    assert Growth.of([fresh(optimizer)], VOCABULARY, START, 1) is None


@pytest.mark.parametrize("family", ["fwfm", "ffm", "hofm"])
def test_tables_of_all_families_tell_it_and_take_it(family: str) -> None:
    groups = {"groups": (0, 1, 0)} if family == "ffm" else {}
    layout = dataclasses.replace(Layout("adagrad", 3, family), **groups)
    table = initialise(layout, IDS, N_FACTORED, InitialValues(seed=1, initial_accumulator=START), N_FIELDS)
    growth = Growth.of([table], VOCABULARY, START, 1)
    assert growth is not None
    assert not any(value for each in growth.by_field.values() for values in each for value in values)
    more = dataclasses.replace(growth, shared={name: [1.0] for name in growth.shared})
    assert Growth.from_dict(more.to_dict()) == more
    before = table.copy()
    more.add(table, ALL, share=0.5)
    for block in layout.blocks:
        np.testing.assert_array_equal(table.values(block), before.values(block))
        assert (table[block.name].sum() > before[block.name].sum()) == block.is_shared
    assert Growth.from_dict(None) is None
    assert Growth.from_dict({**more.to_dict(), "of a later version": 1}) == more
    assert Growth.from_dict({"of another form": 1}) is None
