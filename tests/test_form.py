"""Functions stay small: most bodies fit 20 lines, most signatures 5 parameters, and most nest no deeper than 2.

What no function may be at all stands in pyproject.toml, as limits of ruff.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dfm

Function = ast.FunctionDef | ast.AsyncFunctionDef
PACKAGE = Path(dfm.__file__).parent
SHARE = 0.95
NESTING = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def functions_of(text: str) -> Iterator[Function]:
    """Every function of a module, methods and inner ones too."""
    yield from (node for node in ast.walk(ast.parse(text)) if isinstance(node, Function))


def body_lines(function: Function) -> int:
    """Lines from the first statement after the docstring to the last."""
    body = function.body[ast.get_docstring(function) is not None :]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def parameters(function: Function) -> int:
    """Parameters by name, without self and cls."""
    listed = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len(listed) - (bool(listed) and listed[0].arg in ("self", "cls"))


def depth(function: Function) -> int:
    """How many blocks the innermost statement stands in; `elif` is no block in a block, a function of its own none."""
    return max(map(_depth, function.body))


def _depth(statement: ast.stmt) -> int:
    if not isinstance(statement, NESTING):
        return 0
    inner = [node for node in ast.iter_child_nodes(statement) if isinstance(node, ast.stmt)]
    for part in ast.iter_child_nodes(statement):
        if isinstance(part, ast.ExceptHandler | ast.match_case):
            inner += part.body
    beside: list[ast.stmt] = []
    if isinstance(statement, ast.If) and len(statement.orelse) == 1 and isinstance(statement.orelse[0], ast.If):
        beside = statement.orelse
    within = [1 + _depth(node) for node in inner if node not in beside]
    return max([1, *within, *map(_depth, beside)])


FUNCTIONS = {
    f"{path.relative_to(PACKAGE)}:{function.lineno} {function.name}": function
    for path in sorted(PACKAGE.rglob("*.py"))
    for function in functions_of(path.read_text(encoding="utf-8"))
}


@pytest.mark.parametrize(("measure", "limit"), [(body_lines, 20), (parameters, 5), (depth, 2)])
def test_nineteen_of_twenty_functions_keep_to_the_limit(measure: Callable[[Function], int], limit: int) -> None:
    measured = {name: measure(function) for name, function in FUNCTIONS.items()}
    beyond = sorted((size, name) for name, size in measured.items() if size > limit)
    share = 1 - len(beyond) / len(measured)
    assert share >= SHARE, f"{share:.1%} keep to {measure.__name__} <= {limit}; the largest: {beyond[-20:]}"


EXAMPLE = '''
def example(self, a, /, b=1, *rest, c, **more):
    """Two lines:
    a docstring."""
    if a:
        pass
    elif b:
        for x in c:
            try:
                pass
            except ValueError:
                with x: pass
    def inner(): return 1

def simple(): return 2
'''


def test_functions_are_measured_as_people_would() -> None:
    example, inner, simple = sorted(functions_of(EXAMPLE), key=lambda function: function.name)
    assert [function.name for function in (example, inner, simple)] == ["example", "inner", "simple"]
    assert [body_lines(function) for function in (example, inner, simple)] == [9, 1, 1]
    assert [parameters(function) for function in (example, inner, simple)] == [3, 0, 0]
    assert [depth(function) for function in (example, inner, simple)] == [4, 0, 0]


def glossary() -> dict[str, str]:
    """Terms and meanings of the package's docstring."""
    text = (dfm.__doc__ or "").split("Glossary\n--------\n", 1)[1]
    terms: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        if line.startswith("    "):
            terms[[*terms][-1]] += line[3:]
        elif line:
            assert line not in terms, f"{line} is explained twice"
            terms[line] = ""
    return terms


def test_the_glossary_explains_each_word_once_in_order() -> None:
    terms = glossary()
    assert len(terms) > 40
    assert [*terms] == sorted(terms, key=str.lower)
    assert all(meaning.strip().endswith(".") for meaning in terms.values())


def docstrings() -> Iterator[tuple[str, str]]:
    """Every string that stands as a statement of its own: where, and its text."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node.value.value


def test_docstrings_begin_with_their_subject() -> None:
    """Nouns ("The rows of …", "Occurrences of …") say what a thing is; "What …", "How …", "Of …" leave it to guess."""
    begun = [where for where, text in docstrings() if text.split(" ", 1)[0] in ("What", "Of", "How", "Where")]
    assert begun == []
