"""What an estimator consists of, and what a fit tells."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from dfm.errors import SettingsError
from dfm.kernels.tables import ParameterTable, allocate
from dfm.training.fitting import Event, LabelUnit, Progress

logger = logging.getLogger("dfm.estimators")
_SHOWN = ("train_loss", "train_rmse", "log_loss", "auc", "rmse", "mae")
"""Of an epoch's record, what `verbose` shows."""


@dataclass(frozen=True, eq=False)
class Output:
    """One factorization machine of an estimator: of the label, or of one class against the rest."""

    progress: Progress
    unit: LabelUnit

    def table(self) -> ParameterTable:
        """Its parameters without optimizer state, in the labels' own unit.

        A score s of the training becomes s * scale + mean, which pairs of factors take as sqrt(scale) each.
        """
        trained, scale = self.progress.table, self.unit.scale
        table = allocate(trained.layout.stateless, trained.n_features, trained.n_factored)
        table.bias[0] = float(trained.bias_value) * scale + self.unit.mean
        table.linear[:, 0] = trained.linear_weights * np.float32(scale)
        table.factors[:, : trained.layout.n_factors] = trained.factor_weights * np.float32(scale**0.5)
        return table


def unpacked(eval_set: Any) -> tuple[Any, Any, Any]:
    """X, y and weights of (X, y) or (X, y, sample_weight), or of a list with one such tuple."""
    if isinstance(eval_set, list) and len(eval_set) == 1:
        eval_set = eval_set[0]
    if not isinstance(eval_set, tuple) or len(eval_set) not in (2, 3):
        raise SettingsError("eval_set is not legal: expected (X, y) or (X, y, sample_weight)")
    X, y, sample_weight = (*eval_set, None)[:3]
    return X, y, sample_weight


def teller(number: int, n_outputs: int) -> Callable[[Event], None]:
    """What is logged of an epoch."""
    which = f" ({number + 1} of {n_outputs})" if n_outputs > 1 else ""

    def tell(event: Event) -> None:
        line = ", ".join(f"{key} {event[key]:.5f}" for key in _SHOWN if event.get(key) is not None)
        logger.info("epoch %d%s: %s", event["epoch"], which, line)

    return tell


@contextmanager
def shown(verbose: bool) -> Iterator[None]:
    """With verbose, the log of this fit goes to standard output, unless the program logs itself."""
    if not verbose or logger.isEnabledFor(logging.INFO):
        yield
        return
    handler, level = logging.StreamHandler(sys.stdout), logger.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
