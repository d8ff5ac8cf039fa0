"""A loop of PyTorch around ddl.torch.State survives deaths and ends at what one process computes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F
from torch import nn

import ddl.torch
from ddl import elastic
from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import run_ranks
from ddl.data import Order
from ddl.errors import Diverged, UserError

SAMPLES, BATCH, SHARDS, EPOCHS = 30, 12, 6, 2

OPTIMIZERS = {
    "momentum with dampening": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.3),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.02),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.02),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.02),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 0.02),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.sometimes, self.unused = nn.Linear(5, 3), nn.Linear(3, 3), nn.Linear(2, 2)

    def forward(self, x, twice):
        y = torch.tanh(self.out(x))
        return self.sometimes(y) if twice else y


def parts(make, kind="AdamW"):
    net = make(Net)
    optimizer = OPTIMIZERS[kind](net.parameters())
    return net, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


def loss_sum(net, rows, points, step):
    x, y = (torch.from_numpy(value[rows]) for value in points)
    return F.cross_entropy(net(x, step % 2 == 0), y, reduction="sum")


def job(group, make, points, kind="AdamW"):
    net, optimizer, scheduler = parts(make, kind)
    state = ddl.torch.State(net, optimizer, scheduler)

    def train(state, world):
        for rows in world.batches(SAMPLES, global_batch=BATCH, epochs=EPOCHS):
            optimizer.zero_grad()
            loss_sum(net, rows, points, state.steps).backward()
            state.update(len(rows))
        return world.size

    elastic.run(train, state, shards=SHARDS, group=group)
    return net, optimizer, state


def by_pytorch(make, points, kind="AdamW"):
    net, optimizer, scheduler = parts(make, kind)
    order = Order(SAMPLES, SHARDS, BATCH, 0)
    for step in range(EPOCHS * order.steps_per_epoch):
        rows, _ = order.indices(*divmod(step, order.steps_per_epoch), range(SHARDS))
        optimizer.zero_grad()
        (loss_sum(net, rows, points, step) / len(rows)).backward()
        optimizer.step()
        scheduler.step()
    return net


def assert_equal(net, wanted):
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_any_optimizer_gives_the_same_result_on_any_number_of_ranks(fresh, points, kind):
    wanted = by_pytorch(fresh, points, kind)
    assert not torch.equal(wanted.out.weight, fresh(Net).out.weight)
    for ranks in (1, 2, 3):
        for net, optimizer, state in run_ranks(ranks, lambda group: job(group, fresh, points, kind)):
            assert_equal(net, wanted)
            assert state.steps == state.commits == 6 and optimizer.param_groups[0]["lr"] < 0.05


@pytest.mark.parametrize("rank", [0, 2])
def test_a_death_at_any_point_changes_nothing(fresh, points, rank):
    wanted = by_pytorch(fresh, points)
    for count in range(1, 100, 9):
        results = run_ranks(3, lambda group: job(group, fresh, points), death=Death(rank, count))
        if not isinstance(results[rank], Killed):
            break
        for result in results:
            if not isinstance(result, Killed):
                assert_equal(result[0], wanted)
    assert count > 30


def test_all_ranks_begin_with_the_module_of_the_first(fresh, points):
    def own(group):
        def drawn(kind):
            net = fresh(kind)
            with torch.no_grad():
                net.out.weight.add_(group.rank)
            return net

        return job(group, drawn, points)

    for net, _, _ in run_ranks(2, own):
        assert_equal(net, by_pytorch(fresh, points))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.norm(x))


def test_running_statistics_are_averaged_and_counters_agree(fresh, points):
    x, y = map(torch.from_numpy, points)

    def normed(group):
        net = fresh(Normed)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        state = ddl.torch.State(net, optimizer)

        def train(state, world):
            for rows in world.batches(SAMPLES, global_batch=SAMPLES):
                F.cross_entropy(net(x[rows]), y[rows], reduction="sum").backward()
                state.update(len(rows))

        elastic.run(train, state, shards=SHARDS, group=group)
        return net.norm

    for norm in run_ranks(2, normed):
        torch.testing.assert_close(norm.running_mean, 0.1 * x[:SAMPLES].mean(0))
        assert norm.num_batches_tracked == 1


def test_modules_that_differ_between_ranks_are_noticed(fresh, points):
    def diverging(group):
        net, optimizer, _ = parts(fresh)
        state = ddl.torch.State(net, optimizer)

        def train(state, world):
            for rows in world.batches(SAMPLES, global_batch=BATCH):
                optimizer.zero_grad()
                loss_sum(net, rows, points, state.steps).backward()
                if state.steps == 1:
                    with torch.no_grad():
                        net.out.bias[group.rank] += 1
                state.update(len(rows))

        elastic.run(train, state, shards=SHARDS, group=group, check_every=2)

    for error in run_ranks(2, diverging):
        assert isinstance(error, Diverged) and "the module's out.bias" in str(error)


def test_gradients_can_be_clipped_between_average_and_update(fresh, points):
    net, optimizer, _ = parts(fresh)
    state = ddl.torch.State(net, optimizer)
    loss_sum(net, np.arange(6), points, 0).backward()
    state.average(6)
    norm = nn.utils.clip_grad_norm_([p for p in net.parameters() if p.grad is not None], 1e-3)
    before = net.out.weight.grad.clone()
    state.update()
    assert norm > 1e-3 and torch.equal(net.out.weight.grad, before) and state.commits == 1


def test_invalid_arguments_are_named(fresh, points):
    net, optimizer, scheduler = parts(fresh)
    with pytest.raises(UserError, match="cannot be called 'update'"):
        ddl.torch.State(net, optimizer, update=1)
    with pytest.raises(UserError, match="cannot be called 'commit'"):
        elastic.State(commit=1)
    with pytest.raises(UserError, match="is not the module's"):
        ddl.torch.State(nn.Linear(2, 2), optimizer)
    state = ddl.torch.State(net, optimizer, scheduler, best=3.5)
    assert state.best == 3.5
    with pytest.raises(UserError, match="number of samples"):
        state.update()
    with pytest.raises(UserError, match="add up to 0"):
        state.update(0)


def test_a_batch_that_was_not_counted_is_named():
    def train(state, world):
        for _ in world.batches(SAMPLES, global_batch=BATCH):
            state.commit()

    with pytest.raises(UserError, match="step 0 was not counted"):
        [error] = run_ranks(1, lambda group: elastic.run(train, elastic.State(steps=0), shards=SHARDS, group=group))
        raise error


def test_a_decorated_function_survives_what_run_survives(points):
    state = elastic.State(steps=0)

    def job(group):
        @elastic.resilient(state, shards=SHARDS, group=group)
        def train(state, world):
            return [len(rows) for rows in counted(state, world)]

        return train()

    def counted(state, world):
        for rows in world.batches(SAMPLES, global_batch=BATCH):
            yield rows
            state.steps += 1
            state.commit()

    assert run_ranks(1, job) == [[12, 12, 6]]


def test_what_update_cannot_step_is_refused_when_the_state_is_made():
    net = nn.Linear(2, 2)
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(UserError, match=r"a scheduler needs state_dict\(\), which SimpleNamespace has not"):
        ddl.torch.State(net, sgd, SimpleNamespace(step=print))
    with pytest.raises(UserError, match="two optimizers have the same parameter"):
        ddl.torch.State(net, [sgd, torch.optim.SGD(net.parameters(), 0.1)])
    with pytest.raises(UserError, match=r"and this Adam not"):
        ddl.torch.State(net, sgd).step(torch.optim.Adam(net.parameters()), 1)
    with pytest.raises(UserError, match="LBFGS needs a closure"):
        ddl.torch.State(net, torch.optim.LBFGS(net.parameters()))


class Pair:
    """A generator and a critic, with their optimizers, of which the critic's has the smaller batch of noise."""

    def __init__(self, make):
        self.generator, self.critic = make(Generator), make(Critic)
        self.modules = [self.generator, self.critic]
        self.optimizers = [torch.optim.Adam(m.parameters(), 0.02) for m in self.modules]
        self.schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in self.optimizers]

    def critic_loss(self, x, noise):
        fake = self.generator(noise).detach()
        return (self.critic(x) ** 2).sum() + ((self.critic(fake) - 1) ** 2).sum()

    def generator_loss(self, noise):
        return (self.critic(self.generator(noise)) ** 2).sum()


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(2, momentum=0.3).eval(), nn.Linear(2, 5)

    def forward(self, z):
        return self.out(self.norm(z))


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x):
        return self.layers(x)


def adversarial(group, make, points):
    pair = Pair(make)
    state = ddl.torch.State(pair.modules, pair.optimizers, pair.schedulers)
    x, noise = torch.from_numpy(points[0]), torch.from_numpy(points[0][:, :2])
    of_generator, of_critic = pair.optimizers

    def train(state, world):
        for rows in world.batches(SAMPLES, global_batch=BATCH, epochs=EPOCHS):
            of_critic.zero_grad()
            pair.critic_loss(x[rows], noise[rows]).backward()
            state.step(of_critic, len(rows))
            of_generator.zero_grad()
            pair.generator_loss(noise[rows]).backward()
            state.average(len(rows), of_generator)
            nn.utils.clip_grad_norm_(pair.generator.parameters(), 0.5)
            state.update()

    elastic.run(train, state, shards=SHARDS, group=group)
    assert state.commits == state.steps == 6
    return pair


def test_two_modules_with_their_optimizers_train_in_one_state_and_survive_a_death(fresh, points):
    wanted, order = Pair(fresh), Order(SAMPLES, SHARDS, BATCH, 0)
    x, noise = torch.from_numpy(points[0]), torch.from_numpy(points[0][:, :2])
    for step in range(EPOCHS * order.steps_per_epoch):
        rows = order.indices(*divmod(step, order.steps_per_epoch), range(SHARDS))[0].copy()
        wanted.critic.zero_grad()
        (wanted.critic_loss(x[rows], noise[rows]) / len(rows)).backward()
        wanted.optimizers[1].step()
        wanted.generator.zero_grad()
        (wanted.generator_loss(noise[rows]) / len(rows)).backward()
        nn.utils.clip_grad_norm_(wanted.generator.parameters(), 0.5)
        wanted.optimizers[0].step()
        for scheduler in wanted.schedulers:
            scheduler.step()
    for death in (None, Death(1, 9), Death(0, 30)):
        results = run_ranks(3, lambda group: adversarial(group, fresh, points), death=death)
        survivors = [result for result in results if not isinstance(result, Killed)]
        assert len(survivors) == (3 if death is None else 2)
        for pair in survivors:
            for found, module in zip(pair.modules, wanted.modules, strict=True):
                assert_equal(found, module)


def test_a_plateau_is_stepped_with_the_mean_of_all_ranks_and_kept_by_commits(fresh, points):
    def plateau(group):
        net, optimizer, _ = parts(fresh)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        state = ddl.torch.State(net, optimizer, scheduler)

        def train(state, world):
            for rows in world.batches(SAMPLES, global_batch=BATCH):
                optimizer.zero_grad()
                loss_sum(net, rows, points, state.steps).backward()
                state.update(len(rows))
                # 3 on the first rank, of 1 sample, and 1 on the second, of 3: a mean of 1 in each round.
                assert state.validated(3.0 - 2 * world.rank, 1 + 2 * world.rank) == 1.0
            return optimizer.param_groups[0]["lr"], scheduler.best

        found = elastic.run(train, state, shards=SHARDS, group=group)
        with torch.no_grad():
            scheduler.step(5.0)
        state.restore()
        assert (optimizer.param_groups[0]["lr"], scheduler.best) == found
        return found

    assert run_ranks(2, plateau) == [(0.02 / 4, 1.0)] * 2


def test_a_state_of_plain_values_refuses_what_pytorch_trains():
    net = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for value in (net, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)):
        with pytest.raises(ddl.errors.UserError, match=r"trained is a .* of PyTorch.*ddl\.torch\.State"):
            ddl.elastic.State(steps=0, trained=value)
