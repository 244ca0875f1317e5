"""Charts as SVG inside a page: lines in a frame, bars beside numbers. Texts are escaped, colours are the page's."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dfm.pages.page import Drawing

Points = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 10, 36
_BESIDE, _DIGIT = 18, 7
"""Room left of the axis: for its title, and for each letter of a label at most."""
_LARGE, _SMALL = 1e6, 1e-3
"""Labels that would all be smaller, or reach the larger one, count in a power of ten."""
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_CLASSES = ("one", "two", "even")
_LEAST = 1e-12


@dataclass(frozen=True)
class Frame:
    """The axes of a chart: their titles, and the ranges of what it shows. counts: whether x is of whole numbers."""

    x_title: str
    y_title: str
    x: tuple[float, float]
    y: tuple[float, float]
    counts: bool = False

    @cached_property
    def x_ticks(self) -> Ticks:
        """The numbers below the picture."""
        return Ticks.of(ticks(*self.x, least=float(self.counts)))

    @cached_property
    def y_ticks(self) -> Ticks:
        """The numbers beside the picture."""
        return Ticks.of(ticks(*self.y))

    @cached_property
    def left(self) -> int:
        """The place of the vertical axis: its labels have room beside it."""
        return max(_LEFT, _BESIDE + _DIGIT * max(map(len, self.y_ticks.labels), default=0))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of a point, in the units of the picture."""
        across = (x - self.x[0]) / max(self.x[1] - self.x[0], _LEAST)
        up = (y - self.y[0]) / max(self.y[1] - self.y[0], _LEAST)
        wide, high = _WIDTH - self.left - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return round(self.left + across * wide, 1), round(_TOP + (1 - up) * high, 1)


@dataclass(frozen=True)
class Ticks:
    """Numbers along an axis, their labels, and what these count in: " (in 10⁶)" of millions, "" of ones."""

    numbers: Sequence[float]
    labels: Sequence[str]
    unit: str

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Ticks:
        """Labels with as many decimals as tell numbers apart that lie a step of `ticks` from each other."""
        largest = max(map(abs, numbers), default=0.0)
        step = numbers[1] - numbers[0] if len(numbers) > 1 else largest / 100
        is_far = 0 < largest < _SMALL or largest >= _LARGE
        power = 3 * math.floor(math.log10(largest) / 3 + _LEAST) if is_far else 0
        decimals = max(0, power - math.floor(math.log10(step) + _LEAST)) if step > 0 else 0
        labels = [f"{number / 10.0**power:,.{decimals}f}" for number in numbers]
        return cls(numbers, labels, f" (in 10{str(power).translate(_RAISED)})" if power else "")


def ticks(low: float, high: float, most: int = 5, least: float = 0.0) -> list[float]:
    """Round numbers from low to high, at most so many and one more, and at least so far from each other."""
    span = high - low
    if not span > 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step = max(least, step * next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def spanned(numbers: Sequence[float]) -> tuple[float, float]:
    """The range of some numbers, with a little room where they are all the same."""
    low, high = min(numbers), max(numbers)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    return low - room, high + room


def lines(
    caption: str,
    frame: Frame,
    series: Mapping[str, Points],
    areas: Sequence[tuple[float, float, float]] = (),
    dots: Points = (),
) -> str:
    """A figure of lines by name, the last of which may be "even": the one that says nothing; with bars behind them.

    areas: bars from, to, of a height in parts of the frame's. dots: places on the lines that are marked.
    """
    parts = [_axes(frame), *(_area(frame, *area) for area in areas)]
    for (name, points), kind in zip(series.items(), _CLASSES, strict=False):
        parts.append(_line(frame, name, points, "even" if name == "even" else kind))
    parts += [f"<circle class=dot r=4 cx={x} cy={y}></circle>" for x, y in (frame.at(*point) for point in dots)]
    label = html.escape(f"{caption}: {frame.y_title} by {frame.x_title}", quote=True)
    picture = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role=img aria-label="{label}">{"".join(parts)}</svg>'
    return f"<figure>{picture}<figcaption>{html.escape(caption)}{_legend(series)}</figcaption></figure>"


def _legend(series: Mapping[str, Points]) -> str:
    names = [name for name in series if name != "even"]
    if len(names) < 2:
        return ""
    told = [
        f'<span style="color:var(--{kind})">{html.escape(n)}</span>' for n, kind in zip(names, _CLASSES, strict=False)
    ]
    return ": " + ", ".join(told)


def _axes(frame: Frame) -> str:
    left, bottom = frame.at(frame.x[0], frame.y[0])
    right, top = frame.at(frame.x[1], frame.y[1])
    parts = [f'<path class=axis d="M{left} {top}V{bottom}H{right}"></path>']
    for number, label in zip(frame.x_ticks.numbers, frame.x_ticks.labels, strict=True):
        x, _ = frame.at(number, frame.y[0])
        parts.append(f"<text x={x} y={bottom + 14} text-anchor=middle>{label}</text>")
    for number, label in zip(frame.y_ticks.numbers, frame.y_ticks.labels, strict=True):
        _, y = frame.at(frame.x[0], number)
        parts.append(f"<text x={left - 5} y={y + 4} text-anchor=end>{label}</text>")
    middle, title = (left + right) / 2, html.escape(frame.x_title + frame.x_ticks.unit)
    parts.append(f"<text x={middle} y={_HEIGHT - 5} text-anchor=middle>{title}</text>")
    height, title = (top + bottom) / 2, html.escape(frame.y_title + frame.y_ticks.unit)
    turned = f'transform="rotate(-90 11 {height})"'
    parts.append(f"<text x=11 y={height} text-anchor=middle {turned}>{title}</text>")
    return "".join(parts)


def _line(frame: Frame, name: str, points: Points, kind: str) -> str:
    places = [frame.at(*point) for point in points]
    if len(places) == 1:
        x, y = places[0]
        return f'<path class={kind} d="M{x - 4} {y}H{x + 4}"></path>'
    steps = "L".join(f"{x} {y}" for x, y in places)
    return f'<path class={kind} d="M{steps}"><title>{html.escape(name)}</title></path>' if places else ""


def _area(frame: Frame, start: float, stop: float, height: float) -> str:
    (left, bottom), (right, _) = frame.at(start, frame.y[0]), frame.at(stop, frame.y[0])
    top = frame.at(start, frame.y[0] + height * (frame.y[1] - frame.y[0]))[1]
    width = max(round(right - left - 0.5, 1), 0.5)
    return f"<rect class=area x={left} y={top} width={width} height={round(bottom - top, 1)}></rect>"


def side_by_side(figures: Sequence[str]) -> Drawing | None:
    """Figures in a row, below each other where the page is narrow; None without any."""
    return Drawing(f"<div class=charts>{''.join(figures)}</div>") if figures else None


def bars(head: Sequence[str], rows: Sequence[tuple[str, str, float]]) -> Drawing | None:
    """A table of names, texts and bars, the longest of which has the full width; None without rows."""
    if not rows:
        return None
    most = max((size for _, _, size in rows), default=0.0)
    titles = "".join(f"<th>{html.escape(title)}" for title in head)
    body = "".join(
        f"<tr><th>{html.escape(name)}<td class=n>{html.escape(text)}<td class=b>{_bar(size, most)}"
        for name, text, size in rows
    )
    return Drawing(f"<table><tr>{titles}<th>{body}</table>")


def _bar(size: float, most: float) -> str:
    share = max(size, 0.0) / most if most > 0 else 0.0
    return f'<div class=bar style="width:{share * 100:.1f}%"></div>' if share > 0 else ""
