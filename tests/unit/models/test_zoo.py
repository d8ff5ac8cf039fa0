"""Every model of the zoo: gradients by central differences, announced once each, and the loss falls."""

from __future__ import annotations

import numpy as np
import pytest

from ddl import models, optim
from ddl.arrays import host
from ddl.errors import ConfigError
from ddl.models import MODELS


def test_gradients_agree_with_central_differences(zoo, name, xp):
    bench = zoo.Bench.of(name, 6, "float64", xp)
    rng = np.random.default_rng(1)
    for view in bench.params.views.values():  # biases away from 0, where ReLU has no slope to measure
        view += xp.asarray(rng.normal(0, 0.1, view.shape))
    bench.loss(grads=True)
    got = bench.gradients()
    size = max(np.abs(view).max() for view in got.values())
    for parameter, place in bench.some_places():
        numeric = bench.numeric(parameter, place)
        np.testing.assert_allclose(got[parameter][place], numeric, rtol=1e-5, atol=2e-7 * size, err_msg=parameter)


def test_every_gradient_is_announced_once(zoo, name, xp):
    bench = zoo.Bench.of(name, 6, "float32", xp)
    bench.grads.flat[...] = np.nan
    bench.loss(grads=True)
    assert sorted(n for n in bench.announced if n in bench.model.params) == sorted(bench.model.params)
    assert all(np.isfinite(gradient).all() for gradient in bench.gradients().values())


def test_the_loss_falls(zoo, name):
    losses = zoo.Bench.of(name, 64, "float32").train(optim.Adam(lr=0.03), 30)
    assert losses[-1] < 0.7 * losses[0]


def test_the_same_step_has_the_same_bits(zoo, name):
    bench = zoo.Bench.of(name, 8, "float32")
    first = bench.loss(grads=True, step=3), bench.grads.flat.copy()
    bench.loss(grads=True, step=4)
    again = bench.loss(grads=True, step=3), bench.grads.flat.copy()
    assert first[0][:2] == again[0][:2] and first[1].tobytes() == again[1].tobytes()


def test_shards_computed_apart_add_up_to_the_whole(zoo, name, xp):
    bench = zoo.Bench.of(name, 7, "float64", xp)
    loss, weight, sums = bench.loss(grads=True)
    together, whole = np.array(host(bench.grads.flat)), bench.batch
    parts = []
    for shard, rows in enumerate(bench.segments):
        bench.batch = {field: values[rows] for field, values in whole.items()}
        bench.ctx.begin([slice(0, rows.stop - rows.start)], [shard], 0)
        views = bench.params.views, bench.averages.views
        part = bench.model.loss_and_gradients(*views, bench.batch, bench.grads.views, bench.ctx)
        parts.append((part, np.array(host(bench.grads.flat))))
    np.testing.assert_allclose(sum(flat for _, flat in parts), together, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(sum(part[0] for part, _ in parts), loss)
    assert sum(part[1] for part, _ in parts) == weight
    for key, value in sums.items():
        np.testing.assert_allclose(sum(part[2][key] for part, _ in parts), value)


def test_each_model_of_the_table_is_tried(zoo):
    assert {model for model, *_ in zoo.PROBLEMS.values()} | {"gan"} == set(MODELS)


def test_linear_regression_finds_the_least_squares_solution(zoo):
    bench = zoo.Bench.of("linear", 50, "float64")
    bench.train(optim.SGD(lr=0.1), 400)
    x = np.c_[bench.batch["x"], np.ones(50)]
    want = np.linalg.lstsq(x, bench.batch["y"], rcond=None)[0]
    got = np.concatenate([bench.params["dense1.weight"].ravel(), bench.params["dense1.bias"]])
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_padding_does_not_count(zoo, xp):
    for name in ("text", "encoder"):
        bench = zoo.Bench.of(name, 6, "float64", xp)
        x = xp.asarray([[3, 4, 0, 0, 0, 0]] * 6)
        views = bench.params.views, bench.averages.views
        output = np.array(host(bench.model.predict(*views, {"x": x}, bench.ctx)["output"]))
        assert np.isfinite(output).all()
        if name == "text":  # a mean over two tokens is the same at any length
            again = bench.model.predict(*views, {"x": x[:, :2]}, bench.ctx)["output"]
            np.testing.assert_allclose(output, host(again), rtol=1e-12)


def test_a_decoder_sees_only_earlier_tokens(zoo, xp):
    bench = zoo.Bench.of("decoder", 4, "float64", xp)
    x = bench.batch["x"].copy()
    views = bench.params.views, bench.averages.views
    before = np.array(host(bench.model.predict(*views, {"x": x}, bench.ctx)["output"]))
    x[:, 4:] = xp.asarray((host(x[:, 4:]) + 3) % 7)
    after = host(bench.model.predict(*views, {"x": x}, bench.ctx)["output"])
    np.testing.assert_allclose(before[:, :4], after[:, :4], rtol=1e-12)
    assert not np.allclose(before[:, 4:], after[:, 4:])


def test_a_trained_decoder_counts_on(zoo, xp):
    bench = zoo.Bench.of("decoder", 32, "float32")
    bench.train(optim.Adam(lr=0.02), 120)
    params = bench.params.layout.views(xp.asarray(bench.params.flat))
    tell = lambda prompt, length, **options: list(  # noqa: E731
        models.next_tokens(bench.model, params, prompt, length, **options)
    )
    assert tell([5], 9, temperature=0) == [6, 0, 1, 2, 3, 4, 5, 6, 0]
    assert tell([2, 3], 5, temperature=0.3, top_k=2, seed=4) == tell([2, 3], 5, temperature=0.3, top_k=2, seed=4)
    assert tell([1, 2, 3], 3, top_k=1) == [4, 5, 6]
    for prompt, options in (([], {}), ([7], {}), ([1], {"temperature": -1})):
        with pytest.raises(ConfigError):
            tell(prompt, 1, **options)


def test_drawing_follows_the_scores():
    from ddl.models.generate import draw

    rng, shares = np.random.default_rng(0), np.array([0.5, 0.2, 0.3])
    counts = np.bincount([draw(np.log(shares), rng) for _ in range(4000)], minlength=3)
    np.testing.assert_allclose(counts / 4000, shares, atol=0.03)
    top = {draw(np.log(shares), rng, top_k=2) for _ in range(200)}
    assert top == {0, 2} and draw(np.log(shares), rng, temperature=0) == 0
