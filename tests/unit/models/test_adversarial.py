"""The GAN: each network gets its own loss's gradient, shards determine the noise, and the seed the samples."""

from __future__ import annotations

import numpy as np
import pytest

from ddl.arrays import Arena, host
from ddl.errors import ConfigError
from ddl.models import GAN, build
from ddl.nn import BatchNorm, Dense, Sequential
from ddl.nn.context import Context
from ddl.optim import Adam, Groups, Rule


def bench(zoo, rows: int, dtype: str, xp=np, **options):
    batch = {"x": zoo.images(rows, 4, dtype)["x"]}
    settings = {"noise": 3, "generator_hidden": [6], "discriminator_hidden": [7], **options}
    return zoo.Bench(build("gan", zoo.fields_of(batch), options=settings), batch, dtype, xp)


@pytest.mark.parametrize("options", [{}, {"dropout": 0.0, "smoothing": 0.0, "output": "tanh"}, {"output": "sigmoid"}])
def test_each_network_has_the_gradient_of_its_own_loss(zoo, options, xp):
    b = bench(zoo, 6, "float64", xp, **options)
    # A pass without gradients draws dropout masks in another order: compare with passes that compute them.
    b.loss(grads=True)
    got = b.gradients()
    whole = b.loss
    b.loss = lambda: whole(grads=True)
    for name, place in b.some_places():
        own = name.split(".")[0] + "_loss"
        if own == "discriminator_loss" or options.get("dropout") == 0.0:
            numeric = b.numeric(name, place, of=lambda result, own=own: result[2][own])
            np.testing.assert_allclose(got[name][place], numeric, rtol=1e-5, atol=1e-7, err_msg=name)


def test_the_loss_is_binary_cross_entropy(zoo, xp):
    b = bench(zoo, 10, "float64", xp, dropout=0.0, smoothing=0.2)
    total, weight, sums = b.loss()
    judge = b.params.views.at("discriminator")
    b.ctx.begin(b.segments, [0, 1], 0)
    z = b.ctx.normal(10, 3).astype("float64")
    fake = b.model.generator.forward(b.params.views.at("generator"), z, b.ctx)[0].copy()
    logits = [np.array(host(b.model.discriminator.forward(judge, x, b.ctx)[0])) for x in (b.batch["x"], fake)]
    real, made = (1 / (1 + np.exp(-logit)) for logit in logits)
    assert weight == 10
    np.testing.assert_allclose(sums["generator_loss"], -np.log(made).sum())
    want = -(0.8 * np.log(real) + 0.2 * np.log(1 - real)).sum() - np.log(1 - made).sum()
    np.testing.assert_allclose(sums["discriminator_loss"], want)
    np.testing.assert_allclose(total, sums["generator_loss"] + sums["discriminator_loss"])
    np.testing.assert_allclose(b.model.metric_values(sums, weight)["real_score"], real.mean())


def test_a_shard_makes_the_same_samples_wherever_it_is_computed(zoo, xp):
    b = bench(zoo, 8, "float64", xp, dropout=0.0)
    together = b.loss(grads=True)[0]
    gradient = np.array(host(b.grads.flat))
    parts, batch = [], b.batch["x"]
    for shard in (0, 1):
        b.batch = {"x": batch[b.segments[shard]]}
        b.ctx.begin([slice(0, 4)], [shard], 0)
        result = b.model.loss_and_gradients(b.params.views, b.averages.views, b.batch, b.grads.views, b.ctx)
        parts.append((result[0], np.array(host(b.grads.flat))))
    np.testing.assert_allclose(parts[0][0] + parts[1][0], together)
    np.testing.assert_allclose(parts[0][1] + parts[1][1], gradient, atol=1e-12)


def test_the_generator_learns_the_mean_and_both_have_their_own_optimizer(zoo):
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal((2.0, -1.0), 0.3, size=(128, 2)).astype("float32")}
    options = {"noise": 2, "generator_hidden": [16], "discriminator_hidden": [16], "dropout": 0.0}
    b = zoo.Bench(build("gan", zoo.fields_of(batch), options=options), batch, "float32")
    groups = Groups(
        b.params.layout, Adam(lr=0.004, beta1=0.5), [Rule("discriminator.*", optimizer=Adam(lr=0.008, beta1=0.5))]
    )
    assert len(groups.ranges) == 2
    slots = {name: np.zeros_like(b.params.flat) for name in groups.slots}
    for step in range(400):
        _, weight, _ = b.loss(grads=True, step=step)
        groups.update(b.params.flat, b.grads.flat, slots, 0.004, step, 1 / weight)
    made = b.model.sample(b.params.views, b.averages.views, 500, seed=1)
    np.testing.assert_allclose(made.mean(axis=0), (2.0, -1.0), atol=0.5)


def test_samples_belong_to_their_seed(zoo, xp):
    b = bench(zoo, 4, "float32", xp)
    views = b.params.views, b.averages.views
    one, same, other = (np.array(host(b.model.sample(*views, 5, seed))) for seed in (1, 1, 2))
    assert one.shape == (5, 4, 4, 1) and (one == same).all() and not np.allclose(one, other)
    ctx = Context(segments=[slice(0, 4)], shards=[0], arena=Arena(xp))
    drawn = b.model.predict(*views, b.batch, ctx)["output"]
    assert drawn.shape == b.batch["x"].shape


def test_networks_that_do_not_fit_are_refused(zoo):
    fields = {"x": zoo.Field((4,), np.dtype("float32"))}
    for judge in (Sequential(Dense(2)), Sequential(BatchNorm(), Dense(1))):
        with pytest.raises(ConfigError, match="discriminator"):
            _ = build(GAN(Sequential(Dense(4)), judge, (4,)), fields).params
