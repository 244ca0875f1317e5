"""Parts of an estimator, and what a fit tells."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dfm.data.units import LabelUnit
from dfm.errors import SettingsError
from dfm.kernels.contract import KernelSpec
from dfm.kernels.tables import ParameterTable
from dfm.model.objective import LossInfo
from dfm.pages.numbers import number_text
from dfm.solvers.posterior import Draws
from dfm.training.executor import Event
from dfm.training.fitting import Fit
from dfm.training.label_units import in_own_unit

logger = logging.getLogger("dfm.estimators")
_SHOWN = ("train_loss", "train_rmse", "log_loss", "group_auc", "auc", "rmse", "mae")
"""Keys of an epoch's record that `verbose` shows."""


@dataclass(frozen=True, eq=False)
class Output:
    """One factorization machine of an estimator: of the label, or of one class against the rest."""

    fit: Fit
    unit: LabelUnit

    def table(self) -> ParameterTable:
        """Its parameters without optimizer state, in the labels' own unit."""
        return in_own_unit(self.fit.table, self.unit)

    def draws(self) -> Draws | None:
        """Its draws in that unit; None where it has none."""
        return None if self.fit.draws is None else self.fit.draws.in_own_unit(self.unit)


@dataclass(frozen=True)
class AsFitted:
    """Parameters as they were at a fit, by which its scores and models are read, whatever `set_params` says meanwhile.

    spec: of kernels that score. settings: all of them by name, those that are no plain values as text.
    """

    loss: LossInfo
    spec: KernelSpec
    settings: Mapping[str, Any]


def unpacked(eval_set: Any) -> tuple[Any, Any, Any]:
    """X, y and weights of (X, y) or (X, y, sample_weight), or of a list with one such tuple."""
    if isinstance(eval_set, list) and len(eval_set) == 1:
        eval_set = eval_set[0]
    if not isinstance(eval_set, tuple) or len(eval_set) not in (2, 3):
        raise SettingsError("eval_set is not legal: expected (X, y) or (X, y, sample_weight)")
    X, y, sample_weight = (*eval_set, None)[:3]
    return X, y, sample_weight


def teller(number: int, n_outputs: int) -> Callable[[Event], None]:
    """The logger of epochs."""
    which = f" ({number + 1} of {n_outputs})" if n_outputs > 1 else ""

    def tell(event: Event) -> None:
        line = ", ".join(f"{key} {number_text(event[key])}" for key in _SHOWN if event.get(key) is not None)
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
