"""The command line as a test calls it: the fixture `run` of tests/cli is one of these."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]
"""Arguments in; exit code, standard output and standard error out."""
