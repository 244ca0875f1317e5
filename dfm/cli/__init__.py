"""The command `dfm`."""

from __future__ import annotations

from dfm.cli.app import cli, main

__all__ = ["cli", "main"]
