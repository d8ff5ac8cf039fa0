"""Modules on a GPU train as those in host memory do.

Without a GPU the same code is tested with host memory in its place: parameters are copied instead of viewed, and
gradients pass through the staging buffers."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F
from torch import nn

import ddl
import ddl.torch
from ddl.arrays import Layout
from ddl.comm.deaths import Death
from ddl.errors import ConfigError
from ddl.torch import device as devices
from ddl.torch.device import Staging

STEPS, BATCH, SHARDS = 6, 24, 2


class Net(nn.Module):
    """Without dropout, since ranks that are threads share the generators."""

    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(40, 4, sparse=True), nn.BatchNorm1d(5)
        self.out = nn.Linear(9, 3)
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x):
        tokens = (x[:, 0] * 10).long().clamp(0, 39)
        h = torch.cat([self.norm(x), self.table(tokens)], 1) * self.frozen
        return self.out(h)


def in_host_memory(monkeypatch):
    """The host takes the place of the GPU."""
    for module in ("device", "model", "stepped"):
        monkeypatch.setattr(f"ddl.torch.{module}.is_remote", lambda device: True)
    return torch.device("cpu")


def on_gpu(monkeypatch):
    return torch.device("cuda:0")


NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
PLACES = [in_host_memory, pytest.param(on_gpu, marks=NEEDS_GPU)]


def made(net, optimizer):
    model = ddl.torch.Model(net, F.cross_entropy, ["accuracy"])
    whole, rules, _ = ddl.torch.translated(optimizer(net.parameters()), model)
    layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, "float64")
    own = isinstance(whole, ddl.optim.Whole)
    groups = (
        whole.over(layout, rules, model.frozen) if own else ddl.optim.Groups(layout, whole, rules, freeze=model.frozen)
    )
    return model, {"optimizer": groups, "lr": lambda step: whole.lr}


OPTIMIZERS = {
    "translated": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "its own": lambda p: torch.optim.Adamax(p, 0.02),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_module_elsewhere_trains_to_the_same_values_also_when_a_rank_dies(
    trained, fresh, points, monkeypatch, kind, place
):
    options = {"steps": STEPS, "batch": BATCH, "shards": SHARDS}
    wanted = trained(1, lambda: made(fresh(Net), OPTIMIZERS[kind]), *points, **options)[0][0].module.state_dict()
    seen = []
    with monkeypatch.context() as patch:
        where = place(patch)
        for death in (None, Death(0, 15)):
            make = lambda: made(fresh(Net).to(where), OPTIMIZERS[kind])  # noqa: E731
            results = trained(2, make, *points, threads={"death": death}, **options)
            assert len(results) == (2 if death is None else 1)
            for model, loop in results:
                assert all(p.device == where for p in model.module.parameters())
                views = loop.state.params.views
                assert all(p.data_ptr() != views[n].ctypes.data for n, p in model.module.named_parameters())
                seen.append({name: value.cpu() for name, value in model.module.state_dict().items()})
    for found in seen:
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("place", PLACES)
def test_a_trainer_resumes_and_predicts_with_a_module_elsewhere(fresh, points, monkeypatch, tmp_path, place):
    x, y = points
    where = place(monkeypatch)
    net = fresh(Net).float().to(where)

    def trainer(module):
        settings = {"run.dir": str(tmp_path), "metrics.console_every_s": 0}
        return ddl.Trainer(module, (x, y), loss="cross_entropy", global_batch=BATCH, shards=1, settings=settings)

    trainer(net).fit(steps=2)
    again = fresh(Net).float().to(where)
    run = trainer(again)
    run.fit(steps=4)
    assert not torch.equal(net.out.weight, again.out.weight)
    alone = copy.deepcopy(again).cpu().eval()
    with torch.no_grad():
        expected = alone(torch.from_numpy(x.astype("float32"))).numpy()
    np.testing.assert_allclose(run.predict(x), expected, rtol=1e-5, atol=1e-6)


def test_gradients_arrive_in_order_and_unchanged_through_two_buffers():
    staging, arrived = Staging(6, torch.float32, torch.device("cpu")), []
    gradients = [torch.arange(float(n)).view(shape) + n for n, shape in [(6, (2, 3)), (1, ()), (4, (4,)), (6, (3, 2))]]
    for number, gradient in enumerate(gradients):
        staging.take(gradient, lambda copy, number=number: arrived.append((number, copy.clone())))
        gradient_before = gradient.clone()
        gradient.zero_()  # as the allocator of a GPU may, once the copy is in its stream
        gradients[number] = gradient_before
        assert len(arrived) == max(number - 1, 0)
    staging.finish()
    assert [number for number, _ in arrived] == [0, 1, 2, 3]
    assert all(torch.equal(copy, gradients[number]) for number, copy in arrived)
    staging.take(gradients[0], lambda copy: arrived.append("late"))
    staging.forget()
    staging.finish()
    assert len(arrived) == 4


def test_a_module_in_two_places_or_on_the_gpu_of_another_rank_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"is on meta: ddl\.torch trains modules in host memory, or on the GPU"):
        ddl.torch.Model(nn.Linear(5, 3, device="meta"), F.cross_entropy)

    class OnGpu:
        def __init__(self, name):
            self.device = torch.device(name)

    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.device_of({"a": OnGpu("cuda:1")}) == torch.device("cuda:1")
    with pytest.raises(
        ConfigError, match="the module is on cuda:0, but the GPU of this rank, number 3 on its node, is cuda:1"
    ):
        devices.device_of({"a": OnGpu("cuda:0")})
    with pytest.raises(ConfigError, match="b is on cpu, and other parts of the module are on cuda:1"):
        devices.device_of({"a": OnGpu("cuda:1"), "b": OnGpu("cpu")})
