"""Train a network of Flax with ddl.

pip install "ddl-mpi[jax]" flax
mpirun --with-ft ulfm -n 4 python launch/examples/flax_cnn.py

GroupNorm needs no more than parameters. How to use BatchNorm, and an optimizer of optax, is in docs/jax.md."""

from __future__ import annotations

import numpy as np

import ddl
import ddl.jax  # before jax: it gives XLA this rank's share of the cores

import flax.linen as nn
import jax
import jax.numpy as jnp


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.GroupNorm(num_groups=4)(nn.Conv(16, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def loss(params, batch):
    shares = jax.nn.log_softmax(CNN().apply(params, batch["x"]))
    return -jnp.take_along_axis(shares, batch["y"][:, None], axis=1).mean()


def main():
    digits = ddl.data.digits().arrays
    x, y = (digits["x"].reshape(-1, 8, 8, 1) / 16).astype("float32"), digits["y"]
    params = CNN().init(jax.random.key(0), x[:1])
    model = ddl.jax.Model(loss, params, predict=CNN().apply, metrics=["accuracy"])
    run = ddl.Trainer(
        model,
        (x[:1400], y[:1400]),
        validation=(x[1400:], y[1400:]),
        global_batch=96,
        optimizer=ddl.optim.Adam(lr=3e-3),
        settings={"run.name": "flax-example", "metrics.console_every_s": 0},
    )
    summary = run.fit(epochs=5)
    if run.group.is_leader:
        result = summary["validation"]
        guesses = np.asarray(CNN().apply(model.values, x[1400:1405])).argmax(1).tolist()
        print(f"{run.group.size} of {summary['ranks_started']} ranks, ", end="")
        print(f"accuracy {result['accuracy']:.4f}, loss {result['loss']:.5f}, first guesses {guesses}")


if __name__ == "__main__":
    main()
