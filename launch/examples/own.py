"""Write your own data source, model, loss, metric and callback. own.toml uses them by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl import nn
from ddl.data import Arrays


def rings(samples: int = 1000, noise: float = 0.1, seed: int = 0) -> Arrays:
    """Points on two rings, one inside the other: x (2,), y which ring.

    Arrays in memory are the simplest source. For larger data, write a class with ``fields``, ``__len__``, ``hold``
    and ``gather`` (ddl.data.Source); ``hold`` asks a rank for its own samples only."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 2, samples)
    angle, radius = random.uniform(0, 2 * np.pi, samples), 1 + y + noise * random.standard_normal(samples)
    return Arrays(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), y)


def network(problem, *, hidden: int = 32) -> nn.Layer:
    """Build a network for the data: ``problem`` describes the inputs and the outputs."""
    return nn.Sequential(nn.Dense(hidden, "relu"), nn.Dense(hidden, "relu"), nn.Dense(problem.outputs[0]))


@dataclass(frozen=True)
class Focal:
    """Cross-entropy that gives well-classified samples less weight: -(1 - p)^gamma log p (Lin et al., 2017)."""

    gamma: float = 2.0

    def forward(self, outputs, targets, ctx):
        """(sum of the loss, weight, cache for backward): the SUM over samples, never the mean."""
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        shares = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
        rows = np.arange(len(targets))
        p = np.maximum(shares[rows, targets], 1e-7)
        loss = -((1 - p) ** self.gamma) * np.log(p)
        # d loss / d p, then through the softmax.
        slope = self.gamma * (1 - p) ** (self.gamma - 1) * np.log(p) - (1 - p) ** self.gamma / p
        gradient = -shares * (slope * p)[:, None]
        gradient[rows, targets] += slope * p
        return float(loss.sum()), float(len(targets)), gradient.astype(outputs.dtype)

    def backward(self, cache):
        return cache


class Confidence:
    """Mean probability of the predicted class. A metric is computed from sums over samples."""

    name = "confidence"
    every_step = 2  # how many numbers are summed at each training step; 0: in evaluation only

    def sums(self, outputs, targets, loss):
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        return np.array([(1 / np.exp(shifted).sum(axis=1)).sum(), len(outputs)], np.float64)

    def value(self, sums, weight):
        return float(sums[0] / sums[1])


def log_loss(step) -> None:
    """Called after every committed step, on the leading rank only."""
    if step.step % 50 == 0:
        with open(Path("losses.txt"), "a", encoding="utf-8") as file:
            file.write(f"{step.step} {step.loss:.4f}\n")
