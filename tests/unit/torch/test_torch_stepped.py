"""Optimizers and schedulers of PyTorch that ddl has no rule for run as they are, on any number of ranks."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

import ddl.torch
from ddl.arrays import Layout
from ddl.comm.deaths import Death
from ddl.data import Order
from ddl.errors import ConfigError, UserError

STEPS, BATCH, SHARDS = 8, 12, 6


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x)))


class Own(torch.optim.Optimizer):
    """Replaces the parameter and its state in each step, begins the state late, and keeps a count and a list."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1, "far": (1, 2)})

    def step(self, closure=None):
        for group in self.param_groups:
            group["seen"] = group.get("seen", 0) + 1
            for p in group["params"]:
                state = self.state[p]
                if group["seen"] > 2:
                    state["sums"] = [one + p.grad.sum(0) for one in state.get("sums", [0.0, 1.0])]
                state["worst"] = max(state.get("worst", -float("inf")), float(p.grad.max()))
                p.data = p.data - group["lr"] * (p.grad + 0.01 * sum(state.get("sums", [0.0])))


def matrices(net):
    return [p for p in net.parameters() if p.dim() == 2]


def others(net):
    return [p for p in net.parameters() if p.dim() != 2]


def grouped(net):
    return [{"params": matrices(net), "weight_decay": 0.1}, {"params": others(net), "lr": 0.01}]


OPTIMIZERS = {
    "Adafactor": lambda net: torch.optim.Adafactor(net.parameters(), 0.05),
    "ASGD": lambda net: torch.optim.ASGD(grouped(net), 0.1),
    "Adadelta": lambda net: torch.optim.Adadelta(net.parameters(), 1.0),
    "Adamax": lambda net: torch.optim.Adamax(net.parameters(), 0.02),
    "Rprop": lambda net: torch.optim.Rprop(net.parameters(), 0.02),
    "amsgrad": lambda net: torch.optim.Adam(grouped(net), 0.02, amsgrad=True),
    "the user's own": lambda net: Own(net.parameters()),
    "two": lambda net: [torch.optim.Muon(matrices(net), 0.05), torch.optim.Rprop(others(net), 0.01)],
}


def as_list(given):
    return given if isinstance(given, list) else [given]


def schedulers_of(optimizers):
    """Of which the first changes momenta too where there are any, and gives groups different factors."""
    return [
        lr_scheduler.LambdaLR(o, [lambda step, n=n: 1 / (1 + n + step) for n, _ in enumerate(o.param_groups)])
        for o in optimizers
    ]


def by_pytorch(fresh, points, kind, scheduled=True, steps=STEPS):
    net = fresh(Net)
    optimizers = as_list(OPTIMIZERS[kind](net))
    more_steps(net, optimizers, points, steps, schedulers_of(optimizers) if scheduled else [])
    return net, optimizers


def more_steps(net, optimizers, points, steps, schedulers=()):
    x, y = (torch.from_numpy(value) for value in points)
    order = Order(len(x), SHARDS, BATCH, 0)
    for step in range(steps):
        rows, _ = order.indices(*divmod(step, order.steps_per_epoch), range(SHARDS))
        net.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        for one in [*optimizers, *schedulers]:
            one.step()


def task_of(net, kind, scheduled=True):
    """(model, what the Task takes) for train_one."""
    model = ddl.torch.Model(net, "cross_entropy")
    optimizers = as_list(OPTIMIZERS[kind](net))
    whole, rules, factor = ddl.torch.translated(optimizers, model, schedulers_of(optimizers) if scheduled else "")
    layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, "float64")
    lr = (lambda step: whole.lr * factor(step)) if scheduled else (lambda step: whole.lr)
    return model, {"optimizer": whole.over(layout, rules, ()), "lr": lr}


@pytest.fixture
def on_ranks(trained, fresh, points):
    def train(ranks, kind, scheduled=True, **options):
        made = lambda: task_of(fresh(Net), kind, scheduled)  # noqa: E731
        return trained(ranks, made, *points, steps=STEPS, batch=BATCH, shards=SHARDS, **options)

    return train


def assert_near(net, wanted):
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_any_optimizer_and_scheduler_make_the_steps_of_pytorch_on_any_number_of_ranks(on_ranks, fresh, points, kind):
    wanted, _ = by_pytorch(fresh, points, kind)
    for ranks in (1, 3):
        for model, _ in on_ranks(ranks, kind):
            assert_near(model.module, wanted)


@pytest.mark.parametrize("kind", ["Adafactor", "the user's own", "two"])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_is_behind_gets_the_state_of_the_optimizer_too(on_ranks, fresh, points, kind, rank):
    wanted, _ = by_pytorch(fresh, points, kind)
    for count in (1, 5, 20, 45):
        survivors = on_ranks(3, kind, threads={"death": Death(rank, count)})
        assert len(survivors) == 2
        for model, _ in survivors:
            assert_near(model.module, wanted)


def fitted(fresh, points, folder, kind, scheduler, steps):
    """The module after a Trainer that begins anew, or where the last one in this folder ended."""
    x, y = points
    net = fresh(Net)
    optimizers = as_list(OPTIMIZERS[kind](net))
    run = ddl.Trainer(
        ddl.torch.Model(net, F.cross_entropy),
        (x, y),
        validation=(x[:20], y[:20]),
        optimizer=optimizers,
        schedule=[scheduler(o) for o in optimizers],
        global_batch=BATCH,
        shards=SHARDS,
        settings={"run.dir": str(folder), "train.dtype": "float64", "metrics.console_every_s": 0},
    )
    run.fit(steps=steps)
    return net, optimizers


SCHEDULERS = {
    "milestones": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.5),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.5),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("kind", ["Adafactor", "the user's own", "two"])
def test_a_run_that_is_resumed_continues_with_the_state_of_optimizer_and_scheduler(
    fresh, points, tmp_path, kind, scheduler
):
    given = fresh, points
    whole, optimizers = fitted(*given, tmp_path / "whole", kind, SCHEDULERS[scheduler], 12)
    fitted(*given, tmp_path / "parts", kind, SCHEDULERS[scheduler], 8)
    resumed, again = fitted(*given, tmp_path / "parts", kind, SCHEDULERS[scheduler], 12)
    assert_near(resumed, whole)
    rates = [group["lr"] for o in optimizers for group in o.param_groups]
    assert rates == [group["lr"] for o in again for group in o.param_groups]
    assert rates != [group["lr"] for o in as_list(OPTIMIZERS[kind](fresh(Net))) for group in o.param_groups]


def test_a_plateau_of_the_validation_loss_lowers_the_rate_as_in_a_loop_of_pytorch(fresh, points, tmp_path):
    net, [optimizer] = fitted(fresh, points, tmp_path, "Adamax", SCHEDULERS["plateau"], 12)
    wanted = fresh(Net)
    x, y = (torch.from_numpy(value) for value in points)
    [reference], order = as_list(OPTIMIZERS["Adamax"](wanted)), Order(len(x), SHARDS, BATCH, 0)
    scheduler = SCHEDULERS["plateau"](reference)
    for step in range(12):
        rows = order.indices(*divmod(step, order.steps_per_epoch), range(SHARDS))[0]
        wanted.zero_grad()
        F.cross_entropy(wanted(x[rows]), y[rows]).backward()
        reference.step()
        if (step + 1) % order.steps_per_epoch == 0:
            with torch.no_grad():
                scheduler.step(float(F.cross_entropy(wanted(x[:20]), y[:20])))
    assert_near(net, wanted)
    assert optimizer.param_groups[0]["lr"] == reference.param_groups[0]["lr"] < 0.02


@pytest.mark.parametrize("kind", ["amsgrad", "the user's own"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_search_for_a_learning_rate_tries_it_and_leaves_optimizer_and_scheduler_as_they_were(
    fresh, points, tmp_path, kind, scheduled
):
    ends, found = [], {}
    for searches in (False, True):
        net = fresh(Net)
        optimizers = as_list(OPTIMIZERS[kind](net))
        settings = {"train.dtype": "float64", "metrics.console_every_s": 0, "run.dir": str(tmp_path / str(searches))}
        schedule = [SCHEDULERS["milestones"](optimizers[0]), SCHEDULERS["plateau"](optimizers[0])]
        run = ddl.Trainer(
            ddl.torch.Model(net, F.cross_entropy),
            points,
            validation=0.2,
            optimizer=optimizers,
            schedule=schedule if scheduled else "constant",
            global_batch=BATCH,
            settings=settings,
        )
        if searches:
            found = {highest: run.lr_find(1e-4, highest, 12).losses[-1] for highest in (2e-4, 1.0)}
            assert run.optimizer.optimizers[0].param_groups[0]["lr"] == 1.0
        run.fit(steps=8)
        ends.append(net)
    assert_near(*ends)
    assert abs(found[2e-4] - found[1.0]) > 1e-2


def test_a_plateau_without_evaluations_to_follow_is_refused(fresh, points):
    for validation, every in ((None, 1), (0.0, 1), (0.2, 0)):
        net = fresh(Net)
        [optimizer] = as_list(OPTIMIZERS["Adamax"](net))
        more = {"validation": validation, "settings": {"train.evaluate_every": every}}
        with pytest.raises(UserError, match="depends on the validation loss"):
            ddl.Trainer(net, points, optimizer=optimizer, schedule=SCHEDULERS["plateau"](optimizer), **more)


def test_a_checkpoint_of_another_optimizer_is_refused_in_one_line(fresh, points, tmp_path):
    fitted(fresh, points, tmp_path, "Adafactor", SCHEDULERS["milestones"], 4)
    with pytest.raises(ConfigError, match=r"of .*Adafactor.*, not \['Muon', 'Rprop'") as refused:
        fitted(fresh, points, tmp_path, "two", SCHEDULERS["milestones"], 8)
    assert "\n" not in str(refused.value)


def test_an_optimizer_that_has_made_steps_continues_from_its_state(trained, fresh, points):
    first, optimizers = by_pytorch(fresh, points, "Adamax", scheduled=False, steps=4)
    wanted, same = copy.deepcopy((first, optimizers))
    more_steps(wanted, same, points, STEPS)

    def made():
        model = ddl.torch.Model(first, "cross_entropy")
        whole, rules, _ = ddl.torch.translated(optimizers[0], model)
        layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, "float64")
        return model, {"optimizer": whole.over(layout, rules, ()), "lr": lambda step: whole.lr}

    [(model, _)] = trained(1, made, *points, steps=STEPS, batch=BATCH, shards=SHARDS)
    assert_near(model.module, wanted)


def test_sparse_adam_updates_the_rows_that_were_used(trained, fresh):
    tokens = np.arange(24).reshape(12, 2) % 5
    y = np.arange(12) % 3

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.EmbeddingBag(9, 3, sparse=True)

        def forward(self, x):
            return self.table(x)

    def made():
        model = ddl.torch.Model(fresh(Bag), "cross_entropy")
        whole, rules, _ = ddl.torch.translated(torch.optim.SparseAdam(model.module.parameters(), 0.1), model)
        layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, "float64")
        return model, {"optimizer": whole.over(layout, rules, ()), "lr": lambda step: whole.lr}

    wanted = fresh(Bag)
    optimizer, order = torch.optim.SparseAdam(wanted.parameters(), 0.1), Order(12, 3, 6, 0)
    for step in range(STEPS):
        rows, _ = order.indices(*divmod(step, order.steps_per_epoch), range(3))
        wanted.zero_grad()
        F.cross_entropy(wanted(torch.from_numpy(tokens[rows])), torch.from_numpy(y[rows])).backward()
        optimizer.step()
    for model, _ in trained(2, made, tokens, y, steps=STEPS, batch=6, shards=3):
        assert_near(model.module, wanted)


def test_a_state_that_a_checkpoint_cannot_keep_is_named(fresh):
    net = fresh(Net)
    _, task = task_of(net, "Rprop")
    net_state = task["optimizer"]._given.optimizers[0].state
    net_state[net.out.weight]["what"] = object()
    with pytest.raises(ConfigError, match="what is a object, which a checkpoint cannot keep"):
        task["optimizer"].own.named()


class Particular(torch.optim.Rprop):
    def load_state_dict(self, state):
        if state["param_groups"][0]["lr"] != self.param_groups[0]["lr"]:
            raise ValueError("another rate")
        super().load_state_dict(state)


def test_a_state_of_which_the_second_optimizer_refuses_its_part_changes_nothing(fresh, points):
    states = []
    for rate in (0.01, 0.02):
        net = fresh(Net)
        optimizers = [torch.optim.Muon(matrices(net), rate), Particular(others(net), rate)]
        whole, rules, _ = ddl.torch.translated(optimizers, ddl.torch.Model(net, F.cross_entropy), "")
        layout = Layout.of({name: tuple(p.shape) for name, p in net.named_parameters()}, "float64")
        states.append(whole.over(layout, rules, ()).own)
        more_steps(net, optimizers, points, 2)
    before = copy.deepcopy(states[0].named())
    with pytest.raises(ValueError, match="another rate"):
        states[0].load(*states[1].named())
    after = states[0].named()
    assert after[1] == before[1] and all((after[0][name] == value).all() for name, value in before[0].items())


def test_a_schedule_of_ddl_sets_the_rates_of_all_groups(on_ranks, fresh, points):
    [(model, _)] = on_ranks(1, "ASGD", scheduled=False, lr=lambda step: 0.1 / (1 + step))
    x, y = (torch.from_numpy(value) for value in points)
    net, order = fresh(Net), Order(len(x), SHARDS, BATCH, 0)
    [optimizer] = as_list(OPTIMIZERS["ASGD"](net))
    for step in range(STEPS):
        rows, _ = order.indices(*divmod(step, order.steps_per_epoch), range(SHARDS))
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.1 / (1 + step), 0.01 / (1 + step)
        net.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    assert_near(model.module, net)


class PartlyFrozen(Net):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(50, 6), requires_grad=False)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x)) * self.table[0])


def test_a_second_fit_continues_the_schedule_of_the_first_and_frozen_parameters_stay(fresh, points, tmp_path):
    def run(folder, *lengths):
        net = fresh(PartlyFrozen)
        trainer = ddl.Trainer(
            ddl.torch.Model(net, F.cross_entropy),
            points,
            optimizer=torch.optim.Adamax([{"params": net.out.parameters()}, {"params": net.hidden.parameters()}], 0.05),
            schedule=lambda step: 1 / (1 + step),
            global_batch=BATCH,
            shards=SHARDS,
            settings={"run.dir": str(folder), "train.dtype": "float64", "metrics.console_every_s": 0},
        )
        for steps in lengths:
            trainer.fit(steps=steps)
        return net

    whole, parts = run(tmp_path / "whole", 6), run(tmp_path / "parts", 3, 6)
    assert_near(parts, whole)
    assert torch.equal(whole.table, torch.ones(50, 6).double()) and not torch.equal(whole.out.bias, parts.table[0, :3])
