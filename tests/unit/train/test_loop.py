"""The training loop on thread-ranks: the same steps, samples and parameters at any number of ranks, deaths or not."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from ddl.arrays import Device, Layout
from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import run_ranks
from ddl.data import Arrays, Order
from ddl.errors import ConfigError, Diverged, UserCodeError
from ddl.fault.recover import RecoverySettings
from ddl.models import MLP
from ddl.models import build as build_model
from ddl.nn import BatchNorm, Dense, Dropout, ReLU, Sequential
from ddl.optim import Adam, Groups, Momentum
from ddl.train.loop import Loop
from ddl.train.signals import StepRequest
from ddl.train.state import TrainingState
from ddl.train.task import Task

SAMPLES, SHARDS, BATCH = 50, 6, 16


def dataset(seed=3, samples=SAMPLES):
    random = np.random.default_rng(seed)
    x = random.normal(size=(samples, 5)).astype(np.float64)
    y = (x[:, 0] + x[:, 1] > 0).astype(np.int64) + (x[:, 2] > 1)
    return x, y


def task(optimizer=None, steps=7, **changes):
    x, y = changes.pop("arrays", None) or dataset()
    source = Arrays(x, y)
    model = build_model(changes.pop("network", MLP([5, 8, 3])), source.fields, "cross_entropy", None)
    layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, "float64")
    order = Order(len(x), SHARDS, BATCH, 1)
    defaults = {
        "model": model,
        "train": source,
        "validation": Arrays(x[:20], y[:20]),
        "test": Arrays(x[20:33], y[20:33]),
        "order": order,
        "optimizer": Groups(layout, optimizer or Adam(lr=0.01)),
        "lr": lambda step: 0.01,
        "total_steps": steps,
        "dtype": "float64",
        "prefetch": 0,
        "evaluate_rows": 7,
    }
    return Task(**{**defaults, **changes})


def train(group, make=task, recovery=None, **changes):
    work = make(**changes)
    state = TrainingState(work.model, work.optimizer.slots, work.dtype, work.seed, Device())
    request = StepRequest()
    loop = Loop(work, group, Device(), state, request=request, recovery=recovery)
    try:
        failure = loop.train()
    finally:
        loop.close()
    return loop, failure


def parameters(result):
    return result[0].state.params.flat


@pytest.fixture(scope="module")
def alone():
    return run_ranks(1, train)[0]


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_any_number_of_ranks_ends_at_the_same_parameters(size, alone):
    for result in run_ranks(size, train):
        assert np.allclose(parameters(result), parameters(alone), rtol=1e-10, atol=1e-13)
        assert result[0].state.progress.step == 7
        for split in ("validation", "test"):
            mine, theirs = result[0].state.progress.results[split], alone[0].state.progress.results[split]
            assert mine["accuracy"] == theirs["accuracy"] and np.isclose(mine["loss"], theirs["loss"], rtol=1e-10)


def test_speed_is_that_of_the_steps_after_the_first(alone):
    loop = alone[0]
    assert loop.samples == 16 + 16 + 2 + 16 + 16 + 16 and loop.train_seconds > 0
    single = run_ranks(1, lambda group: train(group, steps=1))[0][0]
    assert single.samples == 16 and single.train_seconds > 0


def test_ranks_hold_the_same_bits():
    results = run_ranks(3, train)
    assert len({result[0].state.digest() for result in results}) == 1


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulated_micro_batches_make_the_same_step(parts, alone):
    for result in run_ranks(2, lambda g: train(g, parts=parts)):
        assert np.allclose(parameters(result), parameters(alone), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_death_at_any_point_of_a_job_changes_nothing(rank):
    # An epoch and the first step of the next; in an epoch's last step most shards have no sample.
    short = partial(train, steps=3, order=Order(SAMPLES, SHARDS, SAMPLES - 2, 1))
    alone, passed = run_ranks(1, short)[0], [0]

    def counting(number):
        def probe(point):
            passed[0] += number == rank

        return probe

    run_ranks(3, short, probe=counting)
    assert passed[0] > 80
    for count in range(1, passed[0] + 1):
        for result in run_ranks(3, short, death=Death(rank, count)):
            if isinstance(result, Killed):
                continue
            assert not isinstance(result, BaseException), (count, repr(result))
            assert result[1] is None and result[0].status == "finished"
            assert np.allclose(parameters(result), parameters(alone), rtol=1e-9, atol=1e-12), count
            assert (
                result[0].state.progress.results["test"]["accuracy"]
                == (alone[0].state.progress.results["test"]["accuracy"])
            )


@pytest.mark.parametrize("count", range(20, 120, 9))
def test_ranks_may_die_until_one_is_left(count, alone):
    deaths = [Death(0, count), Death(2, 2 * count), Death(3, 2 * count + 5)]
    survivors = [r for r in run_ranks(4, train, death=deaths) if not isinstance(r, Killed)]
    assert survivors
    for result in survivors:
        assert np.allclose(parameters(result), parameters(alone), rtol=1e-9, atol=1e-12)


def test_a_spare_takes_over(alone):
    results = run_ranks(2, train, spares=1, death=Death(0, 60))
    for result in results[1:]:
        assert np.allclose(parameters(result), parameters(alone), rtol=1e-9, atol=1e-12)
        assert result[0].group.size == 2


def test_a_poisoned_sample_costs_its_step_and_its_shard_is_named():
    x, y = dataset()
    x = x.copy()
    x[11, 2] = np.nan
    outcomes = []
    bad = Order(SAMPLES, SHARDS, BATCH, 1)
    shard = next(s for s in range(SHARDS) if 11 in bad.shard_range(s))
    results = run_ranks(3, lambda g: train(g, arrays=(x, y), steps=4, callbacks=[outcomes.append]))
    for loop, failure in results:
        assert failure is None
        assert loop.state.progress.skipped == 1 and np.isfinite(loop.state.params.flat).all()
    skipped = [outcome for outcome in outcomes if outcome.skipped]
    assert [outcome.bad_shards for outcome in skipped] == [(shard,)]
    assert [outcome.bad_value for outcome in skipped] == ["x of sample 11 is nan in column 2"]


def test_too_many_skipped_steps_in_a_row_end_the_job():
    x, y = dataset()
    poisoned = np.full_like(x, np.nan)
    for _, failure in run_ranks(2, lambda g: train(g, arrays=(poisoned, y), skip_limit=3)):
        assert isinstance(failure, Diverged) and "3 steps in a row" in str(failure)
        assert re.search(r"x of sample \d+ is nan in column 0", str(failure))


def damaged(group, where):
    """A training in which the ranks ``where`` change a parameter after step 2."""
    work = task(check_every=4, steps=6)
    state = TrainingState(work.model, work.optimizer.slots, work.dtype, work.seed, Device())
    loop = Loop(work, group, Device(), state)
    advance = loop.advance

    def advance_and_damage():
        advance()
        if group.rank in where and state.progress.step == 2:
            state.params.flat[0] += 1

    loop.advance = advance_and_damage
    return loop, loop.train()


def test_a_replica_that_differs_is_healed_from_the_majority():
    results = run_ranks(3, lambda g: damaged(g, [1]))
    assert len({loop.state.digest() for loop, _ in results}) == 1
    assert all(failure is None for _, failure in results)


def test_two_equal_halves_stop_the_job():
    for _, failure in run_ranks(2, lambda g: damaged(g, [1])):
        assert isinstance(failure, Diverged) and "no majority" in str(failure)


def test_the_same_exception_twice_ends_the_job():
    note = {"kind": "exception", "step": 3, "error": "ValueError: x", "traceback": "T"}
    settings = RecoverySettings(notes=lambda identity: note)
    results = run_ranks(3, lambda g: train(g, recovery=settings), death=[Death(1, 70), Death(2, 110)])
    survivors = [r for r in results if not isinstance(r, Killed)]
    assert survivors and all(isinstance(r[1], UserCodeError) for r in survivors)


def test_a_request_to_stop_ends_all_ranks_at_the_same_step():
    def stopping(group):
        work = task(steps=1000)
        state = TrainingState(work.model, work.optimizer.slots, work.dtype, work.seed, Device())
        request = StepRequest()

        loop = Loop(work, group, Device(), state, request=request)
        advance = loop.advance

        def advance_and_ask():
            advance()
            if group.rank == 1:
                request.stop = state.progress.step >= 5

        loop.advance = advance_and_ask
        return loop, loop.train()

    results = run_ranks(3, stopping)
    assert {loop.status for loop, _ in results} == {"stopped"}
    assert {loop.state.progress.step for loop, _ in results} == {6}  # requested after step 5, agreed in step 6


def test_momentum_is_the_same_on_three_ranks():
    one = run_ranks(1, lambda g: train(g, optimizer=Momentum(lr=0.01)))[0]
    for result in run_ranks(3, lambda g: train(g, optimizer=Momentum(lr=0.01))):
        assert np.allclose(parameters(result), parameters(one), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("size", [2, 3])
def test_batch_norm_is_the_same_on_any_number_of_ranks(size):
    for sync in (False, True):
        # Without bias: before a batch norm its gradient is rounding noise, which Adam would scale up.
        network = Sequential(Dense(8, bias=False), BatchNorm(sync=sync), Dropout(0.3), ReLU(), Dense(3))
        one = run_ranks(1, lambda g, n=network: train(g, network=n))[0]
        for result in run_ranks(size, lambda g, n=network: train(g, network=n)):
            assert result[1] is None
            assert np.allclose(parameters(result), parameters(one), rtol=1e-9, atol=1e-12)
            assert np.allclose(result[0].state.averages.flat, one[0].state.averages.flat, rtol=1e-9, atol=1e-12)


def test_synchronised_batch_norm_needs_a_shard_on_every_rank():
    network = Sequential(Dense(8), BatchNorm(sync=True), Dense(3))
    for _, failure in run_ranks(SHARDS + 1, lambda g: train(g, network=network)):
        assert isinstance(failure, ConfigError)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_death_at_any_point_of_giving_up_leaves_no_rank_behind(rank):
    x, y = dataset()
    poisoned = np.full_like(x, np.nan)
    options = {"arrays": (poisoned, y), "skip_limit": 2}
    passed = [0]

    def counting(number):
        def probe(point):
            passed[0] += number == rank

        return probe

    run_ranks(3, lambda g: train(g, **options), probe=counting)
    for count in range(1, passed[0] + 1):
        for result in run_ranks(3, lambda g: train(g, **options), death=Death(rank, count), wait_limit_s=5):
            if not isinstance(result, Killed):
                assert not isinstance(result, BaseException), (count, repr(result))
                assert isinstance(result[1], Diverged), count


def test_shards_that_no_rank_can_open_end_the_job_without_killing_ranks():
    class Broken(Arrays):
        def hold(self, ranges):
            if any(0 in r for r in ranges):
                raise OSError("stale file handle")
            super().hold(ranges)

    x, y = dataset()

    def make():
        return replace(task(), train=Broken(x, y))

    for result in run_ranks(3, lambda g: train(g, make=make)):
        assert isinstance(result[1], UserCodeError) and "stale file handle" in str(result[1])


def test_the_end_is_evaluated_even_if_it_is_not_the_end_of_an_epoch():
    loop, _ = run_ranks(2, lambda g: train(g, steps=6, evaluate_every=0))[0]
    progress = loop.state.progress
    assert progress.step == 6 and 6 % loop.task.order.steps_per_epoch
    assert progress.validated_at == progress.tested_at == 6 and progress.results["validation"]["samples"] == 20


def test_ranks_of_other_hardware_follow_the_leader(monkeypatch):
    from ddl.train import work as room

    kinds = iter(range(1000))
    monkeypatch.setattr(room, "hardware", lambda device: str(next(kinds)))
    results = run_ranks(3, lambda g: damaged(g, [1]))
    assert all(failure is None for _, failure in results)
    assert len({loop.state.digest() for loop, _ in results}) == 1
