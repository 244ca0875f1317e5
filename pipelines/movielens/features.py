"""MovieLens-100k as matrices: who rated which movie, and what else was known when the rating was given.

Nothing here looks at a rating that is to be predicted. In training rows, that includes the row's own rating: whatever
is summed over a user's ratings leaves it out, since it will be missing when the model predicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

DAY = 86_400.0
MOOD_SECONDS = (5.0, 300.0, DAY)
"""How fast a mood fades, in seconds: within a page of movies, a visit, a day."""


@dataclass(frozen=True)
class Ratings:
    """users, movies int64[n] from 0; stars float64[n], 1 to 5; seconds float64[n] since 1970."""

    users: NDArray[np.int64]
    movies: NDArray[np.int64]
    stars: NDArray[np.float64]
    seconds: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.stars)

    def take(self, rows: NDArray[np.integer]) -> Ratings:
        """Those rows."""
        return Ratings(self.users[rows], self.movies[rows], self.stars[rows], self.seconds[rows])


@dataclass(frozen=True)
class Catalogue:
    """What is known of users and movies: titles, years int64[n_movies] (0: unknown), genres float64[n_movies, 19]
    of zeros and ones, and age, gender, occupation of users as codes int64[n_users]."""

    titles: list[str]
    years: NDArray[np.int64]
    genres: NDArray[np.float64]
    ages: NDArray[np.int64]
    genders: NDArray[np.int64]
    occupations: NDArray[np.int64]


def read_ratings(path: Path) -> Ratings:
    """A file of user, movie, stars, timestamp, tab-separated."""
    table = np.loadtxt(path, dtype=np.int64, ndmin=2)
    return Ratings(table[:, 0] - 1, table[:, 1] - 1, table[:, 2].astype(float), table[:, 3].astype(float))


def read_catalogue(folder: Path) -> Catalogue:
    """The files u.item and u.user."""
    movies = [line.split("|") for line in (folder / "u.item").read_text("latin-1").splitlines()]
    users = [line.split("|") for line in (folder / "u.user").read_text("latin-1").splitlines()]
    return Catalogue(
        [movie[1] for movie in movies],
        np.array([int(movie[2][-4:] or 0) for movie in movies]),
        np.array([[float(cell) for cell in movie[5:]] for movie in movies]),
        np.array([int(user[1]) for user in users]),
        _codes([user[2] for user in users]),
        _codes([user[3] for user in users]),
    )


def _codes(names: list[str]) -> NDArray[np.int64]:
    return np.unique(names, return_inverse=True)[1]


def one_hot(codes: NDArray[np.integer], size: int, values: float | NDArray[np.float64] = 1.0) -> sp.csr_matrix:
    """A row per code with one entry."""
    entries = np.broadcast_to(np.asarray(values, float), codes.shape)
    return sp.csr_matrix((entries, codes, np.arange(len(codes) + 1)), (len(codes), size))


def users_and_movies(train: Ratings, rows: Ratings, catalogue: Catalogue, power: float) -> sp.csr_matrix:
    """One-hot user, one-hot movie, with the value (n / mean n) ** power in place of 1, n ratings in `train`.

    L2 counts per rating: n ratings shrink a weight by n λ, although they know it n times as well. A small value makes a
    weight do with less, so that whoever is seldom seen shrinks more: a penalty of n^(1 - 2 power) λ.
    """
    parts = []
    for seen, codes, size in (
        (train.users, rows.users, len(catalogue.ages)),
        (train.movies, rows.movies, len(catalogue.titles)),
    ):
        counts = np.bincount(seen, minlength=size) + 1.0
        parts.append(one_hot(codes, size, (counts[codes] / (len(seen) / size)) ** power))
    return sp.hstack(parts).tocsr()


def known_of_both(train: Ratings, rows: Ratings, catalogue: Catalogue) -> sp.csr_matrix:
    """Genres, year and age of the movie, how often it is rated; age, gender and occupation of the user; his time."""
    genres = catalogue.genres / np.sqrt(np.maximum(catalogue.genres.sum(axis=1, keepdims=True), 1.0))
    half = 0.5  # a value of 1/2 in place of 1 is four times the penalty and a quarter of the step
    kinds = _kinds_of_both(train, rows, catalogue).values()
    return sp.hstack(
        [sp.csr_matrix(genres[rows.movies]), *(one_hot(codes, size, half) for codes, size in kinds)]
    ).tocsr()


def _kinds_of_both(train: Ratings, rows: Ratings, catalogue: Catalogue) -> dict[str, tuple[NDArray[np.int64], int]]:
    """Codes int64[n_rows] by name, and how many there are."""
    movies, users = rows.movies, rows.users
    years = catalogue.years[movies]
    age = 1970 + rows.seconds / (365.25 * DAY) - years
    counts = np.bincount(train.movies, minlength=len(catalogue.titles)) + 1.0
    since = (rows.seconds - _means(train.seconds, train.users, len(catalogue.ages))[users]) / DAY
    return {
        "year": (np.clip((years - 1915) // 5, 0, 17), 18),
        "age of movie": (np.digitize(age, [0.5, 1, 1.5, 2, 3, 5, 10, 20, 40]), 10),
        "how often": (np.log2(counts[movies]).astype(int), 11),
        "age": (np.minimum(catalogue.ages[users] // 5, 13), 14),
        "gender": (catalogue.genders[users], 2),
        "occupation": (catalogue.occupations[users], int(catalogue.occupations.max()) + 1),
        "since": (np.digitize(since, [-60, -20, -5, -1, 1, 5, 20, 60]), 9),
    }


def _means(
    values: NDArray[np.float64], groups: NDArray[np.int64], size: int, shrunk_by: float = 1.0
) -> NDArray[np.float64]:
    """Mean by group, shrunk to the mean of all as by so many values there."""
    start = values.mean()
    return start + np.bincount(groups, values - start, size) / (np.bincount(groups, minlength=size) + shrunk_by)


def moods(train: Ratings, rows: Ratings, catalogue: Catalogue, same_page: bool) -> NDArray[np.float64]:
    """float64[n_rows, 3]: by how many stars the user was above his own mean, movies accounted for, shortly before.

    From the user's ratings in `train` before the row's own second, weighted by exp(-seconds ago / MOOD_SECONDS). With
    `same_page` those of the same second count too: whoever rates a page of movies at once sends them together.
    """
    surprises = _surprises(train, catalogue)
    result = np.zeros((len(rows), len(MOOD_SECONDS)))
    for user in range(len(catalogue.ages)):
        known, asked = np.flatnonzero(train.users == user), np.flatnonzero(rows.users == user)
        if not len(known) or not len(asked):
            continue
        others = (train.movies[known] != rows.movies[asked, None]).astype(float)  # never the row's own rating
        mean = others @ surprises[known] / (others.sum(axis=1) + 5.0)
        above = surprises[known] - mean[:, None]
        ago = rows.seconds[asked, None] - train.seconds[known]
        past = others * ((ago >= 0) if same_page else (ago > 0))
        for column, seconds in enumerate(MOOD_SECONDS):
            weights = past * np.exp(-np.maximum(ago, 0.0) / seconds)
            result[asked, column] = (weights * above).sum(axis=1) / (weights.sum(axis=1) + 1.0)
    return result


def _surprises(train: Ratings, catalogue: Catalogue) -> NDArray[np.float64]:
    """Stars above what everybody gives that movie; rows of the movie itself never see them."""
    return train.stars - _means(train.stars, train.movies, len(catalogue.titles), shrunk_by=5.0)[train.movies]


MOOD_VALUE = 2.0
"""Moods are small numbers: their deviation is 0.1 to 0.4."""
POWER = 0.25
DESIGNS = ("user and movie", "side information", "side information, same page too")


def design(name: str, train: Ratings, rows: Ratings, catalogue: Catalogue) -> sp.csr_matrix:
    """The rows of a model in DESIGNS."""
    parts = [users_and_movies(train, rows, catalogue, POWER)]
    if name != DESIGNS[0]:
        parts.append(known_of_both(train, rows, catalogue))
        parts.append(sp.csr_matrix(MOOD_VALUE * moods(train, rows, catalogue, same_page=name == DESIGNS[2])))
    return sp.hstack(parts).tocsr()


def table(train: Ratings, rows: Ratings, catalogue: Catalogue, side: bool) -> dict[str, list]:
    """The same as columns of a table, each a field with a prior of its own: user and movie, and with `side` what is
    known of both, but nothing of the same page.
    """
    movies, users = rows.movies, rows.users
    columns: dict[str, list] = {"user": _text(users), "movie": _text(movies)}
    if not side:
        return columns
    kinds = _kinds_of_both(train, rows, catalogue)
    above = moods(train, rows, catalogue, same_page=False)
    return {
        **columns,
        "genres": [_text(np.flatnonzero(catalogue.genres[movie])) for movie in movies],
        **{name: _text(codes) for name, (codes, _) in kinds.items()},
        **{f"mood {seconds:g}": above[:, i].tolist() for i, seconds in enumerate(MOOD_SECONDS)},
    }


def _text(codes: NDArray[np.int64]) -> list[str]:
    return [str(code) for code in codes]


def hold_out(ratings: Ratings, per_user: int, seed: int) -> tuple[Ratings, Ratings]:
    """The rest, and `per_user` random ratings of every user, as ua.test is cut (which has ten)."""
    order = np.lexsort((np.random.default_rng(seed).random(len(ratings)), ratings.users))
    users = ratings.users[order]
    rank = np.arange(len(users)) - np.searchsorted(users, users)
    return ratings.take(order[rank >= per_user]), ratings.take(order[rank < per_user])
