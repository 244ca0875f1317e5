"""Tables fit the terminal: no number and no word is cut, whatever gives way."""

from __future__ import annotations

import pytest
from rich.console import Console

from dfm.cli.console import (
    drift_table,
    importance_table,
    metrics_table,
    pairs_table,
    summary_table,
    table_of,
    trials_table,
)

TOKEN = {"token": "hotel=東京", "index": 240861, "seen": 4500, "w": -0.0115, "factors": [0.0904 + k for k in range(16)]}
FIELD = {
    "field": "impression_id", "kind": "numeric, auto", "features": 1037, "with_factors": 151, "spread_of_wx": 0.0941,
    "mean_norm_of_V": 0.1562,
}  # fmt: skip
TRIAL = {
    "trial": 21, "rung": 3, "epochs": 13, "loss": 0.53068123,
    "settings": {
        "learning_rate": 0.696, "factor_rate_scale": 1.36, "l2_factors": 0.00677, "l2_linear": 0.874,
        "min_count_factors": 100, "n_factors": 16, "init_scale": 0.333,
    },
}  # fmt: skip


def shown(table: object, width: int) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    text = capture.get()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    return text


def has(text: str, *parts: str) -> bool:
    """Whether all of these are there, beyond the ends of lines."""
    flat = " ".join(text.split())
    return all(part in flat for part in parts)


def test_trials_come_by_their_losses_those_that_diverged_last() -> None:
    found = [
        {**TRIAL, "trial": number, "loss": loss} for number, loss in ((61, None), (72, -0.5), (83, 0.25), (94, 0.0))
    ]
    for metric in ("log_loss", "auc"):
        text = shown(trials_table(found, metric, 160), 160)
        assert sorted(("61", "72", "83", "94"), key=text.index) == ["72", "94", "83", "61"]


def test_trials_are_told_by_the_metric_that_compares_them() -> None:
    assert has(shown(trials_table([TRIAL], "log_loss", 160), 160), "log loss", "0.53068")
    by_auc = shown(trials_table([TRIAL], "group_auc", 160), 160)
    assert has(by_auc, "group auc", "0.46932")
    assert "0.53068" not in by_auc


def test_factors_are_left_out_where_they_would_be_a_column_of_single_numbers() -> None:
    narrow = shown(table_of([TOKEN], "tokens", 80), 80)
    assert has(narrow, "240861", "4,500", "factors: with --json, in a pipe or in a wider terminal")
    assert "0.0904" not in narrow
    wide = shown(table_of([TOKEN], "tokens", 200), 200)
    assert has(wide, "0.0904", "15.0904")
    assert "--json" not in wide


LONG = "days_since_the_last_order_of_the_household_" + "q" * 33


@pytest.mark.parametrize("width", [80, 160])
def test_names_of_columns_are_whole_beside_what_was_found_of_them(width: int) -> None:
    names = ["days_since_last_visit", "days_since_last_order", LONG]
    shares = {name: 0.1234 for name in ("missing", "rare", "unseen", "training_missing", "training_rare")}
    drifted = drift_table([{"column": name, "psi": 12.3456, **shares, "unseen": None} for name in names])
    rises = {"permuted": 0.12345, "permuted_error": 0.01234, "missing": 0.23456}
    found = {"loss": 0.4, "rows": 9, "columns": [{"column": name, **rises} for name in names]}
    pairs = pairs_table([{"first": names[0], "second": name, "strength": 0.5, "r": 0.25} for name in names[1:]])
    drift, importance, paired = (shown(table, width) for table in (drifted, importance_table(found), pairs))
    assert has(drift, f"{names[0]} ", f"{names[1]} ", "12.3456 0.1234 0.1234 -")
    assert has(importance, f"{names[0]} ", f"{names[1]} ", "0.12345 ± 0.01234", "0.23456")
    assert "0.250" in paired
    for text in (drift, importance, paired):
        assert text.count("q") == 33


def test_a_column_whose_values_nobody_tells_apart_is_shown_without_an_index() -> None:
    shares = {name: 0.1234 for name in ("missing", "rare", "unseen", "training_missing", "training_rare")}
    record = {"column": "price", "psi": None, **shares}
    assert has(shown(drift_table([record]), 80), "price", "- 0.1234 0.1234")
    assert drift_table([{**record, "training_missing": None, "training_rare": None}]) is None


@pytest.mark.parametrize("width", [80, 160])
def test_words_go_to_the_next_line_whole(width: int) -> None:
    text = shown(table_of([FIELD], "fields", width), width)
    assert has(text, "impression_id", "numeric,", "factors")


def test_the_loss_of_a_trial_is_whole_at_80_columns_and_its_units_are_told() -> None:
    for width in (80, 160):
        text = shown(trials_table([TRIAL], "log_loss", width), width)
        assert has(
            text, "0.53068", "0.00677", "learning rate, l2 linear and init scale: times what dfm finds by itself"
        )


def test_counts_look_like_counts() -> None:
    metrics = shown(metrics_table({"auc": 1.0, "weight": 2793.0, "rows": 2793, "pr_auc": None}), 80)
    assert has(metrics, "1.00000", "pr_auc │ - │")
    assert "None" not in metrics
    assert has(shown(summary_table({"validation_auc": None}, "results/model"), 80), "validation auc │ - │")
    assert "None" not in shown(table_of([{"field": "a", "spread": None}], "fields", 80), 80)
    assert metrics.count("2,793 ") == 2
    assert "2,793.50000" in shown(metrics_table({"weight": 2793.5}), 80)
    digest = "e1f0dc298ef0573b6f231dfc44f41a167d3c71dbc6c865b85dfd32f3e99b60e0"
    text = shown(summary_table({"features": 3706, "bias": 1.0, "parameters_sha256": digest}, "results/model"), 50)
    assert "3,706" in text
    assert digest in "".join(line.split("│")[2].strip() for line in text.splitlines() if line.count("│") == 3)
