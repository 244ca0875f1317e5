"""The version of dfm, since when it is here, and the name that pip knows it by, for modules that may not import dfm."""

import importlib.metadata
import time

BEGUN = time.time()
"""When this process began to read dfm's source files, in seconds since 1970."""
__version__ = "0.2.0"
DISTRIBUTION = "dask-fm"


def pip_install(*extras: str) -> str:
    """The command that adds extras to an installed dfm, wherever that came from: they stand in its metadata."""
    return f'pip install "{DISTRIBUTION}[{",".join(extras)}]"'


def installed() -> importlib.metadata.Distribution | None:
    """The distribution that dfm came in, by the command that it brings: whoever builds it may give it another name.

    None where dfm is a folder on the path.
    """
    commands = importlib.metadata.entry_points(group="console_scripts", name="dfm")
    return next((command.dist for command in commands if command.value == "dfm.cli:main"), None)
