"""The order of rows within groups (of a user, a query, a session): the mean of their AUCs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dfm.model.metrics import Tally


@dataclass(frozen=True)
class GroupSums:
    """Over groups with both classes Σ weight x AUC and Σ weight, how many those are, and how many others there are."""

    auc: float = 0.0
    weight: float = 0.0
    counted: int = 0
    others: int = 0

    def __add__(self, other: GroupSums) -> GroupSums:
        return GroupSums(
            self.auc + other.auc, self.weight + other.weight, self.counted + other.counted, self.others + other.others
        )

    def metrics(self) -> dict[str, Any]:
        """JSON-ready. group_auc: the mean AUC of a group, weighed by its rows (Zhu et al. 2017); None without any."""
        auc = self.auc / self.weight if self.weight else None
        return {"group_auc": auc, "groups": self.counted, "groups_of_one_class": self.others}


def group_sums(table: pa.Table) -> GroupSums:
    """Sums over groups whose rows are all there: group, score, label, weight.

    A group's AUC is exact: its pairs of a positive and a negative in the right order, half of those with equal scores.
    """
    if not table.num_rows:
        return GroupSums()
    ids = pc.rank(table.column("group"), tiebreaker="dense").to_numpy().astype(np.int64) - 1
    scores, labels, weights = (table.column(name).to_numpy() for name in ("score", "label", "weight"))
    order = np.lexsort((scores, ids))
    ids, scores, up = ids[order], scores[order], (weights * labels)[order]
    down = (weights * (1 - labels))[order]
    starts = np.flatnonzero(np.append(True, (ids[1:] != ids[:-1]) | (scores[1:] != scores[:-1])))
    ups, downs, of = np.add.reduceat(up, starts), np.add.reduceat(down, starts), ids[starts]
    n_groups = int(ids[-1]) + 1
    all_up, all_down = (np.bincount(of, each, n_groups) for each in (ups, downs))
    before = np.cumsum(downs) - downs
    below = before - before[np.searchsorted(of, np.arange(n_groups))][of]
    ordered = np.bincount(of, ups * (below + downs / 2), n_groups)
    both = (all_up > 0) & (all_down > 0)
    shares = (all_up + all_down)[both]
    aucs = ordered[both] / (all_up * all_down)[both]
    return GroupSums(float((shares * aucs).sum()), float(shares.sum()), int(both.sum()), int((~both).sum()))


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
