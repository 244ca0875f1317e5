"""Blocks of parameters: how many rows there are, what they are called, and what every family has."""

from __future__ import annotations

import numpy as np
import pytest

from dfm.errors import SettingsError
from dfm.kernels.blocks import ROWS, Block
from dfm.kernels.families.registry import DEFAULT, FAMILIES, family_of
from dfm.kernels.optimizers import OPTIMIZERS
from dfm.kernels.tables import InitialValues, Layout, initialise


def test_rows_are_counted_by_what_they_belong_to() -> None:
    counted = {rows: Block("b", rows).n_rows(100, 30, 4) for rows in ROWS}
    assert counted == {"model": 1, "field": 4, "field pair": 10, "feature": 100, "frequent feature": 30}
    assert Block("b", "frequent feature", 0).n_rows(100, 30, 4) == 0
    for n_fields in (1, 2, 39, 1024):
        for rows in ("field", "field pair"):
            block = Block("b", rows)
            assert block.n_fields(block.n_rows(0, 0, n_fields)) == n_fields
    with pytest.raises(SettingsError, match="one row per 'row'"):
        Block("b", "row")
    with pytest.raises(SettingsError, match="3 numbers for each field"):
        Block("b", "field", 3)


def test_pairs_of_fields_stand_where_the_formula_says() -> None:
    fields = ["a", "b", "c", "d"]
    names = Block("b", "field pair").row_names(fields)
    for g in range(4):
        for f in range(g + 1):
            assert names[g * (g + 1) // 2 + f] == f"{fields[f]} x {fields[g]}"
    assert len(set(names)) == 10


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_family_begins_as_a_factorization_machine(family: str, optimizer: str) -> None:
    """Bias, linear weights and vectors come first, and hold the same numbers before training."""
    assert FAMILIES[0] == DEFAULT
    ids, initial = np.arange(8, dtype=np.uint32), InitialValues(3, 0.1, bias=0.25)
    first, table = (initialise(Layout(optimizer, 4, name), ids, 5, initial, 3) for name in (DEFAULT, family))
    names = [block.name for block in table.layout.blocks]
    assert names[:3] == ["bias", "linear", "factors"]
    for name in names[:2]:
        assert table[name].tobytes() == first[name].tobytes()
    assert table.factor_weights[:, :4].tobytes() == first.factor_weights.tobytes()
    assert table.layout.shapes(table.n_features, table.n_factored, table.n_fields) == {
        name: table[name].shape for name in names
    }
    for block in table.layout.own:
        assert block.is_shared
        assert (table.values(block) == block.start).all()
    assert family_of(family).name == family
