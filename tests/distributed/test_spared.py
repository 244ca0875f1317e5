"""Modules that a command and its workers do without: they import none, and who wants them has them all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

FRAMES = """
from dfm.distributed.cluster.spared import spare_pandas
spare_pandas()
import sys, pyarrow as pa
table = pa.table({"number": [1.5, None], "text": ["a", None]})
assert pa.scalar(2.5).as_py() == 2.5
assert "pandas" not in sys.modules
frame = table.to_pandas()
assert pa.array(frame["number"]).null_count == 1, "Arrow knows a Series again"
assert frame["number"].isna().tolist() == [False, True]
assert pa.Table.from_pandas(frame).to_pylist() == table.to_pylist()
"""
SERIES = """
from dfm.distributed.cluster.spared import know_pandas, spare_pandas
{first}
spare_pandas()
import pandas, pyarrow as pa
if not {first!r}:
    know_pandas()
assert pa.array(pandas.Series([1.5, float("nan")])).null_count == 1
"""
LINEAR_ALGEBRA = """
import sys
{first}
from dfm.distributed.cluster.spared import spare_f2py
spare_f2py()
assert ("numpy.f2py" in sys.modules) == bool({first!r})
import numba, numpy as np, scipy.linalg
assert numba.njit(lambda x: x @ x)(np.ones((2, 2))).tolist() == [[2, 2], [2, 2]]
assert scipy.linalg.norm(np.ones(4)) == 2
import numpy.f2py
assert numpy.f2py.get_include() and numpy.f2py is np.f2py
"""


def run(text: str) -> None:
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_arrow_makes_arrays_without_pandas_and_frames_for_who_wants_them() -> None:
    run(FRAMES)


@pytest.mark.parametrize("first", ["", "import pandas"], ids=["asked for", "there already"])
def test_who_gives_arrow_a_series_can_have_it_known(first: str) -> None:
    run(SERIES.format(first=first))


@pytest.mark.parametrize("first", ["", "import numpy.f2py"], ids=["spared", "there already"])
def test_numba_has_its_linear_algebra_and_numpy_its_fortran(first: str) -> None:
    run(LINEAR_ALGEBRA.format(first=first))
