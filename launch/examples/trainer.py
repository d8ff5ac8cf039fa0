"""Train from Python: the same training as by a job file, alone or under mpirun.

python launch/examples/trainer.py
mpirun -n 4 python launch/examples/trainer.py
"""

from __future__ import annotations

import numpy as np

import ddl


def main() -> None:
    digits = ddl.data.digits()
    x, y = digits.arrays["x"] / 16.0, digits.arrays["y"]
    order = np.random.default_rng(0).permutation(len(x))  # the same on every rank
    train, test = order[:1400], order[1400:]
    run = ddl.Trainer(
        model=ddl.models.MLP([64, 128, 10]),
        loss="cross_entropy",
        optimizer=ddl.optim.Adam(lr=2e-3),
        data=ddl.data.Arrays(x[train], y[train]),
        test=ddl.data.Arrays(x[test], y[test]),
        global_batch=64,
        schedule="cosine",
        settings={"run.name": "trainer-example", "metrics.console_every_s": 0},
    )
    summary = run.fit(epochs=15)
    held_out = run.evaluate((x[test], y[test]))  # on every rank, each a part of the samples
    guesses = run.predict(x[test][:5]).argmax(axis=1)
    if run.group.is_leader:
        print(f"{summary['ranks_started']} ranks, test accuracy {held_out['accuracy']:.4f}")
        print(f"first guesses {guesses.tolist()}, truth {y[test][:5].tolist()}")


if __name__ == "__main__":
    main()
