"""Transformers: a decoder that predicts the next token, an encoder that classifies a text.

Attention is in nn/attention.py; generate.py draws text from a trained decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ddl.arrays import Array, Views, namespace_of
from ddl.errors import ConfigError
from ddl.models.blueprint import Blueprint, Problem
from ddl.models.sequence import embed
from ddl.models.zoo import head
from ddl.nn import (
    Dense,
    Dropout,
    Embedding,
    LayerNorm,
    MultiHeadAttention,
    PositionalEmbedding,
    Residual,
    Scale,
    Sequential,
    TokenMean,
)
from ddl.nn.context import Context
from ddl.nn.layer import Backward, Chain, Layer, Link, Shape, Spec, merged, prefixed


def transformer(
    problem: Problem,
    *,
    layers: int = 4,
    width: int = 128,
    heads: int = 4,
    dropout: float = 0.0,
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned",
    tied: bool = True,
    padding: int = 0,
) -> Blueprint:
    """A transformer: in each layer, attention combines the vectors of a text's tokens.

    The targets choose one of two. One target per token (y like x): a decoder, a language model that sees only the
    tokens to the left and gives scores for the next one. One target per text: an encoder, which sees the whole text
    and classifies the mean of its vectors.

    layers: blocks of attention and a dense part. width: of a token's vector, a multiple of heads. heads: attention
    heads in parallel. dropout: of the output of each part. positions: how the position of a token is encoded: by
    adding a "learned" or a "sinusoidal" vector, or by rotating queries and keys ("rotary": attention depends on the
    distance of two tokens; it learns fastest). tied (decoder): the same matrix embeds a token and scores it.
    padding (encoder): the token that fills up short texts and is left out of the mean (-1: none)."""
    vocabulary, outputs = problem.need_vocabulary("transformer"), problem.need_outputs("transformer")
    if heads < 1 or width % heads:
        raise ConfigError(f"transformer: width = {width} must be a multiple of heads = {heads}")
    is_decoder = len(outputs) == 2 and outputs[0] == problem.shape[0]
    blocks = [block(width, heads, dropout, is_decoder, positions == "rotary") for _ in range(layers)]
    # Token vectors have a norm of about 1, sinusoidal positions one of sqrt(width / 2), the output of a block one of
    # sqrt(width). Scaling keeps one from drowning the others; learned positions start small and find their own size.
    first: list[Layer] = [] if positions == "learned" else [Scale(width**0.5)]
    if positions != "rotary":
        first.append(PositionalEmbedding(kind=positions))
    trunk = Sequential(*first, *([Dropout(dropout)] if dropout else []), *blocks, LayerNorm())
    if not is_decoder:
        embedding = embed(vocabulary, width, padding)
        return Blueprint(Sequential(embedding=embedding, trunk=trunk, mean=TokenMean(), out=Sequential(*head(outputs))))
    if tied and outputs[1] != vocabulary:
        raise ConfigError(f"transformer: tied output needs as many classes ({outputs[1]}) as tokens ({vocabulary})")
    bits = ("bits_per_byte",) if vocabulary == 256 else ()
    return Blueprint(Decoder(vocabulary, width, trunk, tied), metrics=("accuracy", "perplexity", *bits))


def block(width: int, heads: int, dropout: float, causal: bool, rotary: bool) -> Layer:
    """One layer: attention, then a dense part of four times the width; each is added to its input.

    Normalised before each part (pre-norm), which trains without warm-up."""
    drop: list[Layer] = [Dropout(dropout)] if dropout else []
    return Sequential(
        attend=Residual(Sequential(LayerNorm(), MultiHeadAttention(heads, causal, rotary), *drop)),
        think=Residual(Sequential(LayerNorm(), Dense(4 * width, "gelu"), Dense(width), *drop)),
    )


@dataclass(frozen=True)
class TiedScores:
    """Vectors (rows, length, width) -> scores of tokens, by the matrix that embeds the tokens."""

    vocabulary: int
    name: str  # of the matrix

    def spec(self, shape: Shape) -> Spec:
        inner = Embedding(self.vocabulary, shape[-1]).spec(shape[:-1])
        return Spec((*shape[:-1], self.vocabulary), {self.name: inner.params["weight"]})

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        weight = params[self.name]
        # Embeddings of standard deviation 1/sqrt(width) make scores of order 1 of a normalised hidden vector.
        out = ctx.empty((*x.shape[:-1], self.vocabulary), weight.dtype)
        namespace_of(x).matmul(_rows(x), weight.T, out=_rows(out))
        return out, (x, ctx)

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        dx = self.slopes(params, cache, dy, grads[self.name])
        yield (self.name,)
        return dx

    def slopes(self, params: Views, cache: Any, dy: Array, into: Array) -> Array:
        """The gradient of the vectors; that of the matrix goes ``into`` an array."""
        (x, ctx), xp = cache, namespace_of(dy)
        xp.matmul(_rows(dy).T, _rows(x), out=into)
        dx = ctx.empty(x.shape, x.dtype)
        xp.matmul(_rows(dy), params[self.name], out=_rows(dx))
        return dx


@dataclass(frozen=True)
class Decoder(Chain):
    """Tokens (rows, length) -> scores of the next token (rows, length, vocabulary).

    tied: the embedding's matrix scores the tokens as well, so its gradient has two parts."""

    vocabulary: int
    width: int
    trunk: Layer
    tied: bool = True

    @property
    def embedding(self) -> Layer:
        return Embedding(self.vocabulary, self.width)

    @property
    def scores(self) -> Layer:
        return Dense(self.vocabulary)

    @property
    def tied_scores(self) -> TiedScores:
        return TiedScores(self.vocabulary, "embedding.weight")

    def links(self) -> Sequence[Link]:
        scores = Link("scores", self.tied_scores, "") if self.tied else Link("scores", self.scores, "scores")
        return [Link("embedding", self.embedding, "embedding"), Link("trunk", self.trunk, "trunk"), scores]

    def spec(self, shape: Shape) -> Spec:
        embedded = self.embedding.spec(shape)
        if self.tied:  # the scores' part of its gradient fills all rows
            embedded = replace(embedded, by_rows=())
        specs = {"embedding": embedded, "trunk": self.trunk.spec(embedded.output)}
        if not self.tied:
            specs["scores"] = self.scores.spec(embedded.output)
        return merged(specs, (*shape, self.vocabulary))

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        embedded, of_embedding = self.embedding.forward(params.at("embedding"), x, ctx)
        hidden, of_trunk = self.trunk.forward(params.at("trunk"), embedded, ctx)
        if not self.tied:
            out, of_scores = self.scores.forward(params.at("scores"), hidden, ctx)
        else:
            out, of_scores = self.tied_scores.forward(params, hidden, ctx)
        return out, (of_embedding, of_trunk, of_scores, ctx)

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        of_embedding, of_trunk, of_scores, ctx = cache
        if not self.tied:
            scores = self.scores.backward(params.at("scores"), grads.at("scores"), of_scores, dy)
            dy = yield from prefixed("scores", scores)
            as_output = None
        else:
            weight = params["embedding.weight"]
            as_output = ctx.empty(weight.shape, weight.dtype)
            dy = self.tied_scores.slopes(params, of_scores, dy, as_output)
        dy = yield from prefixed("trunk", self.trunk.backward(params.at("trunk"), grads.at("trunk"), of_trunk, dy))
        embedding = self.embedding.backward(params.at("embedding"), grads.at("embedding"), of_embedding, dy)
        if as_output is None:
            return (yield from prefixed("embedding", embedding))
        names, dx = exhausted(embedding)
        grads["embedding.weight"][...] += as_output
        yield [f"embedding.{name}" for name in names]
        return dx


def _rows(x: Array) -> Array:
    """(..., values) as (rows, values), without a copy."""
    return x.reshape(-1, x.shape[-1])


def exhausted(backward: Backward) -> tuple[list[str], Array]:
    """Run a part's backward to its end: (all names it announced, the input's gradient)."""
    names: list[str] = []
    while True:
        try:
            names += map(str, next(backward))
        except StopIteration as end:
            return names, end.value
