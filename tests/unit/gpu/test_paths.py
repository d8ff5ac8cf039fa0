"""Ranks on a GPU, with a stand-in for cupy: the same sums and steps as on the CPU, and one line if there is no GPU."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ddl import nn
from ddl.arrays import Device, Layout, device, host
from ddl.arrays.namespace import limit_memory, ranks_on
from ddl.bench.__main__ import main as bench
from ddl.comm import device_memory
from ddl.comm.threads import ThreadGroup, run_ranks
from ddl.data import Arrays, Order
from ddl.models import build
from ddl.models.model import Supervised
from ddl.nn.losses import CrossEntropy
from ddl.nn.metric import METRICS
from ddl.optim import OPTIMIZERS, Groups
from ddl.parallel import Backward, GradientSum, SumOptions, reducer
from ddl.parallel.staging import Direct, Staged
from ddl.run import plots
from ddl.run.trained import outputs_of
from ddl.train.evaluate import evaluate
from ddl.train.loop import Loop
from ddl.train.state import TrainingState
from ddl.train.task import Task

LAYOUT = Layout.of({"w1": (30, 7), "b1": (7,), "table": (50, 4)})


def sums(group, on_gpu, steps=4, **how):
    """What each step gave, as sets of numbers by name; the class of the way."""
    where = Device(0 if group.rank in on_gpu else None)
    total = GradientSum(group, LAYOUT, 2, SumOptions(bucket_mib=1e-4, **how), Backward(by_rows=["table"]), device=where)
    found = []
    for step in range(steps):
        table = total.local.views.clear("table")
        rows = where.array(np.arange(3) + group.rank)
        total.local["w1"][...], total.local["b1"][...], table[rows] = group.rank + step, step, 1
        total.local.views.zero_outside["table"] = rows
        for name in reversed(list(LAYOUT.shapes)):
            total.announce([name])
        total.header[:] = step
        summed = total.finish()
        views = {name: view.copy() for name, view in LAYOUT.views(host(summed.gradient)).items()}
        found.append((views, summed.header.tolist(), summed.squared_norm))
    total.close()
    return found, type(total._sum), total.staged_because


def are_right(found):
    for step, (views, header, norm) in enumerate(found):
        assert (views["w1"] == 3 + 3 * step).all() and (views["b1"] == 3 * step).all()
        assert views["table"][:6, 0].tolist() == [1, 2, 3, 2, 1, 0] and not views["table"][5:].any()
        assert header == [3.0 * step] * 2
        assert norm == pytest.approx(sum(float((view.astype(np.float64) ** 2).sum()) for view in views.values()))
    return True


@pytest.fixture(autouse=True)
def small_tables_count(monkeypatch):
    monkeypatch.setattr(reducer, "SPARSE_BYTES", 0)
    monkeypatch.setattr(reducer, "SPARSE_BYTES_BETWEEN_NODES", 0)


@pytest.mark.parametrize("overlap", ["on", "off"])
@pytest.mark.parametrize("can_share", [True, False])
@pytest.mark.parametrize("nodes", [[0, 0, 0], [0, 0, 1]], ids=str)
@pytest.mark.parametrize("on_gpu", [[0, 1, 2], [1]], ids=["all on the GPU", "one on the GPU"])
def test_staged_sums(cupy, on_gpu, nodes, can_share, overlap):
    results = run_ranks(3, lambda g: sums(g, on_gpu, overlap=overlap), nodes=nodes, can_share=can_share)
    for rank, (found, way, _) in enumerate(results):
        assert are_right(found) and (way is Staged) == (rank in on_gpu)
    assert not cupy.pinned  # given back


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_direct_sums(cupy, overlap):
    for found, way, because in run_ranks(3, lambda g: sums(g, [0, 1, 2], overlap=overlap, gpu="auto")):
        assert are_right(found) and way is Direct and because == ""


def test_direct_is_not_used_if_one_rank_computes_on_the_cpu_or_its_mpi_refuses(cupy, monkeypatch):
    for found, _, because in run_ranks(3, lambda g: sums(g, [0, 2], gpu="direct")):
        assert are_right(found) and because == "not all ranks compute on a GPU"
    monkeypatch.setattr(ThreadGroup, "refuses_device_memory", lambda group, index: "no" * group.rank)
    for found, way, because in run_ranks(3, lambda g: sums(g, [0, 1, 2], gpu="direct")):
        assert are_right(found) and way is Staged and because == "no"


NETWORKS = {
    "mlp": (
        (5,),
        lambda: nn.Sequential(nn.Dense(6), nn.ReLU(), nn.BatchNorm(sync=False), nn.Dropout(0.3), nn.Dense(3)),
    ),
    "text": (None, lambda: nn.Sequential(nn.Embedding(40, 4), nn.TokenMean(), nn.Dense(3))),
    "lstm": (None, lambda: nn.Sequential(nn.Embedding(40, 4), nn.LSTM(5), nn.Dense(3))),
    "attention": (
        None,
        lambda: nn.Sequential(
            nn.Embedding(40, 4),
            nn.PositionalEmbedding(),
            nn.Residual(nn.LayerNorm(), nn.MultiHeadAttention(2)),
            nn.TokenMean(),
            nn.Dense(3),
        ),
    ),
    "cnn": (
        (6, 6, 2),
        lambda: nn.Sequential(
            nn.Conv2D(4, padding="same"),
            nn.BatchNorm(sync=True),
            nn.ReLU(),
            nn.MaxPool2D(2),
            nn.Flatten(),
            nn.Dense(3),
        ),
    ),
}


def samples_and_model(shape, network, poisoned=()):
    random = np.random.default_rng(5)
    x = random.integers(0, 40, (26, 5)) if shape is None else random.normal(size=(26, *shape)).astype(np.float32)
    if poisoned:
        x[poisoned] = np.nan
    source = Arrays(x, random.integers(0, 3, 26))
    return source, Supervised(network(), CrossEntropy(), x.shape[1:], [METRICS[name]() for name in ("accuracy", "f1")])


def trained(group, shape, network, optimizer, on_gpu, poisoned=(), **changes):
    source, model = samples_and_model(shape, network, poisoned)
    layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, "float32")
    task = Task(
        model=model,
        train=source,
        validation=None,
        test=None,
        order=Order(26, 6, 13, 2),
        optimizer=Groups(layout, optimizer),
        lr=lambda step: 0.01,
        total_steps=4,
        prefetch=0,
        clip_norm=1.0,
        **changes,
    )
    where = device("auto", group.rank) if group.rank in on_gpu else Device()
    loop = Loop(task, group, where, TrainingState(model, task.optimizer.slots, "float32", 0, where))
    loop.start(group)
    try:
        problem = loop.train()
        assert problem is None, problem
    finally:
        loop.close()
    return np.concatenate([host(loop.state.params.flat), host(loop.state.averages.flat)])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("on_gpu", "changes"),
    [([0, 1], {}), ([1], {}), ([0, 1], {"gpu": "staged", "overlap": "on", "parts": 2})],
    ids=["direct", "a GPU and a CPU", "staged"],
)
def test_steps_equal_those_of_the_cpu(cupy, name, on_gpu, changes):
    how = (*NETWORKS[name], OPTIMIZERS["momentum"](lr=0.05))
    wanted = run_ranks(2, lambda g: trained(g, *how, [], **changes))
    for got, want in zip(run_ranks(2, lambda g: trained(g, *how, on_gpu, **changes)), wanted, strict=True):
        assert not isinstance(got, Exception), got
        assert np.allclose(got, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_in_mixed_precision_are_those_of_the_cpu_and_near_those_in_float32(cupy, name):
    how = (*NETWORKS[name], OPTIMIZERS["momentum"](lr=0.05))
    full, on_cpu, on_gpu = (
        run_ranks(2, lambda g, on=on, mixed=mixed: trained(g, *how, on, mixed=mixed))
        for on, mixed in (([], False), ([], True), ([0, 1], True))
    )
    assert all(isinstance(got, np.ndarray) for got in (*on_cpu, *on_gpu)), (on_cpu, on_gpu)
    assert np.array_equal(*on_cpu) and np.array_equal(*on_gpu)
    assert np.allclose(on_gpu[0], on_cpu[0], rtol=5e-3, atol=5e-4)
    assert np.allclose(on_cpu[0], full[0], rtol=1e-2, atol=2e-3) and not np.array_equal(on_cpu[0], full[0])


@pytest.mark.parametrize("overlap", ["on", "off"])
@pytest.mark.parametrize("name", ["mlp", "text"])
def test_a_rank_computes_on_the_gpu_that_it_was_given(cupy, name, overlap):
    cupy.cuda.runtime.getDeviceCount = lambda: 2
    how = (*NETWORKS[name], OPTIMIZERS["momentum"](lr=0.05))
    changes = {"gpu": "staged", "overlap": overlap}  # threads that are ranks cannot reach each other's GPU
    wanted = run_ranks(2, lambda g: trained(g, *how, [], **changes))
    for got, want in zip(run_ranks(2, lambda g: trained(g, *how, [0, 1], **changes)), wanted, strict=True):
        assert not isinstance(got, Exception), got
        assert np.allclose(got, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_and_outputs_equal_those_of_the_cpu(cupy, name):
    source, model = samples_and_model(*NETWORKS[name])
    found = []
    for where in (Device(), Device(0)):
        state = TrainingState(model, (), "float32", 0, where)
        figures = run_ranks(2, lambda g, s=state: evaluate(model, s, source, g, rows=5))[1]
        found.append((figures, outputs_of(model, state, source.gather(np.arange(4)))["output"]))
    (want, wanted), (got, outputs) = found
    assert got == pytest.approx(want) and np.allclose(outputs, wanted, atol=1e-6)


def test_pictures_equal_those_of_the_cpu(cupy):
    source = Arrays(np.random.default_rng(0).random((5, 4, 4), np.float32))
    models = build("autoencoder", source.fields, options={"code": 2}), build("gan", source.fields)
    reconstructed, drawn = [], []
    for where in (Device(), Device(0)):
        states = [TrainingState(model, (), "float32", 0, where) for model in models]
        loop = SimpleNamespace(task=SimpleNamespace(test=source), work=SimpleNamespace(transforms=()), state=states[0])
        reconstructed.append(plots._reconstructions(loop, models[0]))
        drawn.append(plots.samples(models[1], states[1], 3, seed=1))
    assert np.allclose(*reconstructed, atol=1e-6) and np.allclose(*drawn, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"parts": 2}], ids=str)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_poisoned_sample_costs_its_step_and_nothing_else(cupy, name, changes):
    how = (*NETWORKS[name], OPTIMIZERS["momentum"](lr=0.05))
    wanted, got = (run_ranks(2, lambda g, on=on: trained(g, *how, on, [3], **changes))[0] for on in ([], [0, 1]))
    assert np.isfinite(wanted).all() and np.allclose(got, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(cupy, name):
    how = (*NETWORKS["text"], OPTIMIZERS[name](lr=0.01))
    want = run_ranks(1, lambda g: trained(g, *how, []))[0]
    assert np.allclose(run_ranks(1, lambda g: trained(g, *how, [0]))[0], want, rtol=1e-4, atol=1e-5)


def test_ranks_share_a_gpus_memory(cupy):
    cupy.cuda.runtime.getDeviceCount = lambda: 2
    assert [device("auto", local).index for local in range(5)] == [0, 1, 0, 1, 0]
    assert [ranks_on(Device(index), 5) for index in (0, 1, None)] == [3, 2, 1]
    assert limit_memory(Device(1), 2, 0.8) == 400 and cupy.limits == [400]
    assert limit_memory(Device(), 1, 0.8) == 0 and cupy.limits == [400]


def test_a_library_without_cuda_is_not_tried():
    assert device_memory.refusal(sys.modules[__name__], 0) == "this MPI library was built without CUDA"


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("", ""),
        ("import os; os.kill(os.getpid(), 11)", "status -11: it said nothing"),
        ("raise SystemExit('no driver')", "status 1: no driver"),
        ("import os; assert not [n for n in os.environ if n.startswith('PMIX')]", ""),
    ],
)
def test_a_trial_that_crashes_costs_the_job_nothing(program, says):
    reason = device_memory.trial([sys.executable, "-c", program], {"PMIX_RANK": "1"})
    assert reason == (f"MPI did not sum one element in GPU memory ({says})" if says else "")


def test_a_trial_that_hangs_ends():
    reason = device_memory.trial([sys.executable, "-c", "import time; time.sleep(60)"], {}, limit_s=0.2)
    assert "timed out" in reason


def test_the_bench_says_in_one_line_that_there_is_no_gpu(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert bench(["gpu"]) == 1
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "no CUDA device" in said
