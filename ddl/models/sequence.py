"""Networks that read a sequence step by step, or as a bag of tokens: rnn, lstm, gru, text.

Attention is in transformer.py. A sequence is a row of whole-number tokens, or (steps, values) of measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ddl.models.blueprint import Problem
from ddl.models.zoo import dense_head
from ddl.nn import GRU, LSTM, RNN, Embedding, Reshape, Sequential, TokenMean
from ddl.nn.layer import Layer


def rnn(
    problem: Problem,
    *,
    units: int = 64,
    embedding: int = 64,
    dense: Sequence[int] = (),
    dropout: float = 0.0,
    padding: int = 0,
) -> Layer:
    """A recurrent network: at each step, state = tanh(x W + state U + b); the last state decides.

    The state is its only memory, and gradients through many steps shrink or grow, so it forgets quickly.
    An image is read row by row, a text token by token.

    units: width of the state. embedding: width of a token's vector (tokens only). dense: units of dense layers
    after the last state. dropout: before each dense layer. padding: the token that fills short texts, which leaves the
    state as it is (-1: there is none)."""
    return _recurrent("rnn", RNN, problem, units, embedding, padding, dense, dropout)


def lstm(
    problem: Problem,
    *,
    units: int = 64,
    embedding: int = 64,
    dense: Sequence[int] = (64,),
    dropout: float = 0.0,
    padding: int = 0,
) -> Layer:
    """Long short-term memory: a cell that gates keep, write and read, so that it can remember over many steps.

    The cell is changed by adding, not by multiplying, which keeps gradients alive through time.
    Options as in ``rnn``."""
    return _recurrent("lstm", LSTM, problem, units, embedding, padding, dense, dropout)


def gru(
    problem: Problem,
    *,
    units: int = 64,
    embedding: int = 64,
    dense: Sequence[int] = (64,),
    dropout: float = 0.0,
    padding: int = 0,
) -> Layer:
    """A gated recurrent unit: two gates instead of the LSTM's three and no cell; often as good, and smaller.

    Options as in ``rnn``."""
    return _recurrent("gru", GRU, problem, units, embedding, padding, dense, dropout)


def _recurrent(
    name: str,
    cell: Callable[..., Layer],
    problem: Problem,
    units: int,
    embedding: int,
    padding: int,
    dense: Sequence[int],
    dropout: float,
) -> Layer:
    layers: list[Layer] = []
    if len(problem.shape) == 1 and problem.fields["x"].dtype.kind in "iu":
        layers.append(embed(problem.need_vocabulary(name), embedding, padding))
    elif len(problem.shape) == 1:
        layers.append(Reshape((*problem.shape, 1)))
    elif len(problem.shape) > 2:  # an image: its rows are the steps
        layers.append(Reshape((problem.shape[0], problem.inputs // problem.shape[0])))
    layers.append(cell(units))
    return Sequential(*layers, *dense_head(problem.need_outputs(name), dense, dropout))


def text(
    problem: Problem,
    *,
    embedding: int = 64,
    dense: Sequence[int] = (64,),
    dropout: float = 0.0,
    padding: int = 0,
) -> Layer:
    """A bag of words with learned meanings: each token has a vector, a text is their mean, dense layers decide.

    The order of the tokens is lost, and yet for many topics this is hard to beat. It is fast: a step touches
    only the vectors of tokens that occur.

    embedding: width of a token's vector. dense, dropout: as in ``rnn``. padding: the token that fills short
    texts; it is left out of the mean (-1: none is)."""
    vocabulary = problem.need_vocabulary("text")
    last = dense_head(problem.need_outputs("text"), dense, dropout)
    return Sequential(embed(vocabulary, embedding, padding), TokenMean(), *last)


def embed(vocabulary: int, width: int, padding: int) -> Layer:
    """An embedding in which ``padding`` is no token; below 0 all are."""
    return Embedding(vocabulary, width, padding if padding >= 0 else None)
