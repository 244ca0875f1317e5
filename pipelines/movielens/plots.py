"""The plots of run.py: errors beside the published ones, and a map of movies by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from features import Catalogue, Ratings

N_NAMED = 40


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_errors(rows: list[tuple[str, float]], path: Path) -> None:
    """A dot per model, from the worst to the best."""
    plt = _pyplot()
    rows = sorted(rows, key=lambda row: -row[1])
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(rows) + 1.0), layout="constrained")
    for height, (name, value) in enumerate(rows):
        color = "C0" if name.startswith("dfm") else "0.45"
        axes.plot(value, height, "o", color=color)
        axes.annotate(f"{value:.3f}", (value, height), (8, 0), textcoords="offset points", va="center", color=color)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    for label, (name, _) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color("C0" if name.startswith("dfm") else "0.3")
    axes.set(xlabel="mean squared error on ua.test, stars² (smaller is better)")
    axes.margins(x=0.16)
    axes.grid(axis="x", color="0.9")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _save(plt, figure, path)


def plot_movies(machines: list[Any], train: Ratings, catalogue: Catalogue, path: Path) -> None:
    """The movies rated most, placed by the two main directions of their factors; the machines' maps are laid over one
    another (every machine has turned its factors another way, which pairs do not feel)."""
    plt = _pyplot()
    counts = np.bincount(train.movies, minlength=len(catalogue.titles))
    often = np.argsort(-counts, kind="stable")[:N_NAMED]
    gram = np.zeros((len(often), len(often)))
    for machine in machines:
        V = machine.factors_[len(catalogue.ages) + often].astype(float)
        V -= V.mean(axis=0)
        gram += V @ V.T / len(machines)
    values, vectors = np.linalg.eigh(gram)
    places = vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0.0))
    figure, axes = plt.subplots(figsize=(11, 7.5), layout="constrained")
    axes.scatter(places[:, 1], places[:, 0], s=counts[often] / 10, color="C0", alpha=0.6)
    _name(axes, places, [_short(catalogue.titles[movie]) for movie in often])
    axes.set(title=f"The {len(often)} movies rated most, by their factors: who likes one likes those near it")
    axes.set(xticks=[], yticks=[])
    axes.margins(0.09)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    _save(plt, figure, path)


def _short(title: str) -> str:
    """The title without its year, articles in front, long ones without what follows a colon or in brackets."""
    name = title.rsplit(" (", 1)[0]
    for article in ("The", "A"):
        if name.endswith(f", {article}"):
            name = f"{article} {name.removesuffix(f', {article}')}"
    if len(name) > 24:
        name = name.split(":")[0].split(" (")[0]
    return name


def _name(axes: Any, places: Any, names: list[str]) -> None:
    """A name to the right or left of every point, where it covers neither a point nor another name."""
    from matplotlib.transforms import Bbox

    axes.figure.canvas.draw()
    points = axes.transData.transform(places[:, ::-1])
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    for place, name in sorted(zip(places[:, ::-1].tolist(), names, strict=True), key=lambda pair: -pair[0][1]):
        for x, y in [(side, up) for up in (0, 8, -8, 14, -14, 20, -20) for side in (6, -6)]:
            options = {"textcoords": "offset points", "fontsize": 8, "va": "center", "ha": "left" if x > 0 else "right"}
            text = axes.annotate(name, place, (x, y), **options)
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            text = axes.annotate(name, place, (6, 0), textcoords="offset points", fontsize=8, va="center")
        taken.append(text.get_window_extent())


def _save(plt: Any, figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
