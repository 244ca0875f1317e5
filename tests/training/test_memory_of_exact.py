"""The memory of a worker whose solver is exact: its share of the rows, and all draws."""

from __future__ import annotations

import pytest

from dfm.training.memory import GIB, worker_memory

PLAN = {
    "columns": dict.fromkeys(range(39), "category"),
    "rows": 40_000_000,
    "rows_per_replica": 5_000_000,
    "round_bytes_per_replica_at_most": 100 << 20,
    "parameter_bytes_at_most": 70 << 20,
}


def memory(solver: str, workers: int, draws: int = 32) -> float:
    """GiB of a worker."""
    job = {"training": {"solver": solver, "draws": draws}, "model": {"n_factors": 8}}
    return worker_memory({**PLAN, "job": job}, 1, workers) / GIB


def test_an_exact_solver_keeps_its_rows_and_its_draws() -> None:
    plain = worker_memory(PLAN, 1) / GIB
    assert memory("sgd", 4) == plain
    rows = 40_000_000 * (4 * 39 + 4 * 9) / GIB
    assert memory("als", 4) - plain == pytest.approx(1.25 * rows / 2, rel=0.1)
    assert memory("als", 8) < memory("als", 4)
    assert memory("mcmc", 4) - memory("als", 4) == pytest.approx(1.25 * 32 * 70 / 1024, abs=0.5)
    assert memory("mcmc", 4, draws=64) > memory("mcmc", 4)
