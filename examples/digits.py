"""Train a classifier on scikit-learn's handwritten digits, and track the run.

    python examples/digits.py
    python examples/digits.py --backends tensorboard --epochs 5 --lr 0.05

Everything about tracking is in the calls on `tracker`; with another `--backends` (or none) not a line changes.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import trackhub

try:
    import joblib
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.linear_model import SGDClassifier
    from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support, roc_curve
    from sklearn.model_selection import train_test_split
except ModuleNotFoundError as error:
    raise SystemExit(
        f"this example needs {error.name}, which is not installed: python -m pip install scikit-learn"
    ) from None

CLASSES = list(range(10))
ROC_CLASS = 8  # the digit that is most easily mistaken for others


def main() -> None:
    arguments = parse_arguments()
    images, labels = load_digits(return_X_y=True)
    train_x, val_x, train_y, val_y = train_test_split(
        images / 16.0, labels, test_size=0.2, stratify=labels, random_state=arguments.seed
    )
    # Logistic regression, one class against the rest, trained by gradient steps on mini-batches.
    model = SGDClassifier(loss="log_loss", alpha=1e-4, learning_rate="constant", random_state=arguments.seed)

    params = {
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
        "seed": arguments.seed,
        "optimizer": {"name": "sgd", "lr": arguments.lr, "schedule": "cosine"},
        "model": {"kind": type(model).__name__, "loss": model.loss, "alpha": model.alpha},
        "data": {"name": "digits", "train": len(train_x), "val": len(val_x), "features": train_x.shape[1]},
    }
    with trackhub.init(
        project="digits",
        name="sgd",
        params=params,
        tags={"task": "classification", "dataset": "digits"},
        backends=arguments.backends,
    ) as tracker:
        train(tracker, model, (train_x, train_y), (val_x, val_y), arguments)
        evaluate(tracker, model, val_x, val_y)
        save(tracker, model)

    print_where_to_look(tracker)


def train(tracker: trackhub.Tracker, model: Any, training: Any, validation: Any, arguments: Any) -> None:
    (train_x, train_y), (val_x, val_y) = training, validation
    shuffled = np.random.default_rng(arguments.seed)
    steps = arguments.epochs * -(-len(train_x) // arguments.batch_size)
    step = 0
    for epoch in range(arguments.epochs):
        order = shuffled.permutation(len(train_x))
        for start in range(0, len(order), arguments.batch_size):
            batch = order[start : start + arguments.batch_size]
            lr = 0.5 * arguments.lr * (1 + np.cos(np.pi * step / steps)) + 1e-6
            model.set_params(eta0=lr)
            model.partial_fit(train_x[batch], train_y[batch], classes=CLASSES)
            loss, accuracy = score(model, train_x[batch], train_y[batch])
            tracker.log_metrics({"train/loss": loss, "train/accuracy": accuracy, "lr": lr}, step=step)
            step += 1
        loss, accuracy = score(model, val_x, val_y)
        tracker.log_metrics({"val/loss": loss, "val/accuracy": accuracy, "epoch": epoch}, step=step - 1)
        tracker.log_histogram("weights", model.coef_, step=step - 1)
        print(f"epoch {epoch + 1:3}/{arguments.epochs}  val/loss {loss:.4f}  val/accuracy {accuracy:.4f}")


def score(model: Any, x: Any, y: Any) -> tuple[float, float]:
    probabilities = np.clip(model.predict_proba(x), 1e-7, 1)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return log_loss(y, probabilities, labels=CLASSES), np.mean(probabilities.argmax(axis=1) == y)


def evaluate(tracker: trackhub.Tracker, model: Any, x: Any, y: Any) -> None:
    predicted = model.predict(x)
    tracker.log_confusion_matrix("val/confusion", CLASSES, confusion_matrix(y, predicted, labels=CLASSES))

    # As scikit-learn gives it, with the infinite threshold it starts with.
    fpr, tpr, thresholds = roc_curve(y == ROC_CLASS, model.decision_function(x)[:, ROC_CLASS])
    tracker.log_roc_curve(f"val/roc of {ROC_CLASS}", fpr, tpr, thresholds)

    measures = precision_recall_fscore_support(y, predicted, labels=CLASSES, zero_division=0)
    tracker.log_table(
        "val/per class", dict(zip(("digit", "precision", "recall", "f1", "support"), (CLASSES, *measures), strict=True))
    )
    tracker.log_image("learned weights", weights_as_picture(model.coef_))
    wrong = np.flatnonzero(predicted != y)
    tracker.log_text("val/summary", f"{len(wrong)} of {len(y)} validation digits are read wrongly.")
    if importlib.util.find_spec("matplotlib"):
        tracker.log_figure("val/mistakes", mistakes_figure(x[wrong], y[wrong], predicted[wrong]))


def weights_as_picture(weights: Any) -> Any:
    """The ten weight vectors as 8 x 8 pictures side by side, 0 to 1, every weight drawn as 8 x 8 pixels."""
    row = np.hstack([np.pad(digit.reshape(8, 8), 1) for digit in weights])
    largest = np.abs(row).max() or 1.0
    return np.kron(row / largest / 2 + 0.5, np.ones((8, 8)))


def mistakes_figure(digits: Any, actual: Any, predicted: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.2), layout="constrained")
    for place, axes in enumerate(figure.subplots(1, 8)):
        axes.axis("off")
        if place < len(digits):
            axes.imshow(digits[place].reshape(8, 8), cmap="gray_r")
            axes.set_title(f"{actual[place]} read as {predicted[place]}", fontsize=8)
    return figure


def save(tracker: trackhub.Tracker, model: Any) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "digits.joblib")
        joblib.dump(model, path)
        tracker.log_model(path, name="model")


def print_where_to_look(tracker: trackhub.Tracker) -> None:
    # `with` has waited for the deliveries; a second `finish` only gives their report back.
    report = tracker.finish()
    print(f"\nrun {tracker.id}: {'everything is delivered' if report else report}\nwhere to look:")
    for backend, link in tracker.links.items():
        print(f"  {backend:12} {link}")
    print(f"  {'terminal':12} trackhub show {tracker.id}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--backends", default="tensorboard,mlflow", help="names with commas between; empty for the journal alone"
    )
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.05, help="the learning rate at the start")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
