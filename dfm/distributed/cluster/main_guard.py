"""Whether worker processes can be started from here: each of them imports the script that starts it once more."""

from __future__ import annotations

import ast
import functools
import os
import sys
from pathlib import Path
from types import FrameType, ModuleType, TracebackType

from dfm.errors import ClusterError

_GUARD = 'if __name__ == "__main__":'


def check_main() -> None:
    """ClusterError where the running script would start workers again in every worker, or cannot be imported there."""
    main, frame = sys.modules.get("__main__"), _main_frame()
    path = getattr(main, "__file__", None)
    if main is None or path is None or frame is None or _is_never_imported(main):
        return
    if not os.path.isfile(path):
        raise _refusal(
            f"worker processes cannot import this script from {path}: save it as a file, with its work below "
            f"{_GUARD}, or pass client= of a Dask cluster"
        )
    if not _is_guarded(Path(path).read_bytes(), frame.f_lineno):
        raise _refusal(
            f"{path}, line {frame.f_lineno}: worker processes import this script, and would run it again; put its work "
            f"below {_GUARD}, or pass client= of a Dask cluster"
        )


def _refusal(message: str) -> ClusterError:
    """The error. Where nobody catches it, Python prints its sentence alone, as it names the line already."""
    error = ClusterError(message)
    if sys.excepthook is sys.__excepthook__:  # a hook of the script's own gets the error as any other
        sys.excepthook = functools.partial(_print_sentence, error)
    return error


def _print_sentence(
    refused: ClusterError, kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if error is refused:
        sys.stderr.write(f"{kind.__module__}.{kind.__qualname__}: {error}\n")
    else:
        sys.__excepthook__(kind, error, trace)


def _is_never_imported(main: ModuleType) -> bool:
    """The module of `python -m package`, which is known by its name."""
    spec = getattr(main, "__spec__", None)
    return spec is not None and spec.name.split(".")[-1] == "__main__"


def _main_frame() -> FrameType | None:
    """The frame in which the script runs, where this thread came from there."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__":
            return frame
        frame = frame.f_back
    return None


def _is_guarded(source: bytes, line: int) -> bool:
    """Whether the statement at a line of a script stands below a comparison of `__name__`."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):
        return True  # no Python that could be judged
    return any(
        isinstance(node, ast.If)
        and node.lineno <= line <= (node.end_lineno or node.lineno)
        and any(isinstance(name, ast.Name) and name.id == "__name__" for name in ast.walk(node.test))
        for node in statements
    )
