"""The site as it was built: it needs nothing from elsewhere, leads nowhere in vain, and shows what its notebooks did.

`make docs` builds it and runs these, with DFM_SITE set; elsewhere, where it may have been built of an older state, they
are skipped.
"""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support.site import BUILT, DOCS, PAGES, ROOT, blocks, name_of

pytestmark = pytest.mark.skipif("DFM_SITE" not in os.environ, reason="run by `make docs`")
HTML = sorted(BUILT.rglob("*.html"))
NOTEBOOKS = [page for page in PAGES if page.read_text(encoding="utf-8").startswith("---\nfile_format")]
LOADED = {
    "script": "src",
    "img": "src",
    "source": "src",
    "iframe": "src",
    "video": "src",
    "audio": "src",
    "link": "href",
}
"""What a browser fetches by itself, by tag."""


class Page(HTMLParser):
    """What a page loads, where it links to, and the ids of its parts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.classes: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.classes |= set(found.get("class", "").split())
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag in LOADED and LOADED[tag] in found:
            self.loads.append(found[LOADED[tag]])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    return {path: Page(path) for path in HTML}


def test_every_page_is_built() -> None:
    assert {path.relative_to(DOCS).with_suffix(".html") for path in PAGES} <= {path.relative_to(BUILT) for path in HTML}


def test_no_page_loads_anything_from_elsewhere(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for target in page.loads:
            assert not re.match(r"(?:\w+:)?//", target), f"{path.name} loads {target}"
            assert target.startswith(("data:", "#")) or (path.parent / target.split("?")[0].split("#")[0]).exists(), (
                target
            )
    for path in BUILT.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", path.read_text(encoding="utf-8")), path


def test_no_link_within_the_site_leads_nowhere(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        if path.name in ("search.html", "genindex.html", "py-modindex.html"):
            continue
        for link in page.links:
            if re.match(r"\w+:", link):
                continue
            target, _, part = link.partition("#")
            there = (path.parent / unquote(target)).resolve() if target else path
            assert there.exists(), f"{path.name}: {link}"
            if part and there in pages:
                assert unquote(part) in pages[there].ids, f"{path.name}: {link}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.read_text().startswith("---\nfile_format")], ids=name_of
)
def test_a_notebook_shows_what_it_did(page: Path) -> None:
    html = (BUILT / page.relative_to(DOCS)).with_suffix(".html").read_text(encoding="utf-8")
    cells = [block for block in blocks(page) if block.kind.startswith("{code-cell}")]
    assert html.count('class="cell_output') >= 1
    assert len(re.findall(r'class="cell[ "]', html)) >= len(cells)
    assert "Traceback (most recent call last)" not in html


def test_notebooks_have_no_clock_in_what_they_print() -> None:
    assert "[…]" in (BUILT / "tutorials" / "first-model.html").read_text(encoding="utf-8")
    for page in NOTEBOOKS:
        text = (BUILT / page.relative_to(DOCS)).with_suffix(".html").read_text(encoding="utf-8")
        assert not re.search(r"\d (?:rows|workers) +\d:\d\d:\d\d", text), f"{page.name}: a progress bar"
        assert not re.search(r"\d,\d{3} +\d+\.\d\d +\d+\.\d\d\n", text), f"{page.name}: rows a second of an epoch"


def test_no_page_shows_where_it_was_built() -> None:
    for path in HTML:
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) not in text, path
        assert not re.search(r"/tmp\w{8}/", text), path


def test_figures_take_the_colours_of_the_page() -> None:
    drawn = [path for path in HTML if '<div class="figure"><svg' in path.read_text(encoding="utf-8")]
    assert len(drawn) >= 5
    for path in drawn:
        text = path.read_text(encoding="utf-8")
        assert "currentColor" in text
        assert "#010203" not in text


def test_formulas_need_no_script() -> None:
    text = (BUILT / "explanation" / "families.html").read_text(encoding="utf-8")
    assert text.count("<math ") > 5
    assert not re.search(r"<script[^>]*(?:mathjax|katex)", text, re.IGNORECASE)


def test_the_map_lies_beside_the_front_page() -> None:
    assert (BUILT / "llms.txt").read_bytes() == (DOCS / "llms.txt").read_bytes()
