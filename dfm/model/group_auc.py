"""The order of rows within groups (of a user, a query, a session): their AUCs, how far up what was clicked stands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dfm.model.metrics import Tally

NDCG_AT = (5, 10)
"""Places from the top that NDCG looks at."""
_CLICKED = 0.5
"""The label from which on a row counts as clicked, where labels are shares."""
_NEGLIGIBLE = 1e-16
"""Chance of a place below which no further one matters."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupSums:
    """Over groups with both classes Σ weight x AUC and Σ weight, Σ NDCG at each of NDCG_AT and Σ reciprocal rank, how
    many those are, and how many others there are.
    """

    auc: float = 0.0
    weight: float = 0.0
    ndcg: tuple[float, ...] = (0.0,) * len(NDCG_AT)
    reciprocal_rank: float = 0.0
    counted: int = 0
    others: int = 0

    def __add__(self, other: GroupSums) -> GroupSums:
        return GroupSums(
            self.auc + other.auc,
            self.weight + other.weight,
            tuple(ours + theirs for ours, theirs in zip(self.ndcg, other.ndcg, strict=True)),
            self.reciprocal_rank + other.reciprocal_rank,
            self.counted + other.counted,
            self.others + other.others,
        )

    def metrics(self) -> dict[str, Any]:
        """JSON-ready; None without any group of both classes.

        group_auc: the mean AUC of a group, weighed by its rows (Zhu et al. 2017). ndcg_K and mrr: means over groups, in
        which rows of weight 0 do not stand and others stand once each.
        """
        means = [total / self.counted if self.counted else None for total in (*self.ndcg, self.reciprocal_rank)]
        names = [*(f"ndcg_{k}" for k in NDCG_AT), "mrr"]
        return {
            "group_auc": self.auc / self.weight if self.weight else None,
            **dict(zip(names, means, strict=True)),
            "groups": self.counted,
            "groups_of_one_class": self.others,
        }


def group_sums(table: pa.Table) -> GroupSums:
    """Sums over groups whose rows are all there: group, score, label, weight.

    A group's AUC is exact: its pairs of a positive and a negative in the right order, half of those with equal scores.
    So are NDCG and reciprocal rank: their expectations over all orders of the rows with equal scores.
    """
    if not table.num_rows:
        return GroupSums()
    ids = pc.rank(table.column("group"), tiebreaker="dense").to_numpy().astype(np.int64) - 1
    scores, labels, weights = (table.column(name).to_numpy() for name in ("score", "label", "weight"))
    n_groups = int(ids.max()) + 1
    all_up, all_down = (np.bincount(ids, each, n_groups) for each in (weights * labels, weights * (1 - labels)))
    both = (all_up > 0) & (all_down > 0)
    shares = (all_up + all_down)[both]
    aucs = _ordered(ids, scores, weights * labels, weights * (1 - labels))[both] / (all_up * all_down)[both]
    seen = both[ids] & (weights > 0)
    ndcg, rank = _from_the_top(ids[seen], scores[seen], labels[seen])
    sums = float((shares * aucs).sum()), float(shares.sum())
    return GroupSums(*sums, ndcg, rank, int(both.sum()), int((~both).sum()))


def _ordered(ids: NDArray[np.int64], scores: Floats, up: Floats, down: Floats) -> Floats:
    """Weight of each group's pairs in the right order, float64[n_groups]; half of those with equal scores."""
    order = np.lexsort((scores, ids))
    ids, scores, up, down = ids[order], scores[order], up[order], down[order]
    starts = _tied(ids, scores)
    ups, downs, of = np.add.reduceat(up, starts), np.add.reduceat(down, starts), ids[starts]
    before = np.cumsum(downs) - downs
    below = before - before[np.searchsorted(of, of)]
    return np.bincount(of, ups * (below + downs / 2), int(ids[-1]) + 1).astype(np.float64)


def _tied(ids: NDArray[np.int64], scores: Floats) -> NDArray[np.intp]:
    """The first of the rows of one group that have one score, each time; both arrays are in that order."""
    return np.flatnonzero(np.append(True, (ids[1:] != ids[:-1]) | (scores[1:] != scores[:-1])))


def _from_the_top(ids: NDArray[np.int64], scores: Floats, labels: Floats) -> tuple[tuple[float, ...], float]:
    """Σ over groups of NDCG at each of NDCG_AT, and of the reciprocal rank of the first clicked row.

    A row gains its label, over log2(1 + place) (Järvelin and Kekäläinen 2002).
    """
    if not len(ids):
        return GroupSums().ndcg, 0.0
    order, best = np.lexsort((-scores, ids)), np.lexsort((-labels, ids))
    ids, n_groups = ids[order], int(ids.max()) + 1
    starts = _tied(ids, scores[order])
    of, sizes = ids[starts], np.diff(np.append(starts, len(ids)))
    place = starts - starts[np.searchsorted(of, of)]
    gains = np.add.reduceat(labels[order], starts) / sizes
    own_place = np.arange(len(ids)) - np.searchsorted(ids, ids)
    ndcg = []
    for k in NDCG_AT:
        found = np.bincount(of, gains * _discounts(k, place, place + sizes), n_groups)
        ideal = np.bincount(ids, labels[best] * _discounts(k, own_place, own_place + 1), n_groups)
        ndcg.append(float((found[ideal > 0] / ideal[ideal > 0]).sum()))
    clicked = np.add.reduceat((labels[order] >= _CLICKED).astype(np.int64), starts)
    first = np.flatnonzero(clicked)[np.unique(of[clicked > 0], return_index=True)[1]]
    return tuple(ndcg), _reciprocal_ranks(place[first], sizes[first], clicked[first])


def _discounts(k: int, first: NDArray[Any], last: NDArray[Any]) -> Floats:
    """Σ 1 / log2(1 + place) over the places (from 1) first + 1 to last, up to k."""
    until = np.append(0.0, np.cumsum(1 / np.log2(np.arange(2, k + 2))))
    found: Floats = until[np.minimum(last, k)] - until[np.minimum(first, k)]
    return found


def _reciprocal_ranks(before: NDArray[Any], sizes: NDArray[Any], clicked: NDArray[Any]) -> float:
    """Σ of the expected 1 / rank of the first clicked row, where that is among `sizes` rows with one score of which so
    many are clicked, behind `before` others.
    """
    total, chance, ahead = 0.0, np.ones(len(sizes)), 0  # that none of the places ahead has a clicked row
    while len(chance):
        hit = clicked / (sizes - ahead)
        total += float((chance * hit / (before + ahead + 1)).sum())
        chance = chance * (1 - hit)
        left, ahead = chance > _NEGLIGIBLE, ahead + 1
        before, sizes, clicked, chance = before[left], sizes[left], clicked[left], chance[left]
    return total


def rows_by_group(groups: Any, scores: Any, labels: Any, weights: Any) -> pa.Table:
    """Rows as `group_sums` takes them; group: text or uint64, the others float64, all [n_rows]."""
    numbers = (pa.array(np.asarray(each, np.float64)) for each in (scores, labels, weights))
    return pa.table([pa.array(groups), *numbers], ["group", "score", "label", "weight"])


@dataclass(frozen=True, eq=False, slots=True)
class GroupedTally:
    """Metrics of rows, and the rows by group (see `rows_by_group`) until all of their groups are there."""

    loss_name: ClassVar[str] = "log_loss"

    of_task: Tally
    rows: pa.Table
    sums: GroupSums = GroupSums()

    def __add__(self, other: GroupedTally) -> GroupedTally:
        rows = pa.concat_tables([self.rows, other.rows])
        return GroupedTally(self.of_task + other.of_task, rows, self.sums + other.sums)

    def settled(self) -> GroupedTally:
        """The same without the rows, whose groups are complete."""
        return replace(self, rows=self.rows.schema.empty_table(), sums=self.sums + group_sums(self.rows))

    def metrics(self) -> dict[str, Any]:
        """JSON-ready: those of the task, then those of groups."""
        return {**self.of_task.metrics(), **self.settled().sums.metrics()}
