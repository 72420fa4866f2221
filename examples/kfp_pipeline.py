"""A Kubeflow pipeline that is tracked: prepare data, search for parameters, evaluate, report, and notify if need be.

    python examples/kfp_pipeline.py --backends kfp,mlflow                # runs here, without a cluster
    python examples/kfp_pipeline.py --backends kfp,mlflow --compile pipeline.yaml

The components only call `trackhub.init()` and log. What becomes of that is decided by variables on their tasks, set in
`tracked` below: with other `--backends` (or none) not a line of theirs changes.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import sklearn  # noqa: F401  # needed by the components, which run in processes of their own
    from kfp import compiler, dsl, local
    from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Markdown, Metrics, Model, Output
except ModuleNotFoundError as error:
    raise SystemExit(
        f"this example needs {error.name}, which is not installed: "
        'python -m pip install "trackhub-sdk[kfp]" scikit-learn'
    ) from None

from trackhub.integrations.kfp import track

PACKAGES = ["trackhub-sdk[mlflow,tensorboard]", "scikit-learn"]
"""What a pod installs, unless its image has it."""


def prepare(seed: int, digits: Output[Dataset], metrics: Output[Metrics], about: Output[Markdown]) -> None:
    """Split scikit-learn's handwritten digits into three parts."""
    from pathlib import Path

    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    import trackhub

    with trackhub.init(params={"seed": seed, "shares": {"val": 0.2, "test": 0.2}}) as tracker:
        x, y = load_digits(return_X_y=True)
        train_x, rest_x, train_y, rest_y = train_test_split(x / 16, y, test_size=0.4, stratify=y, random_state=seed)
        val_x, test_x, val_y, test_y = train_test_split(
            rest_x, rest_y, test_size=0.5, stratify=rest_y, random_state=seed
        )
        parts = {"train_x": train_x, "train_y": train_y, "val_x": val_x, "val_y": val_y}
        with Path(digits.path).open("wb") as file:
            np.savez(file, **parts, test_x=test_x, test_y=test_y)
        tracker.log_metrics({"rows/train": len(train_y), "rows/val": len(val_y), "rows/test": len(test_y)})
        tracker.log_artifact(digits.path, name="digits.npz")


def search(
    digits: Input[Dataset],
    epochs: int,
    seed: int,
    model: Output[Model],
    trials: Output[Artifact],
    metrics: Output[Metrics],
    curves: Output[HTML],
) -> None:
    """Train a small network with several parameters, a child run each, and keep the best."""
    import itertools
    import json
    from pathlib import Path

    import joblib
    import numpy as np
    from sklearn.metrics import log_loss
    from sklearn.neural_network import MLPClassifier

    import trackhub

    data = np.load(digits.path)
    best, outcomes = -1.0, []
    with trackhub.init(params={"epochs": epochs, "seed": seed}) as tracker:
        for number, (units, lr) in enumerate(itertools.product((16, 64), (0.0003, 0.003, 0.03))):
            params = {"hidden_units": units, "learning_rate": lr}
            network = MLPClassifier((units,), learning_rate_init=lr, batch_size=32, random_state=seed)
            with tracker.child(f"trial-{number}", params=params) as trial:
                for epoch in range(epochs):
                    network.partial_fit(data["train_x"], data["train_y"], classes=range(10))
                    loss = log_loss(data["val_y"], network.predict_proba(data["val_x"]))
                    accuracy = network.score(data["val_x"], data["val_y"])
                    trial.log_metrics(
                        {"train/loss": network.loss_, "val/loss": loss, "val/accuracy": accuracy}, step=epoch
                    )
            outcomes.append({"trial": trial.name, **params, "loss": loss, "accuracy": accuracy})
            if accuracy > best:
                best = accuracy
                joblib.dump(network, model.path)
                tracker.set_tags({"best_trial": trial.name})
            tracker.log_metrics({"trial/accuracy": accuracy, "best/accuracy": best}, step=number)
        Path(trials.path).write_text(json.dumps(outcomes), encoding="utf-8")
        tracker.log_artifact(trials.path, name="trials.json")
        tracker.log_model(model.path, name="network")


def evaluate(
    digits: Input[Dataset], model: Input[Model], metrics: Output[Metrics], quality: Output[ClassificationMetrics]
) -> float:
    """Measure the best network on digits that it has never seen; gives back its accuracy."""
    import joblib
    import numpy as np
    from sklearn.metrics import confusion_matrix, log_loss, roc_curve

    import trackhub

    data, network = np.load(digits.path), joblib.load(model.path)
    x, y, hardest = data["test_x"], data["test_y"], 8
    with trackhub.init() as tracker:
        probabilities = network.predict_proba(x)
        predicted = probabilities.argmax(axis=1)
        accuracy = np.mean(predicted == y)
        tracker.log_metrics({"test/accuracy": accuracy, "test/loss": log_loss(y, probabilities)})
        tracker.log_confusion_matrix("confusion", range(10), confusion_matrix(y, predicted))
        # As scikit-learn gives it, with the infinite threshold it starts with.
        tracker.log_roc_curve(f"roc of {hardest}", *roc_curve(y == hardest, probabilities[:, hardest]))
    return float(accuracy)


def compare(trials: Input[Artifact], accuracy: float, report: Output[HTML]) -> None:
    """Make a page that compares the trials."""
    import html
    import json
    from pathlib import Path

    import trackhub

    outcomes = json.loads(Path(trials.path).read_text(encoding="utf-8"))
    outcomes.sort(key=lambda outcome: outcome["accuracy"], reverse=True)
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in outcomes[0])
    rows = ""
    for outcome in outcomes:
        cells = "".join(
            f"<td>{html.escape(f'{value:.4g}' if isinstance(value, float) else str(value))}</td>"
            for value in outcome.values()
        )
        rows += f"<tr>{cells}<td><meter value='{outcome['accuracy']:.4f}'></meter></td></tr>\n"
    with trackhub.init() as tracker:
        tracker.log_html(
            "report",
            "<!doctype html><meta charset='utf-8'><title>Trials</title><h1>Trials</h1>"
            f"<p>The best one reads {accuracy:.1%} of the test digits right.</p>"
            f"<table><tr>{heads}<th></th></tr>\n{rows}</table>",
        )


def notify(webhook: str, accuracy: float, threshold: float, notice: Output[Markdown]) -> None:
    """Tell a webhook that the network falls short. One that is down is no reason to fail, but must be seen."""
    import http.client
    import json
    import urllib.request

    import trackhub

    text = f"digits: accuracy {accuracy:.4f} is below {threshold:.4f}"
    with trackhub.init() as tracker:
        try:
            body = json.dumps({"text": text, "accuracy": accuracy, "threshold": threshold, "run": tracker.id})
            request = urllib.request.Request(webhook, body.encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=10) as answer:
                outcome = f"told the webhook ({answer.status})"
        except (OSError, http.client.HTTPException, ValueError) as error:
            # Refused, timed out, an answer such as 404, no HTTP at all, no URL at all.
            outcome = f"the webhook was NOT told: {type(error).__name__}: {error}"
        print(f"{text}; {outcome}")
        tracker.set_tags({"notified": outcome})
        tracker.log_text("notice", f"{text}\n\n{outcome}\n")


def make_pipeline(backends: str, **setup: Any) -> Any:
    """The pipeline.

    Args:
        backends: What the tasks are given as TRACKHUB_BACKENDS.
        setup: What `dsl.component` is told of where the components run.
    """

    def tracked(function: Callable[..., Any], **inputs: Any) -> Any:
        """A task of a component; the one place that says where what it logs goes to."""
        task = dsl.component(function, **setup)(**inputs)
        task.set_env_variable("TRACKHUB_PROJECT", "digits")
        return track(task, backends.split(",")) if backends else task

    @dsl.pipeline(name="digits", description="Finds a small network that reads digits.")
    def digits_pipeline(epochs: int = 8, seed: int = 0, threshold: float = 0.95, webhook: str = "") -> None:
        digits = tracked(prepare, seed=seed).outputs["digits"]
        found = tracked(search, digits=digits, epochs=epochs, seed=seed)
        # Should its pod go away, the search begins anew and goes on with the same run.
        found.set_retry(num_retries=1)
        measured = tracked(evaluate, digits=digits, model=found.outputs["model"])
        accuracy = measured.outputs["Output"]
        tracked(compare, trials=found.outputs["trials"], accuracy=accuracy)
        with dsl.If(accuracy < threshold, name="falls-short"):
            tracked(notify, webhook=webhook, accuracy=accuracy, threshold=threshold)

    return digits_pipeline


def run_here(arguments: argparse.Namespace) -> None:
    """Run the pipeline with this interpreter, a process a task."""
    work = arguments.work_dir.resolve()
    # The components inherit these; on a cluster they are set on the tasks, or come with a secret or a config map.
    os.environ.setdefault("TRACKHUB_DIR", str(work / "trackhub"))
    os.environ.setdefault("TRACKHUB_TENSORBOARD_LOGDIR", str(work / "tensorboard"))
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{work}/mlflow.db")
    work.mkdir(parents=True, exist_ok=True)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(work / "pipeline"))

    pipeline = make_pipeline(arguments.backends, base_image=arguments.image, install_kfp_package=False)
    pipeline(epochs=arguments.epochs, seed=arguments.seed, threshold=arguments.threshold, webhook=arguments.webhook)
    print(f"\nwhere to look:\n  what KFP shows   {work / 'pipeline'}")
    print(f"  terminal         trackhub runs --dir {os.environ['TRACKHUB_DIR']}")


def compile_for_cluster(arguments: argparse.Namespace) -> None:
    pipeline = make_pipeline(arguments.backends, base_image=arguments.image, packages_to_install=PACKAGES)
    defaults = {name: getattr(arguments, name) for name in ("epochs", "seed", "threshold", "webhook")}
    compiler.Compiler().compile(pipeline, str(arguments.compile), pipeline_parameters=defaults)
    print(f"compiled: {arguments.compile}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backends", default="kfp", help="names with commas between; empty for the journal alone")
    parser.add_argument("--compile", type=Path, metavar="FILE", help="write the pipeline for a cluster, and do not run")
    parser.add_argument("--image", default="python:3.12-slim", help="what the pods of a cluster run in")
    parser.add_argument("--work-dir", type=Path, default=Path("kfp-pipeline"), help="where all that is written goes")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of a trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threshold", type=float, default=0.95, help="the accuracy below which the webhook is told")
    parser.add_argument("--webhook", default="", help="URL that takes JSON; whoever sees the pipeline run sees it")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = parse_arguments()
    compile_for_cluster(chosen) if chosen.compile else run_here(chosen)
