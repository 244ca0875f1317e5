"""The script that measures a GPU runs from end to end where there is none: on the stand-in, at tiny sizes."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from dfm.training.backends import BACKENDS
from tests.support.host_gpu import as_gpu_of_process

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu" / "bench_gpu.py"


def test_the_benchmark_prints_speeds_rounds_losses_and_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_gpu_of_process(monkeypatch)
    backends = dict(BACKENDS)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds folders
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_gpu", script)
    spec.loader.exec_module(script)
    sizes = script.Sizes(1200, 600, 1, (2,), (10,), ("adagrad-row",), 1, 2, 1 << 20)
    script.run(sizes, "a stand-in", 1e9)
    assert all(BACKENDS[name] is backend for name, backend in backends.items()), "as they were, for whoever comes next"
    printed = capsys.readouterr().out
    assert re.search(r"^\| GPU \| GPU \| [\d.]+ \| [\d.]+ \| [\d.]+ \| [\d.]+ M \|$", printed, re.M)
    assert re.search(r"^\| one core \| one core \| [\d.]+ ", printed, re.M)
    assert re.search(r"^\| 2 \| 10 \| [\d,]+ \| adagrad-row \| [\d.]+ M ", printed, re.M)
    losses = re.search(r"^\| adagrad-row \| 1 \| ([\d.]+) \| [\d.]+ \| [\d.]+ \| ([\d.]+) \|", printed, re.M)
    assert losses
    assert losses[1] == losses[2], "a deterministic walk learns what the CPU learns"
    assert re.search(r"^\| logits \| equal to 1e-05 \| \S+ \| yes \|$", printed, re.M)
