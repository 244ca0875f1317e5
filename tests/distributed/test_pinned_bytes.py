"""Eight small jobs, every knob spelled out, give the bytes that they have always given.

A change of structure keeps every number here. Whoever changes what a job computes on purpose changes the number with
it, and says in CHANGELOG.md that models come out differently. The bytes are those of processors with fused
multiply-adds (see benchmarks/decisions/2026-11-21-kernel-portability.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from dfm import jobs
from tests.support.small_jobs import LAST_DAY

SCHEMA: dict[str, Any] = {
    "label": "label",
    "label_positive": [],
    "weight": "",
    "time": "day",
    "categorical": ["C*"],
    "numeric": ["I*"],
    "numeric_transform": "log2-bucket",
    "quantile_buckets": 32,
    "transforms": {},
    "lists": [],
    "list_weight": "sqrt",
    "crosses": [["C1", "C2"]],
}
MODEL: dict[str, Any] = {
    "task": "classification",
    "loss": "logistic",
    "loss_parameter": "auto",
    "n_factors": 4,
    "hash_bits": 16,
    "min_count": 2,
    "min_count_factors": 20,
    "init_stdev": 0.01,
    "seed": 7,
}
TRAINING: dict[str, Any] = {
    "n_replicas": 3,
    "n_epochs": 2,
    "averages_per_epoch": 2,
    "later_averages": 2,
    "rows_per_round": 0,
    "optimizer": "adagrad",
    "learning_rate": 0.045,
    "factor_rate_scale": 0.45,
    "tune": "none",
    "initial_accumulator": 1.0,
    "l2_linear": 0.005,
    "l2_factors": 0.005,
    "l1_linear": 0.0,
    "regularizer": "l2",
    "ftrl_beta": 1.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "schedule": "final-decay",
    "rate_scaling": "sqrt",
    "merge": "mean",
    "accumulators": "mean",
    "precision": 1.0,
    "wire_dtype": "float32",
    "outer_rate": 1.0,
    "outer_momentum": 0.0,
    "early_stopping": False,
    "patience": 1,
    "rollbacks": 0,
    "validate": "epoch",
    "threads_per_replica": 1,
    "warm_start": "",
    "warm_start_decay": 0.02,
    "backend": "numba",
    "deterministic": False,
    "factor_dtype": "float32",
}
PINNED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "adagrad": ({}, {}, "a9e6a702a19ed8e074bafb74891ecaf80e5bb8e9d6ef945e18a5c3ad500b2f11"),
    "adagrad-row": (
        {},
        {"optimizer": "adagrad-row"},
        "0293cb7f60073d2b268789840aefb096d772b52d58dd54065c87dab537c89778",
    ),
    "ftrl with L1": (
        {},
        {"optimizer": "ftrl", "l1_linear": 0.5, "learning_rate": 0.1},
        "9d9aed43eb955b29412f7f00349cc8ac7fb74392134d16ebf5ce8527e9bf34d3",
    ),
    "sgd": (
        {},
        {"optimizer": "sgd", "learning_rate": 0.01, "schedule": "constant"},
        "f90725fd4df333e639ec059cc9202d115fabbbb5322912e997404249fc4353a4",
    ),
    "adam": (
        {},
        {"optimizer": "adam", "learning_rate": 0.002, "rate_scaling": "none"},
        "4590b4ad3543a373b04fa0a0686fb93051c52d1e7ac7e0c20a4286ae28bcfd0f",
    ),
    "linear": ({"n_factors": 0}, {}, "9aafbb31330b77a4b69aefc47a21c1369e1483ea326fc9409fcb12c1b686b434"),
    "hinge": (
        {"loss": "hinge"},
        {"outer_momentum": 0.5, "learning_rate": 0.02},
        "e887bf5a544cc0fe01a0249d824c3f251b221d604f2e43480808be8bd9297ae5",
    ),
    "touched, 16 factors, bfloat16": (
        {"n_factors": 16},
        {"merge": "touched", "wire_dtype": "bfloat16", "averages_per_epoch": 4},
        "f8fb2f7b3e68a4a08a1aabd1f66f557e78ed24723963cf6de24d99632060d4f6",
    ),
}
"""Changes of MODEL and TRAINING, and the sha256 of the parameters."""


@pytest.mark.parametrize("name", PINNED)
def test_a_job_whose_knobs_are_all_spelled_out_keeps_its_bytes(
    name: str, log: Path, client: Client, tmp_path: Path
) -> None:
    model, training, expected = PINNED[name]
    tables = {
        "data": {"train": str(log), "validation_from": LAST_DAY},
        "schema": SCHEMA,
        "model": {**MODEL, **model},
        "training": {**TRAINING, **training},
        "cluster": {"cache": str(tmp_path / "cache"), "workers": 1},
        "output": {"directory": str(tmp_path / "out")},
    }
    assert jobs.train(tables, client).parameters_sha256 == expected
