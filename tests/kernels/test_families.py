"""What a family promises beyond its formula: where it begins, what it learns, what it must know of rows."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from dfm.data.partition import SparsePartition, by_group
from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.cpu.backend import compile_kernels
from dfm.kernels.custom.functions import CustomLoss
from dfm.kernels.row_order import row_blocks
from dfm.kernels.tables import InitialValues, Layout, initialise
from tests import reference
from tests.support.kernel_cases import FIELDS, GROUPS, N_FIELDS, PAIRS, make_rows, make_table, strengths_of


def test_an_untrained_field_weighted_machine_is_a_factorization_machine() -> None:
    rows, scores = make_rows(), {}
    for family in ("fm", "fwfm"):
        spec = KernelSpec("logistic", "adagrad", 16, family=family)
        table = make_table(family=family)
        table.factors[...] /= 3  # the two add up in another order: what that changes goes with the size of the pairs
        scores[family] = compile_kernels(spec).scores(rows, table)
    np.testing.assert_allclose(scores["fwfm"], scores["fm"], rtol=1e-6, atol=1e-6)


def test_strengths_are_learnt_where_pairs_of_fields_matter_differently() -> None:
    """Only the pair of fields 0 and 1 decides; the others are noise."""
    rng = np.random.default_rng(5)
    features = np.stack([2 * field + rng.integers(0, 2, 4000) for field in range(3)], axis=1)
    labels = (features[:, 0] % 2 == features[:, 1] % 2).astype(np.float32)
    rows = reference.Rows(
        np.arange(0, 12001, 3), features.astype(np.uint32).reshape(-1), np.zeros(0, np.float32), labels,
        np.zeros(0, np.float32), 4000, np.repeat(np.arange(3), 2).astype(np.uint16),
    )  # fmt: skip
    spec = KernelSpec("logistic", "adagrad", 8, family="fwfm")
    table = initialise(spec.layout, np.arange(6, dtype=np.uint32), 6, InitialValues(1, 0.3), 3)
    kernels = compile_kernels(spec)
    for seed in range(5):
        kernels.run_round(rows, table, Step(0.1, 0.1, seed=seed))
    strengths = dict(zip(PAIRS[:6], strengths_of(table), strict=True))
    assert strengths[0, 1] > 1.1 > max(abs(strengths[0, 2]), abs(strengths[1, 2]))
    assert {strengths[field, field] for field in range(3)} == {1.0}, "no row has two of a field"


def rows_of_many_fields(n_fields: int, n_rows: int = 90) -> reference.Rows:
    """Rows that lack some of the fields and have several features of others; a third of them in any order."""
    rng, features, lengths = np.random.default_rng(8), [], []
    for row in range(n_rows):
        there = [field for field in range(n_fields) if rng.random() < 0.7]
        drawn = [4 * field + rng.permutation(4)[: rng.choice([1, 1, 1, 3])] for field in there]
        own = np.concatenate([np.zeros(0, np.int64), *drawn])
        features.append(rng.permutation(own) if row % 3 == 0 else own)
        lengths.append(len(own))
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n_values = int(indptr[-1] - indptr[n_rows // 2])
    return reference.Rows(
        indptr, np.concatenate(features).astype(np.uint32), rng.normal(size=n_values).astype(np.float32),
        (rng.random(n_rows) < 0.4).astype(np.float32), np.zeros(0, np.float32), n_rows // 2,
        np.repeat(np.arange(n_fields), 4).astype(np.uint16),
    )  # fmt: skip


@pytest.mark.parametrize("n_fields", [2, 7, 21])
def test_strengths_of_many_fields_with_lists_and_gaps_agree_with_the_definition(n_fields: int) -> None:
    rows, spec = rows_of_many_fields(n_fields), KernelSpec("logistic", "adagrad", 8, family="fwfm")
    n_features, pairs = 4 * n_fields, list(itertools.combinations_with_replacement(range(n_fields), 2))
    ids, n_factored = np.arange(n_features, dtype=np.uint32), n_features - 3
    table = initialise(spec.layout, ids, n_factored, InitialValues(7, 0.3), n_fields)
    rng = np.random.default_rng(2)
    table.values(spec.layout.block("strengths"))[...] = rng.normal(1.0, 0.5, len(pairs))
    in_order = sorted(pairs, key=lambda pair: (pair[1], pair[0]))
    weights = table.linear_weights.astype(float), table.factor_weights.astype(float)
    machine = reference.Machine(float(table.bias_value), *weights, fields=rows.fields)
    machine.strengths = dict(zip(in_order, strengths_of(table), strict=True))
    kernels = compile_kernels(spec)
    expected = [machine.score(rows.entries(row)) for row in range(len(rows.labels))]
    np.testing.assert_allclose(kernels.scores(rows, table), expected, rtol=1e-4, atol=1e-5)
    for seed in range(3):
        order = [
            row for first, last in row_blocks(len(rows.labels), rows.n_implicit, seed) for row in range(first, last)
        ]
        kernels.run_round(rows, table, Step(0.05, 0.02, seed=seed))
        reference.train(machine, rows, order, reference.Rule(learning_rate=0.05, factor_learning_rate=0.02), seed)
    np.testing.assert_allclose(
        strengths_of(table), [machine.strengths[pair] for pair in in_order], rtol=2e-4, atol=1e-5
    )
    np.testing.assert_allclose(table.factor_weights, machine.factors, rtol=2e-4, atol=1e-5)


def logistic_loss(score: float, y: float) -> float:
    """The logarithmic loss, as a user would write it."""
    return math.log1p(math.exp(-score)) if y > 0.5 else math.log1p(math.exp(score))


@pytest.mark.parametrize("family", ["fwfm", "ffm"])
def test_a_loss_of_one_s_own_trains_as_the_built_in_one(family: str) -> None:
    rows, tables = make_rows(60), {}
    for name, loss in {"own": CustomLoss.of(logistic_loss), "built-in": "logistic"}.items():
        kernels = compile_kernels(KernelSpec(loss, "adagrad", 4, family=family, groups=GROUPS.get(family, ())))
        tables[name] = make_table(n_factors=4, family=family)
        kernels.run_round(rows, tables[name], Step(0.02, 0.02, 0.01, 0.01))
    for block in tables["own"].layout.blocks:
        np.testing.assert_allclose(tables["own"][block.name], tables["built-in"][block.name], rtol=1e-4, atol=1e-6)


def test_one_group_is_a_factorization_machine() -> None:
    rows, tables, scores = make_rows(), {}, {}
    for family in ("fm", "ffm"):
        kernels = compile_kernels(KernelSpec("logistic", "adagrad", 8, family=family))
        tables[family] = make_table(n_factors=8, family=family, groups=())
        kernels.run_round(rows, tables[family], Step(0.02, 0.02, 0.01, 0.01))
        scores[family] = kernels.scores(rows, tables[family])
    np.testing.assert_allclose(scores["ffm"], scores["fm"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tables["ffm"].factors, tables["fm"].factors, rtol=1e-5, atol=1e-6)


def test_a_group_for_each_field_is_the_machine_of_the_paper() -> None:
    """Every pair of entries by the definition, of lists and of fields that have one entry."""
    spec = KernelSpec("logistic", "adagrad", 3, family="ffm", groups=tuple(range(N_FIELDS)))
    rows, table = make_rows(), make_table(n_factors=3, family="ffm", groups=spec.groups)
    vectors = table.factor_weights.astype(float).reshape(-1, N_FIELDS, 3)
    expected = []
    for row in range(len(rows.labels)):
        entries = [(j, x) for j, x in rows.entries(row)]
        owners = [(j, x) for j, x in entries if j < len(vectors)]
        total = float(table.bias_value) + sum(float(table.linear_weights[j]) * x for j, x in entries)
        for (i, x_i), (j, x_j) in itertools.combinations(owners, 2):
            total += float(vectors[i, FIELDS[j]] @ vectors[j, FIELDS[i]]) * x_i * x_j
        expected.append(total)
    np.testing.assert_allclose(compile_kernels(spec).scores(rows, table), expected, rtol=1e-5, atol=1e-5)


def test_entries_group_by_group_train_the_bytes_of_entries_in_any_order_of_groups() -> None:
    """A partition whose rows are in order says where groups end; else kernels put owners in order themselves."""
    groups = GROUPS["ffm"]
    mixed = partition_of(make_rows())
    ordered = by_group(mixed, groups)
    assert ordered.ends.size == 3 * mixed.n_rows
    assert ordered.indices.tobytes() != mixed.indices.tobytes()
    kernels = compile_kernels(KernelSpec("logistic", "adagrad", 4, family="ffm", groups=groups))
    unmarked = dataclasses.replace(ordered, ends=ordered.ends[:0])
    tables = {}
    for name, rows in {"ordered": ordered, "unmarked": unmarked, "mixed": mixed}.items():
        tables[name] = make_table(n_factors=4, family="ffm")
        kernels.run_round(rows, tables[name], Step(0.02, 0.02))
    assert tables["ordered"].factors.tobytes() == tables["unmarked"].factors.tobytes()
    np.testing.assert_allclose(tables["mixed"].factors, tables["ordered"].factors, rtol=1e-4, atol=1e-6)
    for ends in (ordered.ends[:-3], ordered.ends + 1, ordered.ends[::-1].copy()):
        with pytest.raises(ValueError, match="ends of groups"):
            kernels.scores(dataclasses.replace(ordered, ends=ends), tables["mixed"])


def partition_of(rows: reference.Rows) -> SparsePartition:
    features = np.arange(len(FIELDS), dtype=np.uint32)
    parts = rows.indptr, rows.indices, rows.values, rows.labels, rows.weights
    return SparsePartition(*parts, features, 45, rows.n_implicit, FIELDS)


def test_a_layout_refuses_groups_that_are_none() -> None:
    for family, groups in (("fm", (0, 1)), ("ffm", (0, 2)), ("ffm", (1, 1))):
        with pytest.raises(ValueError, match="groups"):
            Layout("sgd", 4, family, groups)
    with pytest.raises(ValueError, match="4096"):
        Layout("sgd", 256, "ffm", tuple(range(17)))


@pytest.mark.parametrize("family", ["fwfm", "ffm"])
def test_rows_that_do_not_know_fields_are_refused_where_they_are_needed(family: str) -> None:
    spec = KernelSpec("logistic", "adagrad", 4, family=family, groups=GROUPS.get(family, ()))
    kernels, table, rows = compile_kernels(spec), make_table(n_factors=4, family=family), make_rows()
    for fields in (FIELDS[:0], FIELDS[:-1], np.full_like(FIELDS, N_FIELDS)):
        with pytest.raises(ValueError, match="the field of each feature"):
            kernels.scores(dataclasses.replace(rows, fields=fields), table)
