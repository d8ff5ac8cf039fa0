"""A generative adversarial network: two networks in one model, both gradients in one step.

Two optimizers are two groups by name: ``generator.*`` and ``discriminator.*`` (optim.groups)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Literal

import numpy as np

from ddl.arrays import Arena, Array, Views, generator, namespace_of
from ddl.errors import ConfigError
from ddl.models.blueprint import Problem
from ddl.models.model import Batch, Model, Sums
from ddl.nn import Dense, Dropout, LeakyReLU, Reshape, Sequential, Sigmoid, Tanh
from ddl.nn.context import Context
from ddl.nn.layer import Average, Initialiser, Layer, Shape, Spec, merged

_STEP_SUMS = ("generator_loss", "discriminator_loss", "real_score", "fake_score")


def gan(
    problem: Problem,
    *,
    noise: int = 64,
    generator_hidden: Sequence[int] = (128, 256),
    discriminator_hidden: Sequence[int] = (256, 128),
    smoothing: float = 0.1,
    dropout: float = 0.3,
    output: Literal["linear", "tanh", "sigmoid"] = "linear",
) -> GAN:
    """The generator turns noise into samples; the discriminator learns to distinguish them from real ones.

    The generator maximises the discriminator's score of its samples (the non-saturating loss, whose gradient does not
    vanish while the discriminator is ahead). Goodfellow et al., 2014. A discriminator that is too good teaches the
    generator nothing, so smoothing and dropout hold it back.

    noise: how many normal numbers per sample is made from. generator_hidden, discriminator_hidden: units of the dense
    layers. smoothing: real samples count as 1 - smoothing. dropout: in the discriminator. output: the range of the
    data, "tanh" for -1 .. 1, "sigmoid" for 0 .. 1, "linear" for normalised data."""
    generator: list[Layer] = []
    for units in generator_hidden:
        generator += [Dense(units), LeakyReLU(0.2)]
    generator += [Dense(prod(problem.shape)), *_RANGE[output], Reshape(problem.shape)]
    discriminator: list[Layer] = [Reshape((prod(problem.shape),))]
    for units in discriminator_hidden:
        discriminator += [Dense(units), LeakyReLU(0.2), *([Dropout(dropout)] if dropout else [])]
    discriminator.append(Dense(1))
    return GAN(Sequential(*generator), Sequential(*discriminator), tuple(problem.shape), noise, smoothing)


_RANGE: Mapping[str, Sequence[Layer]] = {"linear": (), "tanh": (Tanh(),), "sigmoid": (Sigmoid(),)}


@dataclass(frozen=True)
class GAN(Model):
    """Two networks trained against each other, as one Model.

    generator: (noise,) -> shape. discriminator: shape -> (1,), a logit that a sample is real; it may not have
    running averages, since it sees real and generated samples alternately.

    Both losses are taken at the same parameters, so the two updates are one transaction. Noise belongs to
    shards: the rows of a segment are drawn from that shard's generator."""

    generator: Layer
    discriminator: Layer
    shape: Shape
    noise: int = 64
    smoothing: float = 0.1
    _spares: list[tuple[Views, Views]] = field(default_factory=list, repr=False, compare=False)

    @cached_property
    def spec(self) -> Spec:
        forger, judge = self.generator.spec((self.noise,)), self.discriminator.spec(self.shape)
        if forger.output != self.shape or judge.output != (1,) or judge.averages:
            raise ConfigError(
                f"GAN: the generator gives {forger.output} for samples of {self.shape}; the discriminator gives "
                f"{judge.output} where (1,) is needed, and may not have running averages: it has {len(judge.averages)}"
            )
        return merged({"generator": forger, "discriminator": judge}, self.shape)

    @property
    def params(self) -> Mapping[str, tuple[Shape, Initialiser]]:
        return self.spec.params

    @property
    def averages(self) -> Mapping[str, Average]:
        return self.spec.averages

    @property
    def synchronised(self) -> bool:
        return bool(self.spec.synchronised)

    @property
    def generates(self) -> bool:
        return True

    @property
    def networks(self) -> Mapping[str, tuple[Layer, Shape]]:
        return {"generator": (self.generator, (self.noise,)), "discriminator": (self.discriminator, self.shape)}

    @property
    def samples_per_shard(self) -> int:
        return int(self.spec.samples_per_shard)

    @property
    def step_metrics(self) -> Sequence[str]:
        return _STEP_SUMS

    def loss_and_gradients(
        self, params: Views, buffers: Views, batch: Batch, grads: Views | None, ctx: Context
    ) -> tuple[float, float, Sums]:
        """The loss is the sum of both losses; each network gets only its own loss's gradient."""
        x = batch["x"]
        rows, xp = len(x), namespace_of(x)
        state = Views({**params, **buffers}) if buffers else params
        of_generator, of_discriminator = state.at("generator"), state.at("discriminator")
        z = self._noise(ctx, rows, next(iter(params.values())).dtype)
        ctx.data = z
        fake, of_fake = self.generator.forward(of_generator, z, ctx)

        # The generator's gradient: how the discriminator's score of the fake samples changes with them.
        logits, cache = self.discriminator.forward(of_discriminator, fake, ctx)
        fake_belief = _sigmoid(logits)
        generator_loss = _softplus_sum(-logits)
        fake_loss = _softplus_sum(logits)
        names: list[str] = []
        if grads is not None:
            spare = self._spare(grads, xp)
            d_fake = _finish(self.discriminator.backward(of_discriminator, spare, cache, fake_belief - 1), [])
            final: list[str] = []
            _finish(self.generator.backward(of_generator, grads.at("generator"), of_fake, d_fake), final)
            ctx.announce([f"generator.{name}" for name in final])

            # The discriminator's gradient on the same samples; a second pass, since backward may overwrite its cache.
            ctx.data = fake
            logits, cache = self.discriminator.forward(of_discriminator, fake, ctx)
            fake_belief, fake_loss = _sigmoid(logits), _softplus_sum(logits)
            _finish(self.discriminator.backward(of_discriminator, spare, cache, fake_belief.copy()), [])
        ctx.data = x
        logits, cache = self.discriminator.forward(of_discriminator, x, ctx)
        real_belief = _sigmoid(logits)
        real_loss = _softplus_sum(-logits) + self.smoothing * float(logits.sum())
        sums = {
            "generator_loss": generator_loss,
            "discriminator_loss": real_loss + fake_loss,
            "real_score": float(real_belief.sum()),
            "fake_score": float(fake_belief.sum()),
        }
        if grads is not None:
            own = grads.at("discriminator")
            d_logits = real_belief - (1 - self.smoothing)
            _finish(self.discriminator.backward(of_discriminator, own, cache, d_logits), names)
            for name, gradient in own.items():
                gradient += spare[name]
            ctx.announce([f"discriminator.{name}" for name in names])
        return generator_loss + real_loss + fake_loss, float(rows), sums

    def predict(self, params: Views, buffers: Views, batch: Batch, ctx: Context) -> Mapping[str, Array]:
        """One generated sample per row: from batch["noise"] (rows, noise) if given, else from noise drawn by ctx."""
        of = next(iter(params.values()))
        z = batch["noise"] if "noise" in batch else self._noise(ctx, len(batch["x"]), of.dtype)
        state = Views({**params, **buffers}) if buffers else params
        return {"output": self.generator.forward(state.at("generator"), z, ctx)[0]}

    def sample(self, params: Views, buffers: Views, count: int, seed: int = 0) -> Array:
        of = next(iter(params.values()))
        xp = namespace_of(of)
        z = generator(seed, "samples").standard_normal((count, self.noise))
        ctx = Context(segments=[slice(0, count)], shards=[0], seed=seed, arena=Arena(xp))
        return self.predict(params, buffers, {"noise": xp.asarray(z.astype(of.dtype))}, ctx)["output"]

    def _noise(self, ctx: Context, rows: int, dtype: np.dtype) -> Array:
        return ctx.normal(rows, self.noise).astype(dtype, copy=False)

    def _spare(self, grads: Views, xp: Any) -> Views:
        """Room for a second gradient of the discriminator; kept, since each step needs it."""
        for of, spare in self._spares:
            if of is grads:
                return spare
        spare = Views({name: xp.empty_like(g) for name, g in grads.at("discriminator").items()})
        self._spares[:] = [(grads, spare)]
        return spare


def _finish(backward: Any, names: list[str]) -> Array:
    """Run a backward to its end; its names are added to ``names``."""
    while True:
        try:
            names += next(backward)
        except StopIteration as end:
            return end.value


def _sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1 + namespace_of(x).tanh(0.5 * x))


def _softplus_sum(x: Array) -> float:
    """The sum of log(1 + exp(x)) without overflow."""
    return float(namespace_of(x).logaddexp(0, x).sum())
