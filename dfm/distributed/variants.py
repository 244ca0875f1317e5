"""The prepared rows of a run once more, with factors for other features: nothing is read or hashed again."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence

import numpy as np
from distributed import Future

from dfm.data.vocabulary import Vocabulary
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.preparation_tasks import with_factored
from dfm.distributed.prepare import Prepared


def with_least(watch: Watch, prepared: Prepared, least: int | None) -> Prepared:
    """The rows, in which features that occur `least` times own factors; None: none does."""
    vocabulary = watch.submit(refactored, prepared.vocabulary, least)
    summary = dataclasses.replace(prepared.summary, n_factored=watch.result(watch.submit(n_factored_of, vocabulary)))

    def changed(parts: Sequence[Future]) -> list[Future]:
        return [watch.submit(with_factored, part, summary.n_factored) for part in parts]

    return dataclasses.replace(
        prepared,
        vocabulary=vocabulary,
        origin=prepared,
        opened={},
        judged={},
        lock=threading.Lock(),
        summary=summary,
        replicas=changed(prepared.replicas),
        validation=changed(prepared.validation),
    )


def refactored(vocabulary: Vocabulary, least: int | None) -> Vocabulary:
    """The vocabulary with factors for the features that occur so often; they come first in it."""
    n_factored = 0 if least is None else int(np.count_nonzero(vocabulary.counts >= least))
    return dataclasses.replace(vocabulary, n_factored=n_factored)


def n_factored_of(vocabulary: Vocabulary) -> int:
    """Features with factors."""
    return vocabulary.n_factored
