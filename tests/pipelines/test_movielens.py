"""The MovieLens experiment on a small made-up catalogue: no feature looks at the rating it is to predict."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

FOLDER = Path(__file__).parents[2] / "pipelines" / "movielens"
N_USERS, N_MOVIES, PER_USER = 60, 80, 30


@pytest.fixture(scope="module")
def movielens():
    """The modules `features`, `run` and `tune`, imported as the commands import them."""
    sys.path.insert(0, str(FOLDER))
    try:
        import features

        modules = {"features": features}
        for name in ("run", "tune"):
            spec = importlib.util.spec_from_file_location(f"movielens_{name}", FOLDER / f"{name}.py")
            modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(modules[name])
    finally:
        sys.path.remove(str(FOLDER))
    yield type("Modules", (), modules)
    for name in ("features", "plots", "ranking"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files as GroupLens has them: tastes of two dimensions, ten ratings of every user to predict."""
    root, rng = tmp_path_factory.mktemp("ml-100k"), np.random.default_rng(0)
    tastes, kinds = rng.normal(size=(N_USERS, 2)), rng.normal(size=(N_MOVIES, 2))
    files = {"ua.base": [], "ua.test": []}
    for user in range(N_USERS):
        movies = rng.choice(N_MOVIES, PER_USER, replace=False)
        times = 880_000_000 + user * 1000 + np.sort(rng.integers(0, 200, PER_USER))
        stars = np.clip(np.round(3.3 + 1.2 * kinds[movies] @ tastes[user] + rng.normal(0, 0.3, PER_USER)), 1, 5)
        for place, (movie, star, second) in enumerate(zip(movies, stars.astype(int), times, strict=True)):
            name = "ua.test" if place % 3 == 0 else "ua.base"
            files[name].append(f"{user + 1}\t{movie + 1}\t{star}\t{second}\n")
    for name, lines in files.items():
        (root / name).write_text("".join(lines))
    genres = ["|".join(str(int(cell)) for cell in rng.random(19) < 0.2) for _ in range(N_MOVIES)]
    genres[0] = "|".join("0" * 19)
    titles = [f"{movie + 1}|Amélie {movie} ({1990 + movie % 8})" for movie in range(N_MOVIES)]
    dates = [f"01-Jan-{1990 + movie % 8}" for movie in range(N_MOVIES)]
    dates[1] = ""
    items = [f"{title}|{date}||http://x|{cells}\n" for title, date, cells in zip(titles, dates, genres, strict=True)]
    (root / "u.item").write_text("".join(items), "latin-1")
    jobs = ("writer", "other", "nurse")
    users = [f"{n + 1}|{18 + n}|{'MF'[n % 2]}|{jobs[n % 3]}|{10000 + n}\n" for n in range(N_USERS)]
    (root / "u.user").write_text("".join(users))
    return root


@pytest.fixture
def data(movielens, folder):
    features = movielens.features
    return features.read_ratings(folder / "ua.base"), features.read_ratings(folder / "ua.test"), (
        features.read_catalogue(folder)
    )  # fmt: skip


def test_the_files_are_read(data):
    train, test, catalogue = data
    assert (len(train), len(test)) == (N_USERS * 20, N_USERS * 10)
    assert train.users.min() == train.movies.min() == 0
    assert catalogue.titles[3] == "Amélie 3 (1993)"
    assert catalogue.years[1] == 0
    assert catalogue.genres.shape == (N_MOVIES, 19)


def test_no_feature_of_a_row_looks_at_its_own_rating(movielens, data):
    train, _, catalogue = data
    design = movielens.features.design
    for name in movielens.features.DESIGNS:
        before = design(name, train, train, catalogue).toarray()
        for row in (0, 7, 500):
            changed = train.stars.copy()
            changed[row] = 6 - changed[row] if changed[row] != 3 else 5
            after = design(name, dataclasses.replace(train, stars=changed), train, catalogue).toarray()
            # All that may move is the mean of all ratings, which the others are compared with.
            np.testing.assert_allclose(after[row], before[row], atol=2e-3)
            assert name == "user and movie" or np.abs(after - before).max() > 0.01


def test_without_the_same_page_only_earlier_seconds_count(movielens, data):
    train, _, catalogue = data
    moods = movielens.features.moods
    first = np.flatnonzero(train.seconds == np.array([train.seconds[train.users == u].min() for u in train.users]))
    assert not moods(train, train, catalogue, same_page=False)[first].any()
    page = dataclasses.replace(train, seconds=np.zeros_like(train.seconds))
    assert not moods(page, page, catalogue, same_page=False).any()
    assert moods(page, page, catalogue, same_page=True).any()


def test_a_hold_out_takes_so_many_ratings_of_every_user(movielens, data):
    train, _, _ = data
    rest, held = movielens.features.hold_out(train, per_user=5, seed=3)
    assert set(np.bincount(held.users)) == {5}
    together = np.concatenate([np.stack([part.users, part.movies]) for part in (rest, held)], axis=1)
    assert len(np.unique(together, axis=1).T) == len(train)


def test_the_commands_table_has_a_machine_better_than_the_linear_one(movielens, folder, tmp_path):
    arguments = [str(folder), "--members", "2", "--epochs", "60", "--output", str(tmp_path)]
    done = CliRunner().invoke(movielens.run.main, arguments, catch_exceptions=False)
    figures = {line[:42].strip(): line[42:].split() for line in done.output.splitlines()[2:14]}
    assert float(figures["FM, libFM, MCMC"][0]) == 0.842
    linear = float(figures["dfm, linear, user and movie"][0])
    for name in movielens.features.DESIGNS:
        one, mean, _seconds = map(float, figures[f"dfm, {name}"])
        assert mean <= one < linear
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("errors.png", "movies.png"))


def test_settings_are_chosen_without_the_test_file(movielens, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(movielens.tune.CHOICES, "n_factors", [32])  # kernels that another test compiles
    for name in ("ua.base", "u.item", "u.user"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    arguments = [str(tmp_path), "--trials", "2", "--members", "1", "--splits", "1"]
    done = CliRunner().invoke(movielens.tune.main, arguments, catch_exceptions=False)
    assert len(done.output.splitlines()) == 2
    assert all(0 < float(line.split()[0]) < 5 for line in done.output.splitlines())


def test_the_order_of_movies_is_learnt_from_pairs_as_from_rows(movielens, folder, monkeypatch):
    known = sys.modules["ranking"].MACHINES
    few_rows = {"n_factors": 2, "learning_rate": 0.5, "l2_factors": 0.001, "init_stdev": 0.1}
    machines = {name: (known[name][0], {**known[name][1], **few_rows}) for name in ("FM, log loss", "FM, pairs")}
    monkeypatch.setattr(sys.modules["ranking"], "MACHINES", machines)
    arguments = [str(folder), "--members", "1", "--epochs", "60", "--ranking"]
    done = CliRunner().invoke(movielens.run.main, arguments, catch_exceptions=False)
    figures = {line[:28].strip(): [float(cell) for cell in line[28:].split()] for line in done.output.splitlines()[2:]}
    assert figures.keys() == {"FM, log loss", "FM, pairs"}
    assert all(group_auc > 0.7 for group_auc, *_ in figures.values()), figures
