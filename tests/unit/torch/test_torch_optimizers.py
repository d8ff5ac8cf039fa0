"""Optimizers and schedulers of PyTorch: ddl's rules compute the same, and what has no equal is refused."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn
from torch.optim import lr_scheduler

import ddl
import ddl.torch
from ddl.arrays import FlatBuffer, Layout
from ddl.errors import ConfigError
from ddl.optim import Groups

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.02),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.02),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, (0.8, 0.9), weight_decay=0.02),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01),
    "Adam, decoupled": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.01, (0.9, 0.99)),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, weight_decay=0.02),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
}


def module():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)).double()


def updates(groups, net, steps, factor=lambda step: 1.0):
    """The module's parameters after updates by ddl along fixed gradients, by name."""
    flat = FlatBuffer(groups.layout)
    flat.assign({name: p.detach().numpy() for name, p in net.named_parameters()})
    slots = {name: np.zeros_like(flat.flat) for name in groups.slots}
    for step in range(steps):
        grads = FlatBuffer(groups.layout)
        grads.assign({name: g.numpy() for name, g in gradients(net, step).items()})
        groups.update(flat.flat, grads.flat, slots, groups.lr * factor(step), step, 1.0)
    return flat.views


def gradients(net, step):
    generator = torch.Generator().manual_seed(step)
    return {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in net.named_parameters()}


def by_pytorch(net, optimizer, steps, scheduler=None):
    for step in range(steps):
        for name, g in gradients(net, step).items():
            net.get_parameter(name).grad = g
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return {name: p.detach().numpy() for name, p in net.named_parameters()}


def groups_of(net, optimizer, scheduler=None):
    main, rules, _ = ddl.torch.translated(optimizer, net, scheduler)
    assert isinstance(main, ddl.optim.Optimizer)
    return Groups(Layout.of({n: tuple(p.shape) for n, p in net.named_parameters()}, "float64"), main, rules)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_of_pytorch_makes_the_same_steps_in_ddl(kind):
    net = module()
    found = updates(groups_of(net, OPTIMIZERS[kind](net.parameters())), net, 12)
    wanted = by_pytorch(net, OPTIMIZERS[kind](net.parameters()), 12)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6 if kind == "NAdam" else 1e-9)


def in_groups(net):
    decayed, others = [net[0].weight, net[1].weight], [net[0].bias]
    return torch.optim.AdamW([{"params": decayed}, {"params": others, "lr": 0.05, "weight_decay": 0.0}], 0.01)


def test_parameter_groups_keep_their_rates_and_decay_and_parameters_in_none_are_frozen():
    net = module()
    before = net[1].bias.detach().numpy().copy()
    found = updates(groups_of(net, in_groups(net)), net, 8)
    for name, value in by_pytorch(net, in_groups(net), 8).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9)
    assert np.array_equal(found["1.bias"], before)


SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: step / 10),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.02, 15, cycle_momentum=False),
    "warm-up, then decay": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.ExponentialLR(o, 0.9)], [5]
    ),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:.*step.*:UserWarning")
def test_a_scheduler_gives_the_rates_that_it_gives_a_loop_of_pytorch(kind):
    net = module()
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    scheduler = SCHEDULERS[kind](optimizer)
    before = optimizer.param_groups[0]["lr"]
    factors = ddl.torch.Factors(scheduler)
    found = updates(groups_of(net, optimizer, scheduler), net, 12, factors)
    assert factors(7) == factors(7) and optimizer.param_groups[0]["lr"] == before  # only a copy was stepped
    wanted = by_pytorch(net, optimizer, 12, scheduler)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda net: torch.optim.AdamW(module().parameters()), "not the module's"),
        (lambda net: torch.optim.Adam, "the optimizer is a class: make one, Adam"),
        (lambda net: torch.optim.LBFGS(net.parameters()), "LBFGS.step needs a closure"),
        (lambda net: [torch.optim.SGD(net.parameters(), 0.1)] * 2, "'0.weight' has two optimizers"),
        (lambda net: [torch.optim.SGD(net.parameters(), 0.1), ddl.optim.SGD()], "must all be PyTorch's"),
    ],
)
def test_optimizers_that_cannot_train_the_module_are_rejected_in_one_line(make, words):
    net = module()
    with pytest.raises(ConfigError, match=words) as refused:
        ddl.torch.translated(make(net), net)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 9), "cycle_momentum=False"),
        (lambda o: lr_scheduler.LambdaLR(o, [lambda step: 1.0, lambda step: 1 / (1 + step)]), "different factors"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 9, cycle_momentum=False), "ends before step"),
    ],
)
def test_a_scheduler_that_is_not_a_function_of_the_step_is_rejected(make, words):
    with pytest.raises(ConfigError, match=words):
        ddl.torch.Factors(make(in_groups(module())))(30)


def test_a_job_on_gpus_is_refused(points):
    run = ddl.Trainer(nn.Linear(5, 3), points, settings={"comm.device": "gpu"})
    with pytest.raises(ConfigError, match="the model computes on the CPU only"):
        run.fit(steps=1)


def test_a_trainer_takes_an_optimizer_and_a_scheduler_of_pytorch(points):
    x, y = points
    net = nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(net.parameters(), 0.02)
    run = ddl.Trainer(net, (x, y), optimizer=optimizer, schedule=lr_scheduler.StepLR(optimizer, 2, 0.1))
    assert run.optimizer == ddl.optim.AdamW(lr=0.02) and run.job.optim.name == "adamw"
    assert [run.schedule(step) for step in (0, 2)] == [1.0, pytest.approx(0.1)]
    with pytest.raises(ddl.errors.UserError, match="give that as well"):
        ddl.Trainer(net, (x, y), schedule=lr_scheduler.StepLR(optimizer, 2, 0.1))
    other = torch.optim.AdamW(net.parameters(), 0.02)
    with pytest.raises(ConfigError, match="is of another optimizer"):
        ddl.Trainer(net, (x, y), optimizer=other, schedule=lr_scheduler.StepLR(optimizer, 2, 0.1))
    plateau = lr_scheduler.ReduceLROnPlateau(other)
    with pytest.raises(ddl.errors.UserError, match="give validation data"):
        ddl.Trainer(net, (x, y), optimizer=other, schedule=plateau)
    with pytest.raises(ddl.errors.UserError, match="parameter groups"):
        ddl.Trainer(net, (x, y), optimizer=optimizer, rules=[ddl.optim.Rule("*")])
    with pytest.raises(ConfigError, match=r"goes with a torch\.nn\.Module"):
        ddl.Trainer("mlp", (x, y), optimizer=optimizer)
