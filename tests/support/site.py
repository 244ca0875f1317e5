"""The pages of the site, deploy/docs, and the README: their blocks of code, and what is made when the site is built."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "deploy" / "docs"
README = ROOT / "README.md"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
BUILT = DOCS / "_build" / "html"


@dataclass(frozen=True)
class Block:
    """A block of code of a page. kind: the word after the fence, empty of an indented one; line: from 1."""

    kind: str
    text: str
    line: int


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    """The blocks of a page in order."""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    return tuple(
        Block(token.info.strip() if token.type == "fence" else "", token.content, (token.map or [0])[0] + 1)
        for token in tokens
        if token.type in ("fence", "code_block")
    )


def name_of(page: Path) -> str:
    """A page's path from the root of the repository."""
    return str(page.relative_to(ROOT))


@cache
def maker() -> ModuleType:
    """`deploy/docs/made.py`, which makes the pages that are generated."""
    found = importlib.util.spec_from_file_location("dfm_docs_made", DOCS / "made.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[module.__name__] = module
    found.loader.exec_module(module)
    return module


def made(name: str) -> str:
    """What the site shows where a page includes `_build/made/NAME.md`; some page has to."""
    included = [page for page in PAGES if f"_build/made/{name}.md\n" in page.read_text(encoding="utf-8")]
    assert included, f"no page of deploy/docs includes _build/made/{name}.md"
    return str(maker().PAGES[name]())
