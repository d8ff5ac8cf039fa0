"""Generate text with a trained decoder: each token is drawn from the scores given by the tokens before it.

The decoder is in transformer.py; ddl/data turns bytes, characters and tokens into numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from ddl.arrays import Arena, Views, generator, host, namespace_of
from ddl.errors import ConfigError
from ddl.models.model import Model, Supervised
from ddl.nn.context import Context


class Symbols(Protocol):
    """Converts text to token numbers and back; implemented by the corpora of ddl/data."""

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, numbers: np.ndarray) -> str: ...


class Numbers:
    """Tokens of which only the numbers are known, written with spaces between them."""

    def encode(self, text: str) -> np.ndarray:
        try:
            return np.array([int(word) for word in text.split()], np.int64)
        except ValueError as error:
            raise ConfigError(
                f"this model knows tokens by their numbers alone: the prompt {text!r} is not one or more of them, "
                'such as "17 4"'
            ) from error

    def decode(self, numbers: np.ndarray) -> str:
        return " ".join(str(number) for number in np.asarray(numbers).tolist())


def generate(
    model: Model,
    params: Views,
    prompt: str,
    *,
    tokens: int = 200,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    symbols: Symbols = Numbers(),  # noqa: B008 - it has no state
) -> str:
    """``prompt`` and its continuation by a trained decoder, ``tokens`` long.

    symbols: how text is numbered. An empty prompt is the start of a file. Other options as in ``next_tokens``.
    Raises ConfigError for a model that is not a decoder."""
    _window(model)
    first = symbols.encode(prompt) if prompt else np.zeros(1, np.int64)
    drawn = next_tokens(model, params, first, tokens, temperature=temperature, top_k=top_k, seed=seed)
    return symbols.decode(np.array([*(first if prompt else []), *drawn], np.int64))


def _window(model: Model) -> tuple[int, int]:
    """(length of the context, size of the vocabulary); raises ConfigError for a model that is not a decoder."""
    if isinstance(model, Supervised) and len(model.spec.output) == 2 and model.shape == model.spec.output[:1]:
        return model.spec.output[0], model.spec.output[1]
    raise ConfigError("only a language model (a transformer that predicts each next token) can continue a prompt")


def next_tokens(
    model: Model,
    params: Views,
    prompt: Sequence[int] | np.ndarray,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> Iterator[int]:
    """Yield ``length`` tokens that follow ``prompt`` (at least one token).

    temperature: 0 always takes the likeliest token (greedy); 1 draws from the model's own distribution; below 1
    more careful, above 1 wilder. top_k: draw among the k likeliest only (0: among all). The same seed draws the
    same tokens. The model sees as many of the last tokens as it was trained on."""
    if len(prompt) == 0 or temperature < 0 or top_k < 0:
        raise ConfigError(
            f"generation needs a prompt of at least one token ({len(prompt)}), "
            f"temperature >= 0 ({temperature}) and top_k >= 0 ({top_k})"
        )
    window, vocabulary = _window(model)
    tokens = [int(token) for token in prompt]
    if not all(0 <= token < vocabulary for token in tokens):
        raise ConfigError(f"the prompt holds tokens outside 0 .. {vocabulary - 1}")
    xp = namespace_of(next(iter(params.values())))
    nothing, random, ctx = Views({}), generator(seed, "generate"), Context(seed=seed, arena=Arena(xp))
    for step in range(length):
        seen = tokens[-window:]
        # Attention is causal, so padding on the right changes nothing and gives every pass the same shapes.
        row = np.zeros((1, window), np.int64)
        row[0, : len(seen)] = seen
        ctx.begin([slice(0, 1)], [0], step)
        scores = model.predict(params, nothing, {"x": xp.asarray(row)}, ctx)["output"]
        token = draw(host(scores[0, len(seen) - 1]).astype(np.float64), random, temperature, top_k)
        tokens.append(token)
        yield token


def draw(scores: np.ndarray, random: np.random.Generator, temperature: float = 1.0, top_k: int = 0) -> int:
    """One token by its ``scores`` (vocabulary,), as in ``generate``."""
    if temperature == 0:
        return int(np.argmax(scores))
    chosen = np.argsort(-scores, kind="stable")[: top_k or None]
    shares = np.exp((scores[chosen] - scores[chosen[0]]) / temperature)
    return int(chosen[np.searchsorted(np.cumsum(shares) / shares.sum(), random.random(), side="right")])
