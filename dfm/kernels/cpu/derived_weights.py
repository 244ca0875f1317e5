"""Weights that an optimizer makes of its state: made again wherever that state was changed from outside of a walk."""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from dfm.compilation import keep_on_disk
from dfm.kernels.contract import Rates, Step
from dfm.kernels.cpu.backend import sources
from dfm.kernels.optimizers import resolve_optimizer
from dfm.kernels.rates import rates_of, shared_rates_of
from dfm.kernels.tables import Floats, Layout


def refresh_rows(layout: Layout, step: Step, features: NDArray[np.uint32], start: int, linear: Floats) -> None:
    """Makes w of the state in rows features - start of `linear`, in place; most optimizers have nothing to redo."""
    if resolve_optimizer(layout.optimizer).derives_weights:
        _refresh(layout.optimizer)(features, start, rates_of(step, layout), linear)


def refresh_bias(layout: Layout, step: Step, bias: Floats) -> None:
    """Makes w0 of its state, float32[1, linear_width], in place; the bias has no penalty."""
    if resolve_optimizer(layout.optimizer).derives_weights:
        rates = shared_rates_of(step, layout, layout.block("bias"))
        _refresh(layout.optimizer)(np.zeros(1, np.uint32), 0, rates, bias)


@functools.cache
def _refresh(optimizer: str) -> Any:
    record = resolve_optimizer(optimizer)
    assert record.weight is not None
    weight_of, first = record.weight(), record.primary

    def refresh(features: NDArray[np.uint32], start: int, rates: Rates, linear: Floats) -> None:
        for position in range(features.size):
            row = np.intp(features[position]) - start
            linear[row, 0] = weight_of(linear[row, first], linear[row, first + 1], rates)

    function = numba.njit(nogil=True, error_model="numpy")(refresh)
    keep_on_disk(function, f"{sources()} {optimizer}")
    return function
