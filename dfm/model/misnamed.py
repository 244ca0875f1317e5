"""Advice for a place without a model, by what lies there instead: the folder above it, an alias, data."""

from __future__ import annotations

import re

from dfm.data.discovery import SUFFIXES
from dfm.storage import files

_VERSION = re.compile(r"v\d{6,}\.json")
"""The file of an alias (`dfm.workflow.registry`)."""
_PARTITION = re.compile(r"[^=]+=.*")


def remedy(url: str, manifest: str, options: files.Options = None) -> str:
    """The way on for who named a place without the file `manifest`, by what lies there instead."""
    model = files.join(url, "model")
    if files.exists(files.join(model, manifest), options):
        return f"that is the output of a run; its model is {model}"
    names = files.names_in(url, options)
    versions = [name for name in names if _VERSION.fullmatch(name)]
    if versions:
        latest = max(versions, key=lambda name: int(name[1:-5]))
        return f"that is an alias; {latest} in it names the model that is its champion"
    if _is_data([url, *names], files.folders_in(url, options)):
        return (
            "that is data; `dfm train JOB.toml --dry-run` shows its rows and columns, and "
            "`dfm inspect MODEL --tokens-from DATA` what a model learnt of its values"
        )
    return f"there is no {manifest}; name the folder that `dfm train` published"


def _is_data(names: list[str], folders: list[str]) -> bool:
    return any(name.lower().endswith(SUFFIXES) for name in names) or any(map(_PARTITION.fullmatch, folders))
