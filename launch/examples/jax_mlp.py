"""Train a JAX function with ddl: parameters are a pytree, the loss is a function, and ranks may die.

pip install "ddl-mpi[jax]"
python launch/examples/jax_mlp.py
mpirun --with-ft ulfm -n 4 python launch/examples/jax_mlp.py"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

import ddl
import ddl.jax  # before jax: it gives XLA this rank's share of the cores

import jax
import jax.numpy as jnp


def init(sizes=(64, 128, 64, 10), seed=0):
    random = np.random.default_rng(seed)
    return [
        {"weight": (random.standard_normal((a, b)) / a**0.5).astype("float32"), "bias": np.zeros(b, "float32")}
        for a, b in pairwise(sizes)
    ]


def predict(params, x):
    x = x.reshape(len(x), -1)
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["weight"] + layer["bias"])
    return x @ params[-1]["weight"] + params[-1]["bias"]


def loss(params, batch, key):
    """The mean over the samples. key: None in evaluation."""
    x = batch["x"].reshape(len(batch["x"]), -1)
    if key is not None:
        x = jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x / 0.9, 0)
    shares = jax.nn.log_softmax(predict(params, x))
    return -jnp.take_along_axis(shares, batch["y"][:, None], axis=1).mean()


def main():
    digits = ddl.data.digits().arrays
    x, y = (digits["x"] / 16).astype("float32"), digits["y"]
    model = ddl.jax.Model(loss, init(), predict=predict, metrics=["accuracy"])
    run = ddl.Trainer(
        model,
        (x[:1400], y[:1400]),
        validation=(x[1400:], y[1400:]),
        global_batch=96,
        optimizer=ddl.optim.Adam(lr=2e-3),
        settings={"run.name": "jax-example", "metrics.console_every_s": 0},
    )
    summary = run.fit(epochs=10)
    if run.group.is_leader:
        result = summary["validation"]
        # model.values holds the trained pytree, on every rank.
        guesses = np.asarray(predict(model.values, x[1400:1405])).argmax(1).tolist()
        print(f"{run.group.size} of {summary['ranks_started']} ranks, ", end="")
        print(f"accuracy {result['accuracy']:.4f}, loss {result['loss']:.5f}, first guesses {guesses}")


if __name__ == "__main__":
    main()
