"""Preparation in figures: the events that tell which rows and features were found."""

from __future__ import annotations

import math

from dfm.data.accounting import RowAccount
from dfm.data.hashing import expected_collisions
from dfm.distributed.preparation_tasks import VocabularySummary
from dfm.distributed.prepare import Prepared
from dfm.distributed.run import Event, Run


def vocabulary_event(run: Run, prepared: Prepared, parameter_bytes: int) -> Event:
    """The event of the features and rows that were found."""
    summary, bits = prepared.summary, run.job.model.hash_bits
    return {
        "event": "vocabulary",
        "distinct_features": summary.n_distinct,
        "features": summary.n_features,
        "earlier_features": summary.n_earlier,
        "features_with_factors": summary.n_factored,
        "table_load": summary.n_distinct / 2**bits,
        "collided_share": collided_share(summary, bits),
        "parameter_bytes": parameter_bytes,
        "rows": trained_rows(prepared),
        "validation_rows": rows_event(prepared.validation_account),
    }


def collided_share(summary: VocabularySummary, hash_bits: int) -> float:
    """The share of distinct values that have to share a feature with another one."""
    return expected_collisions(_distinct_tokens(summary.n_distinct, hash_bits), hash_bits)


def trained_rows(prepared: Prepared) -> Event:
    """The account of the rows to train on in figures; with a loss of pairs, how many make pairs, and how many pairs an
    epoch has.
    """
    found, pairs = rows_event(prepared.account), prepared.pairs
    return found if pairs is None else {**found, "pairs": pairs.pairs, "in_pairs": pairs.rows}


def rows_event(account: RowAccount) -> Event:
    """The account of rows in figures."""
    return {
        "read": account.read,
        "trained": account.accepted,
        "rejected": account.rejected,
        "reasons": account.by_reason(),
        **({"sampled_out": account.sampled_out} if account.sampled_out else {}),
    }


def _distinct_tokens(n_indices: int, hash_bits: int) -> int:
    """About how many tokens gave this many occupied indices (balls in bins: occupied = B (1 - (1 - 1/B)^n))."""
    buckets = 2**hash_bits
    if n_indices >= buckets:
        return buckets * 20
    return round(math.log1p(-n_indices / buckets) / math.log1p(-1 / buckets))
