"""The averaging optimizer for PyTorch scripts: ranks keep equal parameters whatever they call step with."""

from __future__ import annotations

import threading

import pytest

import ddl
from ddl.comm.threads import run_ranks

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import ddl.torch


@pytest.fixture
def on_ranks(monkeypatch):
    """Run a function on ranks that are threads, in which ``ddl`` works as after ``ddl.init()``."""
    joined = threading.local()
    monkeypatch.setattr("ddl.world.group", lambda: joined.group)

    def run(size, function):
        def work(group):
            joined.group = group
            try:
                return function(group.rank)
            except (TypeError, ValueError) as error:
                return str(error)

        return run_ranks(size, work)

    return run


def made(kind, start=1.0, **options):
    net = torch.nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        net.weight.fill_(start)
    return net, ddl.torch.DistributedOptimizer(kind(net.parameters(), **options), net.named_parameters())


def loss_of(net, rank):
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return (net(x) - x.sum(1, keepdim=True) * 2).square().mean()


@pytest.mark.parametrize("name", ["SGD", "LBFGS"])
def test_a_closure_gets_the_loss_and_gradients_of_all_ranks(name, on_ranks):
    def train(rank):
        net, optimizer = made(getattr(torch.optim, name), lr=0.1)

        def closure():
            optimizer.zero_grad()
            loss = loss_of(net, rank)
            loss.backward()
            return loss

        losses = [float(optimizer.step(closure)) for _ in range(3)]
        return losses, net.weight.tolist()

    first, second = on_ranks(2, train)
    assert first == second

    net = torch.nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        net.weight.fill_(1.0)
    alone = getattr(torch.optim, name)(net.parameters(), lr=0.1)

    def closure():
        alone.zero_grad()
        loss = (loss_of(net, 0) + loss_of(net, 1)) / 2
        loss.backward()
        return loss

    assert first[0] == pytest.approx([alone.step(closure).item() for _ in range(3)], rel=1e-9)
    assert first[1][0] == pytest.approx(net.weight[0].tolist(), rel=1e-9)


def test_parameters_that_differ_before_the_first_step_are_named_on_every_rank(on_ranks):
    def step(rank):
        net, optimizer = made(torch.optim.SGD, start=float(rank), lr=0.1)
        loss_of(net, rank).backward()
        optimizer.step()

    for text in on_ranks(2, step):
        assert text.startswith("ranks hold different parameters before the first step: weight on rank 1"), text
        assert "broadcast_parameters" in text


@pytest.mark.parametrize("batches", [[2, 4], [0, 3], [3, 1]])
def test_in_a_join_block_a_rank_that_is_finished_makes_the_same_updates(batches, on_ranks):
    def train(rank):
        net, optimizer = made(torch.optim.SGD, lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        with ddl.join(optimizer):
            for _ in range(batches[rank]):
                optimizer.zero_grad()
                loss_of(net, rank).backward()
                optimizer.step()
                schedule.step()
        return net.weight.tolist()

    net = torch.nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        net.weight.fill_(1.0)
    alone = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(alone, 0.5)
    for number in range(max(batches)):
        losses = [loss_of(net, rank) for rank, count in enumerate(batches) if count > number]
        alone.zero_grad()
        (sum(losses) / len(losses)).backward()
        alone.step()
        schedule.step()
    first, second = on_ranks(2, train)
    assert first == second
    assert first[0] == pytest.approx(net.weight[0].tolist(), rel=1e-12)


def test_a_join_block_refuses_an_optimizer_that_does_not_average(on_ranks):
    def join(rank):
        with ddl.join(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)):
            pass

    assert on_ranks(1, join) == ["ddl.join takes what DistributedOptimizer of ddl or ddl.torch returned, not a SGD"]


@pytest.mark.parametrize("skips", [True, False])
def test_gradients_can_be_clipped_between_their_mean_and_the_step(skips, on_ranks):
    def train(rank):
        net, optimizer = made(torch.optim.SGD, lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(net, rank).backward()
            optimizer.synchronize()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.3)
            if skips:
                with optimizer.skip_synchronize():
                    optimizer.step()
            else:
                optimizer.step()
        return net.weight.tolist()

    net = torch.nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        net.weight.fill_(1.0)
    for _ in range(2):
        net.zero_grad()
        ((loss_of(net, 0) + loss_of(net, 1)) / 2).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.3)
        with torch.no_grad():
            net.weight -= 0.1 * net.weight.grad
    first, second = on_ranks(2, train)
    assert first == second and first[0] == pytest.approx(net.weight[0].tolist(), rel=1e-12)


def test_a_gradient_scaler_works_between_synchronize_and_step(on_ranks):
    """Ranks agree on whether a step is skipped, because they look at the same mean."""

    def train(rank):
        net, optimizer = made(torch.optim.SGD, lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
        scales = []
        for step in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(net, rank) * (torch.inf if (step, rank) == (1, 1) else 1.0)).backward()
            optimizer.synchronize()
            scaler.unscale_(optimizer)
            with optimizer.skip_synchronize():
                scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        return net.weight.tolist(), scales

    (first, scales), second = on_ranks(2, train)
    assert (first, scales) == second and scales == [16.0, 8.0, 16.0]
    assert all(map(torch.isfinite, torch.tensor(first[0])))


def test_sparse_adam_averages_the_rows_that_any_rank_used(on_ranks):
    tokens = [torch.tensor([0, 2]), torch.tensor([2, 3])]

    def table():
        net = torch.nn.Embedding(6, 2, sparse=True).double()
        with torch.no_grad():
            net.weight.fill_(1.0)
        return net

    def train(rank):
        net = table()
        optimizer = ddl.torch.DistributedOptimizer(torch.optim.SparseAdam(net.parameters(), 0.1))
        for _ in range(3):
            optimizer.zero_grad()
            net(tokens[rank]).square().sum().backward()
            optimizer.step()
        return net.weight.tolist()

    alone = table()
    optimizer = torch.optim.SparseAdam(alone.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (alone(torch.cat(tokens)).square().sum() / 2).backward()
        optimizer.step()
    first, second = on_ranks(2, train)
    assert first == second
    torch.testing.assert_close(torch.tensor(first, dtype=torch.float64), alone.weight.detach())


def test_a_module_can_be_broadcast_and_what_is_no_module_or_optimizer_is_named(on_ranks):
    def broadcast(rank):
        net = torch.nn.BatchNorm1d(2)
        with torch.no_grad():
            net.weight.fill_(rank + 1.0)
        ddl.torch.broadcast_parameters(net, root_rank=1)
        return net.weight.tolist()

    assert on_ranks(2, broadcast) == [[2.0, 2.0]] * 2
    net = torch.nn.Linear(2, 2)
    sgd = torch.optim.SGD(net.parameters(), 0.1)

    def unsynchronised():
        with sgd.skip_synchronize():
            sgd.step()

    wrong = [
        (lambda: ddl.torch.broadcast_parameters(net.parameters()), "or tensors with names"),
        (lambda: ddl.torch.DistributedOptimizer(torch.optim.SGD), "not the class SGD: make one"),
        (lambda: ddl.torch.DistributedOptimizer(ddl.torch.DistributedOptimizer(sgd)), "averages its gradients already"),
        (lambda: ddl.torch.broadcast_optimizer_state(net), "not a Linear"),
        (lambda: ddl.DistributedOptimizer(sgd, {}), "ddl.torch.DistributedOptimizer"),
        (lambda: ddl.broadcast(net.state_dict()), "ddl.torch.broadcast_parameters"),
        (unsynchronised, "needs a call of synchronize()"),
    ]
    for call, words in wrong:
        [text] = on_ranks(1, lambda rank, call=call: call())
        assert words in text and "\n" not in text
