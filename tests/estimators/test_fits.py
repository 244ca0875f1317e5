"""What a fit means: which parameters come out, what the options do, where training goes on."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import scipy.sparse

pytest.importorskip("sklearn", minversion="1.6")

from sklearn.exceptions import NotFittedError

from dfm.errors import DataError, DivergenceError, SettingsError
from dfm.estimators import FMClassifier, FMRegressor, LinearClassifier, LinearRegressor
from dfm.kernels.optimizers import OPTIMIZERS
from dfm.model.fm_model import FMModel
from dfm.training import fitting

RNG = np.random.default_rng(0)
X = RNG.normal(size=(600, 5))
PAIR = X[:, 0] * X[:, 1] > 0
"""A label that no linear model can learn."""
NUMBERS = 3.0 * X[:, 0] * X[:, 1] + X[:, 2] + 0.1 * RNG.normal(size=600)
THREE = np.array(["low", "mid", "top"])[np.digitize(X[:, 0] + X[:, 1] * X[:, 2], [-0.5, 0.5])]


def test_history_is_a_flat_frame_on_request_and_reprs_are_short() -> None:
    X, y = np.random.default_rng(0).normal(size=(300, 3)), np.arange(300) % 3
    two = FMClassifier(n_factors=2, n_epochs=3).fit(X[:200], y[:200] > 0, eval_set=(X[200:], y[200:] > 0))
    frame = two.history_frame()
    assert frame.index.name == "epoch"
    assert len(frame) == two.n_iter_
    assert frame["log_loss"].tolist() == [event["log_loss"] for event in two.history_]
    assert not {"event", "calibration_bins"} & {*frame.columns}
    assert "object" not in [str(kind) for kind in frame.dtypes]
    three = FMClassifier(n_factors=2, n_epochs=2).fit(X, y)
    assert three.history_frame()["class"].nunique() == 3
    text = repr(two.model_)
    assert len(text) < 160
    assert text.startswith("FMModel(fm, logistic, 1 field, 3 features, 3 with 2 factors")


def test_the_history_is_drawn_with_a_dot_at_the_best_epoch() -> None:
    from matplotlib import pyplot

    X, y = np.random.default_rng(0).normal(size=(300, 3)), np.arange(300) % 3
    two = FMClassifier(n_factors=2, n_epochs=3).fit(X[:200], y[:200] > 0, eval_set=(X[200:], y[200:] > 0))
    axes = two.plot_history()
    training, validation, best = axes.get_lines()
    assert training.get_ydata().tolist() == [event["train_loss"] for event in two.history_]
    assert validation.get_ydata().tolist() == [event["log_loss"] for event in two.history_]
    assert best.get_ydata()[0] == min(event["log_loss"] for event in two.history_)
    assert axes.get_ylabel() == "log loss"
    own = pyplot.figure().subplots()
    assert FMClassifier(n_factors=2, n_epochs=2).fit(X, y).plot_history(own) is own
    assert [line.get_label() for line in own.get_lines()] == [f"training (class {n})" for n in range(3)]
    pyplot.close("all")


def by_definition(table: Any, rows: np.ndarray) -> np.ndarray:
    """w0 + Σ w_j x_j + Σ_{i<j} <V_i, V_j> x_i x_j, in float64."""
    w0, w, V = (np.asarray(part, np.float64) for part in table)
    pairs = np.array([sum(x[i] * x[j] * (V[i] @ V[j]) for i in range(len(x)) for j in range(i)) for x in rows])
    return w0 + rows @ w + pairs


def test_factors_learn_what_a_linear_model_cannot():
    assert FMClassifier(n_factors=4).fit(X[:400], PAIR[:400]).score(X[400:], PAIR[400:]) > 0.93
    assert LinearClassifier().fit(X[:400], PAIR[:400]).score(X[400:], PAIR[400:]) < 0.65
    assert FMRegressor(n_factors=4).fit(X[:400], NUMBERS[:400]).score(X[400:], NUMBERS[400:]) > 0.97
    assert LinearRegressor().fit(X[:400], NUMBERS[:400]).score(X[400:], NUMBERS[400:]) < 0.4


def test_the_public_parameters_are_those_of_the_score():
    """Without standardization they belong to the columns as they are; a regressor's are in the unit of the labels."""
    number = FMRegressor(n_factors=3, n_epochs=5, standardize=False).fit(X, 50 * NUMBERS + 7)
    expected = by_definition((number.intercept_, number.coef_, number.factors_), X[:20])
    np.testing.assert_allclose(number.predict(X[:20]), expected, rtol=1e-4, atol=1e-3)
    label = FMClassifier(n_factors=3, n_epochs=5, standardize=False).fit(X, PAIR)
    expected = by_definition((label.intercept_[0], label.coef_[0], label.factors_), X[:20])
    np.testing.assert_allclose(label.decision_function(X[:20]), expected, rtol=1e-4, atol=1e-5)
    assert (label.coef_.shape, label.factors_.shape, label.intercept_.shape) == ((1, 5), (5, 3), (1,))


def test_sparse_and_dense_rows_are_the_same_rows():
    gappy = np.where(np.abs(X) > 0.8, X, 0.0)
    dense = FMClassifier(n_epochs=4, standardize=False).fit(gappy, PAIR)
    for form in (scipy.sparse.csr_matrix, scipy.sparse.csc_array, scipy.sparse.coo_array):
        sparse = FMClassifier(n_epochs=4).fit(form(gappy), PAIR)
        assert sparse.factors_.tobytes() == dense.factors_.tobytes()
        np.testing.assert_array_equal(sparse.decision_function(form(gappy)), dense.decision_function(gappy))


def test_units_of_columns_and_labels_do_not_matter():
    plain = FMRegressor(n_epochs=5).fit(X, NUMBERS)
    scaled = FMRegressor(n_epochs=5).fit(X * [1e6, 1e-6, 1, 10, 1] + [0, 0, 50, 0, 0], 1e5 * NUMBERS + 1e6)
    moved = X * [1e6, 1e-6, 1, 10, 1] + [0, 0, 50, 0, 0]
    np.testing.assert_allclose((scaled.predict(moved) - 1e6) / 1e5, plain.predict(X), atol=5e-3)


def test_columns_of_zeros_and_ones_are_left_alone_and_a_constant_one_does_no_harm():
    flags = np.column_stack([X[:, 0] > 0, X[:, 1] > 0, np.full(600, 4e9)]).astype(float)
    model = FMClassifier(n_epochs=50).fit(flags, PAIR)
    assert model.score(flags, PAIR) == 1.0
    model = FMClassifier(n_epochs=50).fit(np.delete(flags, 2, axis=1), PAIR)
    assert model.model_.statistics["x0"].mean == 0.0


def test_a_sparse_matrix_is_not_moved_to_mean_zero():
    with pytest.raises(SettingsError, match="would make a sparse matrix dense"):
        FMClassifier(standardize=True).fit(scipy.sparse.csr_array(X), PAIR)


def test_three_classes_are_three_machines_against_the_rest():
    model = FMClassifier(n_factors=2, n_epochs=60).fit(X, THREE)
    assert model.classes_.tolist() == ["low", "mid", "top"]
    assert (model.coef_.shape, model.factors_.shape, model.intercept_.shape) == ((3, 5), (3, 5, 2), (3,))
    assert model.score(X, THREE) > 0.8
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1.0)
    with pytest.raises(AttributeError, match="see models_"):
        model.model_  # noqa: B018 (the access itself is the test)
    top = model.models_[2].predict(X)
    np.testing.assert_allclose(top, 1 / (1 + np.exp(-model.decision_function(X)[:, 2])), atol=1e-6)
    threaded = FMClassifier(n_factors=2, n_epochs=60, n_jobs=2).fit(X, THREE)
    assert threaded.factors_.tobytes() == model.factors_.tobytes()


def test_the_model_to_serve_predicts_the_same_after_a_trip_to_disk(tmp_path):
    fitted = FMClassifier(n_epochs=3).fit(X, PAIR)
    fitted.model_.save(str(tmp_path))
    model, expected = FMModel.load(str(tmp_path)), fitted.predict_proba(X)[:, 1]
    np.testing.assert_allclose(model.predict(X), expected, atol=1e-6)
    named = {f"x{j}": X[:, j].tolist() for j in range(5)}
    np.testing.assert_allclose(model.predict(named), expected, atol=1e-6)
    with pytest.raises(DataError, match=r"takes \[n_rows, 5\]"):
        model.predict(X[:, :4])
    with pytest.raises(DataError, match=r"column 'x3': missing \(None\); pass a finite number$"):
        model.predict({**named, "x3": [None] * 600})


def test_weights_are_relative_and_rows_without_weight_teach_nothing():
    weights = np.where(np.arange(600) < 400, 1.0, 0.0)
    wrong = np.where(weights > 0, PAIR, ~PAIR)
    some = FMClassifier().fit(X, wrong, sample_weight=weights)
    assert some.score(X[400:], PAIR[400:]) > 0.9
    more = FMClassifier().fit(X, wrong, sample_weight=1e4 * weights)
    np.testing.assert_allclose(more.decision_function(X), some.decision_function(X), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="Negative"):
        FMClassifier().fit(X, PAIR, sample_weight=-weights)


@pytest.mark.parametrize("as_data", [np.asarray, scipy.sparse.csr_matrix], ids=["array", "sparse"])
def test_large_numbers_of_rows_without_weight_leave_rates_and_penalties_as_they_are(as_data):
    more, labels = np.vstack([X, np.full((300, X.shape[1]), 1e6)]), np.append(PAIR, np.arange(300) % 2 == 0)
    alone, among = FMClassifier().fit(as_data(X), PAIR), FMClassifier()
    among.fit(as_data(more), labels, sample_weight=np.repeat([1.0, 0.0], [600, 300]))
    assert among.score(as_data(X), PAIR) == pytest.approx(alone.score(as_data(X), PAIR), abs=0.03)


@pytest.mark.parametrize(("kind", "y"), [(LinearClassifier, PAIR), (LinearRegressor, NUMBERS)])
def test_weights_of_a_fit_that_goes_on_are_relative_too(kind, y):
    fits = []
    for weight in (None, 1.0, 1000.0):
        model = kind(n_epochs=2, optimizer="sgd", warm_start=True, early_stopping=False).fit(X, y)
        model.fit(X, y, sample_weight=None if weight is None else np.full(600, weight))
        fits.append(model.coef_)
    np.testing.assert_allclose(fits[1], fits[0], rtol=1e-5)
    np.testing.assert_allclose(fits[2], fits[0], rtol=1e-5)


def test_rows_of_which_one_class_alone_weighs_anything_are_refused():
    alone = "only rows of class False weigh anything: a classifier needs two classes"
    with pytest.raises(ValueError, match=alone):
        LinearClassifier().fit(X, PAIR, sample_weight=(~PAIR).astype(float))
    with pytest.raises(ValueError, match=alone):
        LinearClassifier(class_weight={True: 0}).fit(X, PAIR)
    with pytest.raises(ValueError, match="leaves no row any weight"):
        LinearClassifier(class_weight={False: 0, True: 0}).fit(X, PAIR)
    with pytest.raises(ValueError, match="leaves no row any weight"):
        LinearClassifier(class_weight={0: 0}).partial_fit(X[:3], [0, 0, 0], classes=[0, 1])
    for weight in (np.nan, -1):
        with pytest.raises(ValueError, match=r"class_weight = .* is not legal: expected finite numbers, 0 or more"):
            LinearClassifier(class_weight={False: weight}).fit(X, PAIR)
    assert LinearClassifier().partial_fit(X[:3], [0, 0, 0], classes=[0, 1]).n_iter_ == 1


@pytest.mark.parametrize("later", [[0, 1, 2], ["a", "b", "a"]])
@pytest.mark.parametrize("class_weight", [None, {0: 1, 1: 2}])
def test_labels_of_a_part_that_are_none_of_the_classes_are_told_in_words(later, class_weight):
    told = r"y holds (2|'a'), which is none of the classes \[0, 1\]"
    with pytest.raises(DataError, match=told):
        LinearClassifier(class_weight=class_weight).partial_fit(X[:3], later, classes=[0, 1])
    model = LinearClassifier(class_weight=class_weight, n_epochs=2).fit(X, PAIR.astype(int))
    with pytest.raises(DataError, match=told):
        model.partial_fit(X[:3], later)


def test_labels_below_zero_are_no_counts_whenever_they_come():
    counts, told = np.arange(600) % 3, "y holds -1, and the loss is for counts: expected 0 or more"
    model = LinearRegressor(loss="poisson", n_epochs=1, warm_start=True)
    for way in (model.fit, model.partial_fit):
        with pytest.raises(DataError, match=told):
            way(X, counts - 1)
    model.fit(X, counts)
    before = model.predict(X)
    for way in (model.fit, model.partial_fit):
        with pytest.raises(DataError, match=told):
            way(X, counts - 1)
    with pytest.raises(DataError, match=told):
        model.fit(X, counts, eval_set=(X, counts - 1))
    np.testing.assert_array_equal(model.predict(X), before)


def test_a_loss_that_takes_labels_as_they_are_tells_of_their_unit(caplog):
    numbers = X @ np.arange(1.0, 6.0)
    with caplog.at_level("WARNING", "dfm"):
        LinearRegressor(loss="huber", n_epochs=1).fit(X, 2_000 * numbers)
        assert "the loss huber takes them as they are" in caplog.text
        assert "Divide labels and loss_parameter by a constant" in caplog.text
        caplog.clear()
        LinearRegressor(loss="huber", n_epochs=1).fit(X, numbers)
        LinearRegressor(n_epochs=1).fit(X, 2_000 * numbers)
        LinearRegressor(loss="poisson", n_epochs=1).fit(X, np.arange(600))
    assert not caplog.text


@pytest.mark.parametrize(("loss", "unit"), [("squared", 10.0), ("huber", 11.0)])
def test_labels_that_are_large_for_their_spread_are_told(caplog, loss, unit):
    """A job warns of them, too: 32 bits keep little of them. Of each text there is one warning."""
    moments = 1.7e9 + unit * X[:, 0]
    with caplog.at_level("WARNING", "dfm"):
        LinearRegressor(loss=loss, n_epochs=1).fit(X, moments - 1.7e9)
        LinearRegressor(n_epochs=1).fit(X, np.full(600, 1.7e9))
        assert "kept to" not in caplog.text
        LinearRegressor(loss=loss, n_epochs=1).fit(X, moments)
    assert "labels around 1.7e+09 are kept to 128, and their deviation is" in caplog.text
    assert "subtract a constant" in caplog.text


def test_class_weights_are_sample_weights():
    rare = X[:, 0] > 1.3
    balanced = LinearClassifier(class_weight="balanced", n_epochs=5).fit(X, rare)
    by_hand = np.where(rare, 300 / rare.sum(), 300 / (~rare).sum())
    weighted = LinearClassifier(n_epochs=5).fit(X, rare, sample_weight=by_hand)
    np.testing.assert_allclose(balanced.decision_function(X), weighted.decision_function(X), atol=1e-4)
    named = LinearClassifier(class_weight={True: 10.0}, n_epochs=5).fit(X, rare)
    assert named.predict(X).sum() > LinearClassifier(n_epochs=5).fit(X, rare).predict(X).sum()
    with pytest.raises(ValueError, match="none of the classes"):
        FMClassifier(class_weight={"yes": 2.0}).fit(X, rare)


def test_a_warm_start_goes_on_and_parts_of_the_data_may_come_one_by_one():
    model = FMClassifier(n_epochs=5, warm_start=True, tol=0).fit(X, PAIR)
    once = model.history_[-1]["train_loss"]
    model.fit(X, PAIR)
    assert (model.n_iter_, [event["epoch"] for event in model.history_]) == (10, list(range(1, 11)))
    assert model.history_[-1]["train_loss"] < once
    with pytest.raises(SettingsError, match="cannot go on"):
        model.set_params(n_factors=3).fit(X, PAIR)
    parts = FMClassifier(n_factors=4)
    for _ in range(20):
        for start in range(0, 600, 200):
            parts.partial_fit(X[start : start + 200], PAIR[start : start + 200], classes=[False, True])
    assert parts.score(X, PAIR) > 0.93
    with pytest.raises(ValueError, match="not those of the first call"):
        parts.partial_fit(X, PAIR, classes=[1, 2])


def test_a_first_part_that_was_refused_announces_no_classes_to_the_next_fit():
    model = LinearClassifier(n_epochs=1)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.partial_fit(X[:100], PAIR[:99], classes=[0, 1, 2])
    assert model.fit(X, PAIR).classes_.tolist() == [False, True]
    again = LinearClassifier(n_epochs=1)
    with pytest.raises(DataError, match="none of the classes"):
        again.partial_fit(X, THREE, classes=["low", "mid"])
    assert again.partial_fit(X, THREE).classes_.tolist() == ["low", "mid", "top"]


def test_the_best_epoch_on_the_evaluation_rows_is_kept():
    noise = RNG.random(600) < 0.4
    hard = np.where(noise, ~PAIR, PAIR)
    model = FMClassifier(n_factors=16, l2_factors=0, l2_linear=0, learning_rate=1.0, n_epochs=40, patience=3)
    model.fit(X[:300], hard[:300], eval_set=(X[300:], hard[300:]))
    losses = [event["log_loss"] for event in model.history_]
    assert model.n_iter_ < 40
    assert len(losses) - 1 - int(np.argmin(losses)) >= 3
    probabilities = model.predict_proba(X[300:])[:, 1]
    likelihood = np.where(hard[300:], probabilities, 1 - probabilities)
    assert -np.log(likelihood).mean() == pytest.approx(min(losses), rel=1e-4)


def test_early_stopping_holds_out_rows_only_where_it_is_asked_to_or_there_are_many():
    assert "log_loss" not in FMClassifier(n_epochs=2).fit(X, PAIR).history_[0]
    held = FMClassifier(n_epochs=2, early_stopping=True, validation_fraction=0.25).fit(X, PAIR)
    assert held.history_[0]["rows"] == 150
    many = LinearRegressor(n_epochs=1).fit(np.repeat(X, 20, axis=0), np.repeat(NUMBERS, 20))
    assert many.history_[0]["rows"] == 1200


def test_without_a_tolerance_training_ends_with_the_last_epoch():
    """As in scikit-learn."""
    assert LinearClassifier(n_epochs=99, patience=1).fit(X, PAIR).n_iter_ < 99
    assert LinearClassifier(n_epochs=99, patience=1, tol=None).fit(X, PAIR).n_iter_ == 99
    # Rows that are held out choose the epoch that is kept, and end nothing.
    many, labels = np.repeat(X, 3, axis=0), np.repeat(PAIR, 3)
    assert LinearClassifier(n_epochs=30).fit(many, labels).n_iter_ < 30
    assert LinearClassifier(n_epochs=30, tol=None).fit(many, labels).n_iter_ == 30


def test_a_log_loss_that_explodes_is_divergence_and_not_a_model():
    model = FMClassifier(n_factors=4, optimizer="adam", learning_rate=1_000.0)
    with pytest.raises(DivergenceError, match=r"epoch 1.* loss is .*smaller learning_rate \(it is 1e\+03; a tenth"):
        model.fit(X, PAIR)
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_a_fit_whose_first_round_is_bad_and_whose_epoch_is_not_goes_on(monkeypatch):
    rounds = []
    check = fitting.check_finite

    def noted(objective, work, epoch, reports, table):
        rounds.append(max(report.tally.mean_loss for report in reports))
        check(objective, work, epoch, reports, table)

    monkeypatch.setattr(fitting, "check_finite", noted)
    many = np.random.default_rng(0).normal(size=(4_000, 3)) + 100.0
    model = FMClassifier(n_factors=2, optimizer="adagrad", learning_rate=0.2, standardize=False, n_replicas=4)
    model.set_params(n_epochs=3).fit(many, many[:, 0] > many[:, 1])
    assert rounds[0] > 20
    assert model.history_[0]["train_loss"] < 8
    assert model.history_[-1]["train_loss"] < 1


def test_an_outlier_in_a_few_rows_is_no_divergence():
    model = LinearClassifier(standardize=False).fit(X, PAIR)
    outlier = X[:1] + 1e4 * np.sign(model.coef_) * (1 - 2 * PAIR[0])
    assert model.partial_fit(outlier, PAIR[:1]).history_[-1]["train_loss"] > 1_000


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_learns_with_its_own_step_size(optimizer):
    assert FMClassifier(n_factors=4, optimizer=optimizer, init_stdev=0.1).fit(X, PAIR).score(X, PAIR) > 0.9


def test_losses_change_what_is_predicted():
    high = LinearRegressor(loss="quantile", loss_parameter=0.9).fit(X, NUMBERS)
    assert np.mean(high.predict(X) > NUMBERS) == pytest.approx(0.9, abs=0.05)
    counts = RNG.poisson(np.exp(0.5 + 0.4 * X[:, 0]))
    poisson = LinearRegressor(loss="poisson").fit(X, counts)
    assert poisson.predict(X).min() > 0
    assert poisson.predict(X).mean() == pytest.approx(counts.mean(), rel=0.1)
    np.testing.assert_allclose(poisson.model_.predict(X), poisson.predict(X), rtol=1e-6)
    for margins in ("hinge", "squared-hinge"):
        assert not hasattr(FMClassifier(loss=margins), "predict_proba")


@pytest.mark.parametrize("loss", ["squared", "bpr", "nope", 3])
@pytest.mark.parametrize("way", ["fit", "partial_fit"])
def test_a_loss_that_a_classifier_cannot_take_is_refused_with_those_that_it_can(loss, way):
    """One of pairs of rows has an estimator of its own."""
    with pytest.raises(SettingsError, match="choose one of logistic, hinge, squared-hinge, or pass") as refused:
        getattr(FMClassifier(loss=loss), way)(X, PAIR)
    assert ("use FMRanker" in str(refused.value)) == (loss == "bpr")
    with pytest.raises(SettingsError, match="logistic, hinge, squared-hinge, or"):
        FMClassifier(loss=loss).job("a.parquet", "y", "results")


def test_a_function_is_a_loss():
    def costly_misses(score, y):
        p = 1.0 / (1.0 + np.exp(-score))
        return -5.0 * y * np.log(p) - (1.0 - y) * np.log(1.0 - p)

    label = X[:, 0] + RNG.normal(size=600) > 0
    plain = LinearClassifier().fit(X, label)
    careful = LinearClassifier(loss=costly_misses).fit(X, label)
    assert careful.predict(X).mean() > plain.predict(X).mean() + 0.1


def test_replicas_are_averaged_and_threads_change_nothing():
    replicas = FMClassifier(n_factors=4, n_replicas=3).fit(X, PAIR)
    assert replicas.score(X, PAIR) > 0.9
    threaded = FMClassifier(n_factors=4, n_replicas=3, n_jobs=2).fit(X, PAIR)
    assert threaded.factors_.tobytes() == replicas.factors_.tobytes()


def test_verbose_prints_a_line_an_epoch_and_nothing_else_does(capsys, caplog):
    FMRegressor(n_epochs=2).fit(X, NUMBERS)
    assert capsys.readouterr().out == ""
    FMRegressor(n_epochs=2, verbose=1).fit(X, NUMBERS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1", "epoch 2"]
    assert "train_rmse" in lines[0]
    with caplog.at_level(logging.INFO, logger="dfm.estimators"):
        FMRegressor(n_epochs=1).fit(X, NUMBERS)
    assert caplog.messages[0].startswith("epoch 1: train_loss")


@pytest.mark.parametrize("kind", [FMClassifier, FMRegressor, LinearClassifier])
@pytest.mark.parametrize("solver", ["sgd", "mcmc"])
def test_an_unknown_optimizer_is_refused_however_rows_come(kind, solver):
    """Before any row is trained on, and with it all parameters that are out of range."""
    estimator = kind(optimizer="Adam", solver=solver, learning_rate=-3)
    for learns in (estimator.fit, estimator.partial_fit) if solver == "sgd" else (estimator.fit,):
        with pytest.raises(SettingsError, match=r'optimizer = "Adam" is not legal: .* Did you mean "adam"'):
            learns(X, PAIR)
    with pytest.raises(SettingsError, match='optimizer = "Adam" is not legal'):
        estimator.job("a.parquet", "y", "results")


@pytest.mark.parametrize(
    ("given", "default"),
    [({"n_replicas": 0}, "None"), ({"min_count": 0}, "1"), ({"patience": 0}, "5"), ({"backend": "gpu"}, '"numba"')],
)
def test_the_default_that_a_refusal_names_is_that_of_the_estimator(given, default):
    (name,) = given
    with pytest.raises(SettingsError, match=rf"^{name} = .*Leave it out for the default, {default}\.$"):
        FMClassifier(**given).fit(X, PAIR)


def test_parameters_out_of_range_are_refused_with_the_range():
    with pytest.raises(SettingsError, match=r'learning_rate = -1 is not legal: expected "auto" or a number above 0'):
        FMClassifier(learning_rate=-1).fit(X, PAIR)
    with pytest.raises(SettingsError, match="l1_linear"):
        FMClassifier(l1_linear=0.1).fit(X, PAIR)
    with pytest.raises(SettingsError, match="expected one row each"):
        FMClassifier(n_replicas=601).fit(X, PAIR)
    with pytest.raises(SettingsError, match="tol = 'small' is not legal: expected a number, or None"):
        FMClassifier(tol="small").fit(X, PAIR)
    for share in ("auto", None, 0, 1):
        with pytest.raises(
            SettingsError, match=r"validation_fraction = .* is not legal: expected a number above 0 to below"
        ):
            FMClassifier(validation_fraction=share).fit(X, PAIR)
    with pytest.raises(DivergenceError, match="try a smaller learning_rate"):
        FMRegressor(optimizer="sgd", learning_rate=100.0).fit(X, NUMBERS)
