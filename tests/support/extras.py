"""Marks of tests that need a package which users may leave out; development has them all."""

from __future__ import annotations

import importlib.util

import pytest

needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="the extra `onnx` is not installed")
