"""Recipe: an optimizer. A frozen dataclass from outside the package with one slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ddl.optim import Optimizer


@dataclass(frozen=True)
class SignMomentum(Optimizer):
    """Move every parameter by lr in the direction of its averaged gradient (Bernstein et al., 2018: signum)."""

    lr: float = 0.02
    decay: float = 0.9
    weight_decay: float = 0.0

    slots: ClassVar[tuple[str, ...]] = ("trace",)

    def update(self, params, grads, slots, lr, step, scale):
        trace = slots["trace"]
        trace *= self.decay
        trace += (1 - self.decay) * (grads * scale + self.weight_decay * params)
        params -= lr * np.sign(trace)


def test_an_own_optimizer_learns_on_one_rank_and_on_three(trained):
    [(alone, results)] = trained(1, optimizer=SignMomentum())
    assert results["accuracy"] > 0.85
    for params, _ in trained(3, optimizer=SignMomentum()):
        np.testing.assert_allclose(params, alone, rtol=1e-9, atol=1e-12)


def test_the_first_step_of_the_own_optimizer_is_lr_against_the_sign_of_the_gradient():
    params, trace = np.zeros(4), np.zeros(4)
    SignMomentum(lr=0.5).update(params, np.array([3.0, -1.0, 0.0, 2.0]), {"trace": trace}, 0.5, 0, 1.0)
    assert params.tolist() == [-0.5, 0.5, 0.0, -0.5]
