"""The parameters that a run begins with: cut into blocks, untrained or moved towards an earlier model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from distributed import Future

from dfm.distributed.preparation_tasks import VocabularySummary
from dfm.distributed.prepare import Prepared
from dfm.distributed.run import Run
from dfm.distributed.tuning import row_scale, table_bytes
from dfm.kernels.tables import InitialValues, Layout
from dfm.model.warm_start import Start
from dfm.training import rounds
from dfm.training.automatic import higher_stdev, initial_stdev

_BLOCK_BYTES = 1 << 23
"""From this size on a block is worth its tasks: two workers then merge and send half of the table each."""
_WHOLE_PUSH_BYTES = 64 << 20
"""Two blocks of a table up to this size get whole pushes: half of one more than needed takes less than the tasks do."""
_MOST_BLOCKS = 8


def cut_table(run: Run, summary: VocabularySummary) -> tuple[list[int], bool]:
    """Rows at which the table is cut into blocks, and whether it pays to cut pushes as well.

    Whole pushes cost more bytes on the wire, parts a task each.
    """
    n_bytes = table_bytes(run, summary)
    n_blocks = max(1, min(-(-n_bytes // _BLOCK_BYTES), _MOST_BLOCKS, len(run.watch.addresses())))
    bounds = block_bounds(summary.n_features, summary.n_factored, run.work.layout, n_blocks)
    return bounds, n_blocks > 2 or (n_blocks == 2 and n_bytes > _WHOLE_PUSH_BYTES)


def block_bounds(n_features: int, n_factored: int, layout: Layout, n_blocks: int) -> list[int]:
    """Row bounds of blocks of about equal bytes, n_blocks + 1 ascending integers: leading rows own factors and weigh
    more.
    """
    light = sum(layout.width(block) for block in layout.touched if not block.is_vector)
    heavy = sum(layout.width(block) for block in layout.touched)
    total = heavy * n_factored + light * (n_features - n_factored)
    bounds = [0]
    for number in range(1, n_blocks):
        share = total * number // n_blocks
        in_heavy = share // heavy
        row = in_heavy if in_heavy < n_factored else n_factored + (share - heavy * n_factored) // light
        bounds.append(max(bounds[-1], row))
    return [*bounds, n_features]


def initial_blocks(run: Run, prepared: Prepared, bounds: Sequence[int]) -> list[Future]:
    """Futures of the blocks before the first round."""
    account, unit = prepared.account, prepared.reading.units.label
    initial = InitialValues(
        seed=run.job.model.seed,
        init_stdev=initial_stdev(run.job.model, row_scale(run, prepared)),
        higher_stdev=higher_stdev(row_scale(run, prepared)),
        initial_accumulator=run.job.training.initial_accumulator,
        bias=run.order.objective.link.start((account.labels.mean - unit.mean) / unit.scale),
    )
    blocks = [
        run.watch.submit(rounds.initial_block, prepared.vocabulary, run.work.layout, pair, initial)
        for pair in itertools.pairwise(bounds)
    ]
    return _warmed(run, prepared, blocks, run.warm) if run.warm else blocks


def _warmed(run: Run, prepared: Prepared, blocks: Sequence[Future], warm: Start) -> list[Future]:
    """The blocks moved towards the earlier model."""
    model = run.of_start(warm.load)
    part = (run.number, warm.n_models) if warm.n_models > 1 else (0, 1)
    more = prepared.vocabulary, model, warm.decay, prepared.reading, warm.growth, part
    return [run.watch.submit(rounds.warm_block, each, *more) for each in blocks]
