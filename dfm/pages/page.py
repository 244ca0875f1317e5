"""One page of HTML about a run or a night: readable in any browser, light or dark, no script, no picture file."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.pages.numbers import number_form
from dfm.storage import files, ownership

REPORT = "report.html"
_FORM = ",.5f"
"""The form of floats up to a thousand, unless they are small."""
HEAD = "<!doctype html><html lang=en><meta charset=utf-8><meta name=generator content=dfm>"
"""The beginning of every page, by which dfm knows its own."""
_LIGHT = "--ink:#1b1f24;--paper:#fff;--faint:#667085;--line:#d8dde3;--one:#1f6fb2;--two:#c4571b;--soft:#1f6fb233"
_DARK = "--ink:#e4e7eb;--paper:#14171b;--faint:#98a2b3;--line:#343a43;--one:#6cb6ff;--two:#f0955b;--soft:#6cb6ff40"
_CHARTS = {
    ".charts": "display:flex;flex-wrap:wrap;gap:1rem 2rem;margin:.5rem 0 1.5rem",
    "figure": "margin:0;flex:1 1 20rem;max-width:28rem;min-width:0",
    "figcaption": "color:var(--faint);font-size:.85rem",
    "svg": "display:block;width:100%;height:auto;font:11px system-ui,sans-serif",
    "svg text": "fill:var(--faint)",
    "path": "fill:none;stroke-width:2",
    ".axis": "stroke:var(--line)",
    ".one": "stroke:var(--one)",
    ".two": "stroke:var(--two)",
    ".even": "stroke:var(--faint);stroke-dasharray:4 4",
    ".area": "fill:var(--soft)",
    ".dot": "fill:var(--two)",
    ".bar": "background:var(--one);height:.8em;border-radius:2px;min-width:1px",
    "td.b": "width:12rem;min-width:6rem",
    "td.h": "font-size:.7rem;padding:.1rem;min-width:0",
}
"""Rules by selector. Colours are variables, so that charts follow the browser's light or dark."""
_STYLE = (
    f":root{{color-scheme:light dark;{_LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:var(--ink);"
    "background:var(--paper)}"
    "table{display:block;overflow-x:auto;border-collapse:collapse;margin:.5rem 0 1.5rem}"
    "td,th{padding:.15rem .8rem .15rem 0;text-align:left;"
    "vertical-align:top;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}"
    "h1,td{overflow-wrap:anywhere}td{min-width:5rem}td.n{white-space:nowrap;min-width:0}"
    "td.w{overflow-wrap:normal}"
    "h2{margin:1.5rem 0 0;font-size:1.1rem}a{color:var(--one)}"
    "pre{overflow-x:auto;background:var(--soft);padding:.8rem;border-radius:4px;font-size:.85rem}"
    + "".join(f"{selector}{{{rules}}}" for selector, rules in _CHARTS.items())
    + "@media(max-width:30rem){td.b{width:5rem;min-width:4rem}}"
)
_PAGE = re.compile(r"(https?://|file:///|/)[^\s]*\.html")
_NAME = re.compile(r"\w+(\.\w+)*( = \S+)?")
"""A name of a column or a knob, which may have a value."""
_VIEWPORT = "<meta name=viewport content='width=device-width'>"
_POLICY = "<meta http-equiv=Content-Security-Policy content=\"default-src 'none';style-src 'unsafe-inline'\">"
"""Nothing may be fetched, whatever a text of the data says."""
_LONG = ("calibration_bins", "history", "columns")
"""Metrics that a table of single numbers leaves out."""


@dataclass(frozen=True)
class Drawing:
    """Text that is HTML already, made of `dfm.pages.charts` or `preformatted`."""

    html: str


@dataclass(frozen=True)
class HeatMap:
    """A number for every pair of names, float64[n, n], as a table of coloured cells."""

    names: Sequence[str]
    values: NDArray[np.float64]


def write_report(url: str, title: str, sections: Mapping[str, Any], options: files.Options = None) -> str:
    """Write a page, in place of an earlier one, and return its URL. SettingsError where another's file is there.
    sections: as `page_of` takes them.
    """
    return write_page(url, page_of(title, sections), options)


def page_of(title: str, sections: Mapping[str, Any]) -> str:
    """The text of a page. A section is a mapping (one row each), a list of them (one table), a HeatMap or a Drawing."""
    return (
        f"{HEAD}{_VIEWPORT}{_POLICY}<title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1>{sections_html(sections)}</html>"
    )


def write_page(url: str, page: str, options: files.Options = None) -> str:
    """Write the text of a page, in place of an earlier one, and return its URL. SettingsError as of `write_report`."""
    ownership.check_replaceable(url, ownership.begins_with(HEAD.encode()), options)
    files.remove_abandoned_of(url)
    files.write_bytes(url, page.encode(), options)
    return url


def sections_html(sections: Mapping[str, Any]) -> str:
    """Sections that have a content, each with its heading."""
    return "".join(f"<h2>{html.escape(name)}</h2>{_table(content)}" for name, content in sections.items() if content)


def fragment(title: str, sections: Mapping[str, Any]) -> str:
    """A part of somebody else's page, a notebook's: its rules are for what it holds alone."""
    rules = "".join(f".dfm {selector}{{{each}}}" for selector, each in _CHARTS.items())
    own = f"<style>.dfm{{{_LIGHT};--faint:#7b8698}}{rules}</style>"
    return f"{own}<div class=dfm><b>{html.escape(title)}</b>{sections_html(sections)}</div>"


def preformatted(text: str) -> Drawing:
    """Text as it stands."""
    return Drawing(f"<pre>{html.escape(text)}</pre>")


def read_report(url: str, options: files.Options = None) -> bytes:
    """A page that dfm wrote. FileNotFoundError where there is none, ValueError where it is somebody else's file."""
    files.size_of(url, options)
    if not ownership.begins_with(HEAD.encode())(url, options):
        raise ValueError("it is no report of dfm")
    return files.read_bytes(url, options)


_BLUE, _RED = (33, 102, 172), (178, 24, 43)


def _heat_map(content: HeatMap) -> str:
    """Rows and columns by name; blue is above 0, red below, and the strongest cell has the full colour."""
    most = float(np.abs(content.values).max(initial=0.0)) or 1.0
    head = "".join(f"<th style=writing-mode:vertical-rl>{html.escape(name)}" for name in content.names)
    body = "".join(
        f"<tr><th>{html.escape(name)}" + "".join(_shade(value, most) for value in row.tolist())
        for name, row in zip(content.names, content.values, strict=True)
    )
    return f"<table><tr><th>{head}{body}</table>"


def _shade(value: float, most: float) -> str:
    share = abs(value) / most
    red, green, blue = (round(255 + (part - 255) * share) for part in (_BLUE if value > 0 else _RED))
    ink, form = "#fff" if share > 0.6 else "#000", ".2f" if most >= 1 else number_form([most], ".3f")
    return f"<td class=h style=background:rgb({red},{green},{blue});color:{ink}>{value:{form}}"


def _table(content: Mapping[str, Any] | Sequence[Mapping[str, Any]] | HeatMap | Drawing) -> str:
    if isinstance(content, Drawing):
        return content.html
    if isinstance(content, HeatMap):
        return _heat_map(content)
    if isinstance(content, Mapping):
        rows = [(str(key), value) for key, value in content.items() if key not in _LONG and not _is_empty(value)]
        return "<table>" + "".join(f"<tr><th>{html.escape(k)}{_td(v)}" for k, v in rows) + "</table>"
    names = list(dict.fromkeys(name for row in content for name in row))
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}" for name in names)
    forms = [number_form((v for row in content if isinstance(v := row.get(name), float)), _FORM) for name in names]
    columns = list(zip(names, forms, strict=True))
    body = "".join("<tr>" + "".join(_td(row.get(name), form) for name, form in columns) for row in content)
    return f"<table><tr>{head}{body}</table>"


def _td(value: Any, form: str = "") -> str:
    """A cell; text is broken where a narrow page must, names after a dot alone, numbers are not. form: of floats, as
    their column has it; "": in their own.
    """
    if isinstance(value, int | float):
        return f"<td class=n>{_cell(value, form)}"
    if isinstance(value, list | tuple) and all(isinstance(name, str) and _NAME.fullmatch(name) for name in value):
        return "<td class=w>" + re.sub(r"\.(?=[a-z])", ".<wbr>", _cell(value))
    return f"<td>{_cell(value)}"


def _is_empty(value: Any) -> bool:
    return isinstance(value, str | Mapping | list | tuple) and not value


def _cell(value: Any, form: str = "") -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:{form or number_form([value], _FORM)}}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(
            f"{html.escape(str(key))} {_cell(inner)}" for key, inner in value.items() if not _is_empty(inner)
        )
    if isinstance(value, list | tuple):
        are_records = bool(value) and all(isinstance(item, Mapping) for item in value)
        return _table(value) if are_records else "<br>".join(_cell(item) for item in value)
    return _linked(str(value))


def _linked(text: str) -> str:
    """A text; the place of another page, where a browser can go there, is a link."""
    shown = html.escape(text)
    return f'<a href="{shown}">{shown}</a>' if _PAGE.fullmatch(text) else shown
