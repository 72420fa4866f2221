"""A training for the example: logistic regression on points in a plane, as slow as asked for, and as greedy."""

import argparse
import math
import random
import time

import trackhub

BATCH = 32
LEARNING_RATE = 0.2


def draw_points(count: int) -> list[tuple[float, float, int]]:
    """Points of two classes, each around a center of its own."""
    points = []
    for index in range(count):
        label = index % 2
        center = 1.0 if label else -1.0
        points.append((random.gauss(center, 1.0), random.gauss(-center, 1.0), label))
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long all steps take together, at least")
    parser.add_argument("--leak-mebibytes", type=int, default=0, help="memory that every step keeps for ever")
    arguments = parser.parse_args()

    random.seed(7)
    weights = [0.0, 0.0, 0.0]
    leak = []
    with trackhub.init(project="kubernetes", params={"steps": arguments.steps, "lr": LEARNING_RATE}) as tracker:
        tracker.log_text("data", f"{BATCH} fresh points a step, two Gaussians at (1, -1) and (-1, 1).")
        for step in range(arguments.steps):
            loss, correct = 0.0, 0
            for x, y, label in draw_points(BATCH):
                score = weights[0] + weights[1] * x + weights[2] * y
                guess = 1.0 / (1.0 + math.exp(-score))
                loss -= math.log(max(guess if label else 1.0 - guess, 1e-12))
                correct += (guess > 0.5) == bool(label)
                for index, value in enumerate((1.0, x, y)):
                    weights[index] += LEARNING_RATE / BATCH * (label - guess) * value
            tracker.log_metrics({"train/loss": loss / BATCH, "train/accuracy": correct / BATCH}, step=step)
            # Not zeros, which the kernel would not give memory for until they are changed.
            leak.append(b"x" * (arguments.leak_mebibytes << 20))
            time.sleep(arguments.seconds / arguments.steps)
        tracker.log_table("weights", {"weight": ["bias", "x", "y"], "value": weights})


if __name__ == "__main__":
    main()
