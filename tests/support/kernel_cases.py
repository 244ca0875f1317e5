"""Kernels of every backend by name, the tables and rows that they are tested on, and what agreement means."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from dfm.errors import SettingsError
from dfm.kernels.contract import Kernels, KernelSpec, Step
from dfm.kernels.cpu import backend as numba_cpu
from dfm.kernels.gpu import backend as cupy_gpu
from dfm.kernels.gpu import device as cupy_device
from dfm.kernels.row_order import row_blocks
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise
from tests import reference
from tests.support.host_gpu import host_kernels

Case = tuple[str, str, str, int]
"""Family, loss, optimizer, number of factors."""
Scales = tuple[tuple[float, float], ...]
N_FEATURES, N_FACTORED, N_FIELDS = 60, 45, 5
FIELDS = np.random.default_rng(3).integers(0, N_FIELDS, N_FEATURES).astype(np.uint16)
GROUPS = {"ffm": (0, 1, 2, 0, 1)}
"""The group of each field, of families with groups."""
PAIRS = [(low, high) for high in range(N_FIELDS) for low in range(high + 1)]
PENALTIES = {"l2_linear": 0.02, "l2_factors": 0.05}
PARAMETERS = {"quantile": 0.8, "huber": 0.7}
"""Of losses that have one and are tested with another than its default."""
STEEP = ("poisson", "squared-hinge")
"""Losses whose gradients carry away who begins with scores of 10 and takes long steps."""
BACKENDS = ["numba", "host", "cupy"]
MARKS = {"cupy": [pytest.mark.gpu]}


def compiled(backend: str, spec: KernelSpec) -> Kernels:
    """The kernels of a backend by name."""
    if backend == "numba":
        return numba_cpu.compile_kernels(spec)
    if backend == "host":
        return host_kernels(spec)
    name, reason = cupy_device.availability()
    if not name:
        pytest.skip(reason)
    return cupy_gpu.compile_kernels(spec)


def spec_of(case: Case) -> KernelSpec:
    family, loss, optimizer, n_factors = case
    parameter, groups = PARAMETERS.get(loss), GROUPS.get(family, ())
    return KernelSpec(loss, optimizer, n_factors, loss_parameter=parameter, family=family, groups=groups)


def has(backend: str, case: Case) -> bool:
    """Whether a backend has the family, loss and optimizer of a case; Numba has all of them."""
    try:
        return backend == "numba" or bool(cupy_gpu.source_of(spec_of(case)))
    except SettingsError:
        return False


def on_backends(cases: Iterable[Case], slow: Iterable[str] = ()) -> pytest.MarkDecorator:
    """The cases on every backend that has them; they are slow on some."""
    listed = [
        pytest.param(backend, case, id="-".join(map(str, (backend, *case))),
                     marks=[*MARKS.get(backend, []), *([pytest.mark.slow] if backend in slow else [])])
        for backend, case in itertools.product(BACKENDS, cases)
        if has(backend, case)
    ]  # fmt: skip
    return pytest.mark.parametrize(("backend", "case"), listed)


def make_table(
    optimizer: str = "adagrad",
    n_factors: int = 16,
    n_factored: int = N_FACTORED,
    family: str = "fm",
    groups: tuple[int, ...] | None = None,
    order: int = 0,
) -> ParameterTable:
    ids = np.arange(N_FEATURES, dtype=np.uint32)
    stdev = 0.3 * min(1.0, (16 / max(n_factors, 1)) ** 0.5)  # scores of moderate size with any number of factors
    groups = GROUPS.get(family, ()) if groups is None else groups
    layout, initial = Layout(optimizer, n_factors, family, groups, order), InitialValues(seed=7, init_stdev=stdev)
    return initialise(layout, ids, n_factored, initial, N_FIELDS)


def make_rows(n_rows: int = 160, longest: int = 40, **changes: Any) -> reference.Rows:
    """Rows of which some have more entries than a warp has lanes; those after the first half store their values."""
    rows = reference.random_rows(n_rows, N_FEATURES, longest, n_implicit=(n_rows + 1) // 2, weighted=True)
    return dataclasses.replace(rows, **{"fields": FIELDS, **changes})


def as_machine(table: ParameterTable) -> reference.Machine:
    machine = reference.Machine(
        float(table.bias_value), table.linear_weights.astype(float), table.factor_weights.astype(float)
    )
    if table.layout.family == "fwfm":
        machine.fields, machine.strengths = FIELDS, dict(zip(PAIRS, strengths_of(table), strict=True))
    if table.layout.groups:
        machine.groups = [table.layout.groups[field] for field in FIELDS]
    if table.layout.order:
        machine.degrees, machine.is_network = table.layout.degrees, table.layout.family == "polynomial"
    return machine


def strengths_of(table: ParameterTable) -> list[float]:
    """One number per pair of fields, as PAIRS lists them."""
    return [float(number) for number in table.values(table.layout.block("strengths"))]


def assert_equal_parameters(table: ParameterTable, machine: reference.Machine) -> None:
    np.testing.assert_allclose(table.bias_value, machine.bias, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(table.linear_weights, machine.linear, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(table.factor_weights, machine.factors, rtol=1e-4, atol=2e-6)
    if machine.strengths:
        np.testing.assert_allclose(strengths_of(table), [machine.strengths[pair] for pair in PAIRS], rtol=1e-4)


def numbers_of(case: Case) -> tuple[tuple[float, float], dict[str, float]]:
    """Rates and penalties that keep scores in bounds, and reach whatever the optimizer has.

    Steps of SGD have the size of the gradient, those of RMSprop up to ten times that of the rate.
    """
    rates = {"sgd": (0.002, 0.001), "rmsprop": (0.01, 0.004)}.get(case[2], (0.05, 0.02))
    return rates, {**PENALTIES, "l1_linear": 0.3} if case[2] == "ftrl" else PENALTIES


def starts_lower(case: Case) -> bool:
    """Whether weights begin at half of what they are for others, lest scores grow until no two ways of adding agree."""
    return case[1] in STEEP or (case[1] == "squared" and case[2] in ("sgd", "rmsprop"))


def assert_rounds_agree(kernels: Kernels, case: Case, rows: reference.Rows, scales: Scales = ()) -> None:
    """Scores, then the losses and all parameters of two deterministic rounds, are those of the definition.

    scales: of the penalties of each field, where kernels read them.
    """
    (family, loss, optimizer, n_factors), n_rows = case, len(rows.labels)
    rates, penalties = numbers_of(case)
    parameter, by_feature = PARAMETERS.get(loss, 0.0), np.array(scales)[FIELDS] if scales else None
    rule = reference.Rule(loss, optimizer, *rates, **penalties, loss_parameter=parameter, l2_scales=by_feature)
    table = make_table(optimizer, n_factors, family=family)
    if starts_lower(case):
        table.linear[:, 0] /= 2
        table.factors[:, : table.layout.lanes] /= 2
    machine = as_machine(table)
    expected = [machine.score(rows.entries(row)) for row in range(n_rows)]
    np.testing.assert_allclose(kernels.scores(rows, table), expected, rtol=1e-5, atol=1e-5)
    for seed in range(2):
        order = [row for first, last in row_blocks(n_rows, rows.n_implicit, seed) for row in range(first, last)]
        assert sorted(order) == list(range(n_rows))
        step = Step(*rates, **penalties, seed=seed, deterministic=True, l2_scales=scales)
        tally = kernels.run_round(rows, table, step)
        loss_sum = reference.train(machine, rows, order, rule, seed)
        assert (tally.rows, tally.is_finite) == (n_rows, True)
        assert tally.weight == sum(rows.weight(row) for row in range(n_rows))
        np.testing.assert_allclose(tally.loss, loss_sum, rtol=2e-6)
        assert_equal_parameters(table, machine)
    assert not table.factors[:, table.layout.row_factors : table.layout.lanes].any(), "padding stays zero"
