"""Sending only the touched rows of embedding gradients gives bitwise the results of sending whole tables."""

from unittest import mock

import numpy as np
import pytest

from ddl import nn
from ddl.arrays import Device, Layout
from ddl.comm.threads import run_ranks
from ddl.data import Arrays, Order
from ddl.models.model import Supervised
from ddl.models.transformer import Decoder
from ddl.nn.losses import CrossEntropy
from ddl.optim import Adam, Groups
from ddl.parallel import reducer
from ddl.parallel.sparse_rows import Touched
from ddl.train.loop import Loop
from ddl.train.state import TrainingState
from ddl.train.task import Task

WORDS = 400


def text(words=WORDS):
    return nn.Sequential(
        nn.Embedding(words, 4), nn.TokenMean(), nn.Dense(8, bias=False), nn.BatchNorm(sync=False), nn.Dense(3)
    )


def two_layers():
    return nn.Sequential(nn.Embedding(WORDS, 6), nn.LSTM(5), nn.Dense(3))


def unscored():
    return Decoder(WORDS, 4, nn.Sequential(nn.LayerNorm()), tied=False)


def tied():
    return Decoder(WORDS, 4, nn.Sequential(nn.LayerNorm()), tied=True)


def trained(group, network, *, steps=5, words=WORDS, **changes):
    """(parameters and running averages, the last outcome, on the leader) after some steps."""
    random = np.random.default_rng(5)
    x = random.integers(0, words, (26, 5))
    y = random.integers(0, WORDS, (26, 5)) if network in (unscored, tied) else random.integers(0, 3, 26)
    source = Arrays(x, y)
    model = Supervised(network(), CrossEntropy(), (5,))
    layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, "float32")
    outcomes = []
    defaults = {"validation": None, "test": None, "order": Order(26, 6, 6, 2)}
    task = Task(
        model=model,
        train=source,
        optimizer=Groups(layout, Adam()),
        lr=lambda step: 0.01,
        total_steps=steps,
        prefetch=0,
        callbacks=[outcomes.append],
        **{**defaults, **changes},
    )
    state = TrainingState(model, task.optimizer.slots, "float32", 0, Device())
    loop = Loop(task, group, Device(), state)
    try:
        problem = loop.train()
        assert problem is None, problem
    finally:
        loop.close()
    return np.concatenate([state.params.flat, state.averages.flat]), outcomes[-1:]


@pytest.fixture(autouse=True)
def small_tables_count():
    with mock.patch.multiple(reducer, SPARSE_BYTES=0, SPARSE_BYTES_BETWEEN_NODES=0):
        yield


def both_ways(size, network, nodes=None, can_share=True, **how):
    """What each rank ended with, by rows and whole; and how many sums of rows there were in a step of all ranks."""
    found, count = [], 0
    with mock.patch.object(Touched, "is_sparse", property(lambda touched: counted.append(few(touched)) or counted[-1])):
        for by_rows in (Supervised.by_rows, property(lambda model: ())):
            counted = []
            with mock.patch.object(Supervised, "by_rows", by_rows):
                found.append(
                    run_ranks(size, lambda group: trained(group, network, **how), nodes=nodes, can_share=can_share)
                )
            count = count or sum(counted)
    assert not counted  # nothing is asked where nothing is said
    return *found, count


few = Touched.is_sparse.fget


NETWORKS = [text, two_layers, unscored, tied]
RANKS = [
    (1, None, True),
    (2, None, True),
    (3, None, True),
    (2, None, False),
    (2, [0, 1], True),
    (4, [0, 0, 1, 1], True),
]


@pytest.mark.parametrize(
    ("network", "size", "nodes", "can_share", "overlap"),
    [  # each network and each placement of ranks, with and without overlap by turns
        (network, *ranks, ("on", "off")[(i + j) % 2])
        for i, network in enumerate(NETWORKS)
        for j, ranks in enumerate(RANKS)
    ],
)
def test_the_bits_equal_those_of_whole_tables(network, size, nodes, can_share, overlap):
    how = {"overlap": overlap, "bucket_mib": 1e-4}
    by_rows, whole, sparse = both_ways(size, network, nodes, can_share, **how)
    assert (sparse > 0) == (size > 1 and network is not tied)
    for (ours, _), (theirs, _) in zip(by_rows, whole, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("change", [{"parts": 3}, {"clip_norm": 0.01}, {"order": Order(26, 2, 6, 2)}], ids=str)
@pytest.mark.parametrize(("nodes", "can_share"), [(None, True), (None, False), ([0, 0, 1], True)])
def test_accumulation_clipping_and_ranks_without_work(change, nodes, can_share):
    by_rows, whole, sparse = both_ways(3, text, nodes, can_share, **change)
    assert sparse > 0
    for (ours, our_steps), (theirs, their_steps) in zip(by_rows, whole, strict=True):
        assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        assert np.allclose([s.gradient_norm for s in our_steps], [s.gradient_norm for s in their_steps], rtol=1e-5)


def test_a_batch_that_touches_most_rows_sends_the_whole_table():
    by_rows, whole, sparse = both_ways(2, lambda: text(10), order=Order(26, 2, 26, 2), words=10)
    assert sparse == 0
    assert np.array_equal(by_rows[0][0], whole[0][0])
