"""Spam or not, from the words of a text message: a factorization machine beside logistic regression.

python pipelines/sms_spam/run.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from dfm.estimators import FMClassifier

HERE = Path(__file__).parent


@dataclass
class Result:
    """What one model gives on the messages it has not seen. history: records of the epochs, if it has epochs."""

    name: str
    auc: float
    log_loss: float
    probabilities: NDArray[np.float64]
    history: list[dict[str, Any]]
    words: list[tuple[str, float]]


def read_messages(path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Texts, and 1 for spam."""
    lines = [line.split("\t", 1) for line in path.read_text("utf-8").splitlines()]
    return [text for _, text in lines], np.array([label == "spam" for label, _ in lines], np.int64)


def experiment(path: Path, n_epochs: int = 30) -> tuple[list[Result], NDArray[np.int64]]:
    """Both models on the same three quarters of the messages; results on the last quarter, and its labels."""
    texts, labels = read_messages(path)
    train, test, y_train, y_test = train_test_split(texts, labels, test_size=0.25, random_state=1)
    models = {
        "dfm FMClassifier": FMClassifier(
            n_factors=10, n_epochs=n_epochs, learning_rate=0.1, early_stopping=False, random_state=1
        ),
        "scikit-learn LogisticRegression": LogisticRegression(),
    }
    results = []
    for name, model in models.items():
        pipeline = make_pipeline(TfidfVectorizer(), model).fit(train, y_train)
        p = pipeline.predict_proba(test)[:, 1]
        weights = np.ravel(model.coef_)
        names = pipeline[0].get_feature_names_out()
        words = [(str(names[j]), float(weights[j])) for j in np.argsort(-weights)[:8]]
        history = getattr(model, "history_", [])
        results.append(Result(name, float(roc_auc_score(y_test, p)), float(log_loss(y_test, p)), p, history, words))
    return results, y_test


def is_falling(history: list[dict[str, Any]]) -> bool:
    """Whether the training loss falls with every epoch."""
    return bool(np.all(np.diff([epoch["train_loss"] for epoch in history]) < 0))


def plot(results: list[Result], labels: NDArray[np.int64], path: Path) -> None:
    """Loss by epoch, and calibration: of messages with a predicted probability, the share that is spam."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    machine, logistic = results
    epochs = [epoch["epoch"] for epoch in machine.history]
    left.plot(epochs, [epoch["train_loss"] for epoch in machine.history], color="C0", label="dfm, training messages")
    for color, result, name in (("C1", logistic, "logistic regression"), ("C0", machine, "dfm")):
        label = f"{name}, unseen messages: {result.log_loss:.3f}"
        left.axhline(result.log_loss, color=color, linestyle="--", linewidth=1, label=label)
    left.set(xlabel="epoch", ylabel="log loss (nats)", title="Loss by epoch", ylim=(0, None), xlim=(0, None))
    left.legend(frameon=False)
    right.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for color, result, name in (("C1", logistic, "logistic regression"), ("C0", machine, "dfm")):
        share, predicted = calibration_curve(labels, result.probabilities, n_bins=8, strategy="uniform")
        right.plot(predicted, share, "o-", color=color, label=f"{name}: AUC {result.auc:.4f}")
    right.set(xlabel="predicted probability", ylabel="share of spam", title="Calibration, unseen messages")
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


@click.command(context_settings={"show_default": True})
@click.argument("path", default=HERE / "SMSSpamCollection", type=click.Path(exists=True, path_type=Path))
@click.option("--epochs", default=30)
@click.option("--output", default=HERE / "output", type=click.Path(path_type=Path), help="Folder of the plot.")
def main(path: Path, epochs: int, output: Path) -> None:
    """Train both models on the messages in PATH and compare them on those left out."""
    results, labels = experiment(path, epochs)
    print(f"{len(labels):,} unseen messages, {labels.mean():.1%} spam")
    print(f"{'':34}{'AUC':>8}{'log loss':>10}")
    for result in results:
        print(f"{result.name:34}{result.auc:8.4f}{result.log_loss:10.4f}")
    losses = [epoch["train_loss"] for epoch in results[0].history]
    print(f"training loss of dfm: {losses[0]:.4f} after epoch 1, {losses[-1]:.4f} after epoch {len(losses)},", end=" ")
    print("falling with every epoch" if is_falling(results[0].history) else "NOT falling with every epoch")
    print("words that speak for spam:", ", ".join(word for word, _ in results[0].words))
    plot(results, labels, output / "sms_spam.png")
    print(f"plot: {output / 'sms_spam.png'}")


if __name__ == "__main__":
    main()
