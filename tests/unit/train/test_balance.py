"""train.balance: shards move to the ranks that compute faster, and nothing else changes."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddl.comm.threads import run_ranks
from ddl.data import Order, assign
from ddl.models import MLP, Supervised
from ddl.train.balance import Balancer, balanced


def after(speeds, shards, steps, noise=0.0, seed=0):
    """Share of the ideal throughput after ``steps`` steps of simulated ranks, and how many shards have moved."""
    random, ranks = np.random.default_rng(seed), len(speeds)
    plan, balancer, moves = assign(shards, ranks), Balancer(ranks), 0
    for _ in range(steps):
        seconds = np.array(plan.counts(ranks)) / speeds * random.normal(1, noise, ranks).clip(0.5)
        new = balancer.next(plan, seconds)
        if new is not None:
            moves += sum(a != b for a, b in zip(plan.owners, new.owners, strict=True))
            plan = new
    slowest = (np.array(plan.counts(ranks)) / speeds).max()
    return shards / sum(speeds) / slowest, moves


def test_one_rank_of_four_that_is_three_times_slower_costs_less_than_a_tenth_after_20_steps():
    assert after([1, 1, 1, 1 / 3], 96, 0)[0] < 0.42
    assert after([1, 1, 1, 1 / 3], 96, 20)[0] >= 0.9


@pytest.mark.parametrize("seed", range(5))
def test_equal_ranks_with_noise_of_a_tenth_do_not_move_shards(seed):
    assert after([1, 1, 1, 1], 96, 400, noise=0.1, seed=seed)[1] == 0


def test_unequal_ranks_with_noise_settle():
    share, moves = after([1, 1, 0.5, 2], 120, 400, noise=0.1)
    assert share > 0.85 and moves < 120


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(sum),
    most=st.integers(1, 50),
    data=st.data(),
)
def test_a_move_never_makes_the_slowest_rank_slower_and_leaves_every_rank_a_shard(counts, most, data):
    owners = tuple(rank for rank, count in enumerate(counts) for _ in range(count))
    seconds = np.array([data.draw(st.floats(1e-6, 1e3)) if count else np.nan for count in counts])
    got = balanced(owners, np.tile(seconds, (4, 1)), most)
    assert len(got) == len(owners) and sum(a != b for a, b in zip(owners, got, strict=True)) <= most
    assert all(rank in got for rank in owners)
    known = np.where(np.isnan(seconds), np.nanmedian(seconds), seconds)
    slowest = [(np.bincount(one, minlength=len(counts)) * known).max() for one in (owners, got)]
    assert slowest[1] <= slowest[0]


class Slow(Supervised):
    """A model that moves its rank's clock on by ``factor`` seconds a row."""

    def __init__(self, inner, clock, factor):
        self.__dict__.update(inner.__dict__)
        self.clock, self.factor = clock, factor

    def loss_and_gradients(self, params, buffers, batch, grads, ctx):
        self.clock.now = getattr(self.clock, "now", 0.0) + self.factor * len(batch["x"])
        return super().loss_and_gradients(params, buffers, batch, grads, ctx)


def test_a_job_gives_a_slow_rank_less_and_trains_the_same(whole_job, small_task, monkeypatch):
    clock = threading.local()  # ranks are threads
    monkeypatch.setattr("ddl.train.step.time", SimpleNamespace(perf_counter=lambda: getattr(clock, "now", 0.0)))
    model = small_task(MLP([5, 8, 2])).model

    def trained(balance):
        def work(group):
            slow = Slow(model, clock, 4 if group.rank == 1 else 1)
            return whole_job(group, model=slow, order=Order(50, 12, 24, 1), total_steps=40, balance=balance)

        (loop, problem), _ = run_ranks(2, work)
        assert problem is None
        return loop

    moved, still = trained(True), trained(False)
    assert moved.work.plan.counts(2) == [10, 2] and still.work.plan.counts(2) == [6, 6]
    assert moved.driver.recovery.owners == list(moved.work.plan.owners)
    for name, value in still.state.params.views.items():
        assert moved.state.params[name] == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert moved.state.progress.samples == still.state.progress.samples
