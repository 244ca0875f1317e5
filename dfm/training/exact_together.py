"""An iteration of an exact solver by tasks that run at the same time: whoever walks rows asks the others directly.

The same steps as in `exact_rounds`, with the same functions, so that the bytes are the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dfm.averaging.contributions import fold
from dfm.solvers.columns import Replica
from dfm.solvers.sums import Sums
from dfm.solvers.visits import Visit, Visits
from dfm.training.exact_rounds import (
    Following,
    Last,
    Origin,
    Update,
    advance,
    begin_rows,
    draw_origin,
    end_rows,
    join_values,
    solve_visit,
    stands_at,
    whole,
)
from dfm.training.exact_work import ExactWork
from dfm.training.rounds import Block, ReplicaReport
from dfm.training.together import Exchange, Meeting, MemberLost

_LEAST_SHARED = 1024
"""Features of a visit, 1.5 ms of drawing at k = 8, that are worth sending new values of."""


@dataclass(frozen=True)
class Walked:
    """A member's share of an iteration: the reports of its replicas and, the first member, the parameters."""

    reports: list[ReplicaReport]
    block: Block | None


Groups = Sequence[Sequence[Replica]]
"""Replicas of a member; each group is a subtree of the tree of sums, and all groups of all members are of one size."""


def walk_together(
    work: ExactWork,
    meeting: Meeting,
    number: int,
    visits: Visits,
    block: Block | None,
    groups: Groups,
    _waited_for: Sequence[bool] = (),
) -> Walked | None:
    """The whole iteration of some replicas, as one member of a meeting. None where another member was lost.

    The last argument is waited for, and not looked at.
    """
    if block is None:
        return None
    try:
        with meeting.joined(number) as others:
            return _walk(work, others, number, visits, block, groups)
    except MemberLost:
        return None


def _walk(work: ExactWork, others: Exchange, number: int, visits: Visits, block: Block, groups: Groups) -> Walked:
    begun = [begin_rows(work, block, group) for group in groups]
    origin = draw_origin(work, block, _of_all(others.to_all(begun)))
    assert origin is not None
    last: Origin | Update = origin
    updates: list[list[Last]] = []
    own = [(replica, replica.state) for group in groups for replica in group]
    steps = [(visit, part) for visit in range(len(visits.visits)) for part in work.steps]
    for step, following in enumerate(steps):
        if not all(replica.state is state and stands_at(replica, work, step) for replica, state in own):
            raise MemberLost  # the same rows were walked for another task, and know of other values now
        sums = [fold([advance(last, following, each) for each in group], lambda a, b: a + b) for group in groups]
        visit = visits.visits[following[0]]
        n_owners = min(others.n_members, max(1, len(visit.features) // _LEAST_SHARED))
        known = work, visits, block, origin, following
        news = _owned(others, number, n_owners, visit, known, sums) if n_owners > 1 else _alone(others, known, sums)
        assert isinstance(news, Update)
        last = news
        if not number:
            updates.append([last])
    after = block if number else join_values(work, visits, block, origin, updates)
    reports = end_rows(work, len(steps), after, [replica for replica, _ in own])
    if reports is None:
        raise MemberLost
    return Walked(reports, None if number else after)


Known = tuple[ExactWork, Visits, Block, Any, Following]


def _of_all(given: Sequence[Sequence[Any]]) -> list[Any]:
    return [each for of_member in given for each in of_member]


def _alone(others: Exchange, known: Known, sums: Sequence[Sums]) -> Last:
    """Everybody solves for all features: faster than to send new values."""
    return solve_visit(*known, (0, 1), _of_all(others.to_all(sums)))


def _owned(others: Exchange, number: int, n_owners: int, visit: Visit, known: Known, sums: Sequence[Sums]) -> Last:
    """Each owner solves for its share and sends it to all."""
    bounds = [visit.share(owner, n_owners)[1] for owner in range(n_owners)] + [len(visit.features)]
    cuts = [[each.between(start, stop) for each in sums] for start, stop in itertools.pairwise(bounds)]
    given = others.to_each([*cuts, *[()] * (others.n_members - n_owners)])
    mine = solve_visit(*known, (number, n_owners), _of_all(given)) if number < n_owners else None
    return whole(others.to_all(mine)[:n_owners])


def reports_of(walked: Walked | None) -> list[ReplicaReport] | None:
    """Reports of the replicas of a member."""
    return None if walked is None else walked.reports


def block_of(walked: Sequence[Walked | None]) -> Block | None:
    """The parameters after an iteration that all members walked."""
    blocks = [each.block for each in walked if each is not None]
    return blocks[0] if len(blocks) == len(walked) else None
