"""What a module may contain, and what is refused before the first step."""

from __future__ import annotations

import copy
import threading
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import ddl
import ddl.torch
from ddl.arrays import Device, FlatBuffer
from ddl.data import Order
from ddl.errors import ConfigError, DdlError, UserError
from ddl.models import build
from ddl.nn import Context
from ddl.train.state import TrainingState


def mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def model_of(fresh, kind, loss="cross_entropy", **options):
    return ddl.torch.Model(fresh(kind), loss, **options)


def values(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def assert_equal(found, wanted, tolerance=1e-9):
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)


def on_ranks(trained, make, x, y, **options):
    """The values that one, two and three ranks train to; they must agree."""
    options = {"shards": 4, "steps": 6, **options}
    alone, two, three = ([values(model) for model, _ in trained(n, make, x, y, **options)] for n in (1, 2, 3))
    for found in [*two, *three]:
        assert_equal(found, alone[0])
    return alone[0]


class WithFrozenPart(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(5, 8)
        self.frozen.requires_grad_(False)
        self.out = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.frozen(x)))


@pytest.mark.parametrize("sharded", ["off", "on"])
def test_frozen_and_unused_parameters_stay_unchanged_with_any_weight_decay(trained, fresh, points, sharded):
    make = partial(model_of, fresh, WithFrozenPart)
    before = fresh(WithFrozenPart).state_dict()
    found = on_ranks(trained, make, *points, optimizer=ddl.optim.SGD(lr=0.1, weight_decay=0.1), sharded=sharded)
    assert list(found) == list(before)
    assert torch.equal(found["frozen.weight"], before["frozen.weight"])
    assert not torch.equal(found["out.weight"], before["out.weight"])
    # Weight decay is of trained parameters, those without a gradient in this step among them.
    torch.testing.assert_close(found["unused.weight"], before["unused.weight"] * 0.99**6)
    model = make()
    assert model.frozen == ["frozen.weight", "frozen.bias"]
    assert "frozen.weight" not in ddl.models.gradient_layout(model, "float64").shapes


class Tied(nn.Module):
    def __init__(self, sparse=False):
        super().__init__()
        self.table = nn.Embedding(7, 6, sparse=sparse)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x):
        return self.out(torch.tanh(self.table(x).mean(1)))


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(400, 6, sparse=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.table(x).mean(1))


class TiedTheOtherWay(Tied):
    def __init__(self):
        super().__init__(sparse=True)
        first, table = self.out, self.table
        del self.out, self.table
        self.out, self.table = first, table  # the table's weight is called out.weight


@pytest.mark.parametrize("kind", [Tied, partial(Tied, sparse=True), TiedTheOtherWay, Sparse])
def test_tied_and_sparse_embeddings_train_the_same_on_any_number_of_ranks(trained, fresh, kind):
    random = np.random.default_rng(0)
    x = random.integers(0, 7, (48, 4))
    found = on_ranks(trained, partial(model_of, fresh, kind), x, x[:, 0] % 3)
    if kind is Sparse:  # only touched rows travel
        assert model_of(fresh, kind).by_rows == ["table.weight"]
    dense = fresh(kind)
    for part in dense.modules():
        part.sparse = False
    plain = on_ranks(trained, lambda: ddl.torch.Model(copy.deepcopy(dense), "cross_entropy"), x, x[:, 0] % 3)
    assert_equal(found, plain)


class Checkpointed(nn.Module):
    def __init__(self, reentrant=True):
        super().__init__()
        self.first, self.block, self.out, self.reentrant = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3), reentrant

    def forward(self, x):
        h = self.first(x)
        for _ in range(2):  # the block's weight is used in two checkpointed parts
            h = checkpoint(lambda h: torch.tanh(self.block(h)), h, use_reentrant=self.reentrant)
        return self.out(h)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing_of_either_kind_gives_the_same_parameters(trained, fresh, points):
    kinds = [partial(Checkpointed, reentrant) for reentrant in (True, False)]
    first, second = (on_ranks(trained, partial(model_of, fresh, kind), *points, overlap="on") for kind in kinds)
    assert_equal(first, second)


class Normed(nn.Module):
    def __init__(self, momentum=0.1):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(5, momentum=momentum), nn.Linear(5, 3)
        self.register_buffer("table", torch.arange(3))

    def forward(self, x):
        return self.out(self.norm(x))


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_are_those_of_pytorch_and_counters_count_steps(trained, fresh, points, momentum):
    x, y = points
    kind = partial(Normed, momentum)
    found = on_ranks(trained, partial(model_of, fresh, kind), x, y, batch=48, shards=1, steps=5)
    plain = fresh(kind)
    for _ in range(5):
        plain(torch.from_numpy(x))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(found[f"norm.{name}"], plain.state_dict()[f"norm.{name}"])
    assert found["norm.num_batches_tracked"] == 5 and found["table"].dtype == torch.int64


class Images(nn.Module):
    def __init__(self, norm=nn.SyncBatchNorm):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv1d(1, 4, 2, bias=False), norm(4), nn.Linear(16, 3)

    def forward(self, x):
        return self.out(torch.relu(self.norm(self.conv(x[:, None]))).flatten(1))


@pytest.mark.parametrize("samples", [48, 34])  # in the last step of 34 there are fewer samples than ranks
def test_sync_batch_norm_is_that_of_one_process_on_any_number_of_ranks(trained, fresh, points, samples):
    x, y = (value[:samples] for value in points)
    steps = 4
    found = on_ranks(trained, partial(model_of, fresh, Images), x, y, batch=16, shards=4, steps=steps)
    plain = fresh(partial(Images, nn.BatchNorm1d))
    plain.load_state_dict(fresh(Images).state_dict())
    optimizer, order = torch.optim.SGD(plain.parameters(), 0.1), Order(samples, 4, 16, 0)
    for step in range(steps):
        rows, _ = order.indices(*divmod(step, order.steps_per_epoch), range(4))
        optimizer.zero_grad()
        F.cross_entropy(plain(torch.from_numpy(x[rows])), torch.from_numpy(y[rows])).backward()
        optimizer.step()
    assert_equal(found, plain.state_dict())


def test_a_shard_of_one_sample_is_normalised_by_the_running_statistics(trained, fresh, points):
    x, y = (value[:33] for value in points)  # the last step of an epoch has one sample
    kind = partial(Normed, 0.3)
    before = fresh(kind)
    found = on_ranks(trained, partial(model_of, fresh, kind), x, y, batch=32, shards=1, steps=2)
    first = on_ranks(trained, partial(model_of, fresh, kind), x, y, batch=32, shards=1, steps=1)
    assert torch.equal(found["norm.running_mean"], first["norm.running_mean"])
    assert not torch.equal(found["norm.running_mean"], before.norm.running_mean)
    assert not torch.equal(found["out.weight"], first["out.weight"])


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, 3)
        self.register_buffer("seen", torch.zeros(5))

    def forward(self, x):
        if self.training:
            self.seen.copy_(x.detach().mean(0))
        return self.out(x)


def test_a_buffer_that_forward_changes_must_be_named_and_is_averaged_over_the_samples(trained, fresh, points):
    x, y = points
    with pytest.raises(DdlError, match=r"averaged=\['seen'\]"):
        trained(1, partial(model_of, fresh, Counting), x, y)
    found = on_ranks(trained, partial(model_of, fresh, Counting, averaged=["seen"]), x, y, batch=48)
    torch.testing.assert_close(found["seen"], torch.from_numpy(x.mean(0)))
    with pytest.raises(ConfigError, match="no buffer 'sene'"):
        model_of(fresh, Counting, averaged=["sene"])


def test_callbacks_and_the_module_after_training_see_the_committed_weights(trained, fresh, points):
    seen, rank = [], threading.local()

    def make():
        rank.model = model_of(fresh, mlp)
        return rank.model

    def callback(outcome):
        seen.append((outcome.step, rank.model.module[0].weight.detach().clone()))

    def weight_after(steps):
        return values(trained(1, partial(model_of, fresh, mlp), *points, shards=4, steps=steps)[0][0])["0.weight"]

    results = trained(2, make, *points, shards=4, steps=3, sharded="on", callbacks=[callback])
    assert [step for step, _ in seen] == [1, 2, 3]
    for step, weight in seen:
        torch.testing.assert_close(weight, weight_after(step))
    for model, loop in results:
        assert np.array_equal(model.module[0].weight.detach().numpy(), loop.state.params["0.weight"])
        assert model.module.training


WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=1, label_smoothing=0.1),
        partial(F.cross_entropy, ignore_index=1),
        lambda outputs, targets: F.cross_entropy(outputs, targets),
        lambda outputs, targets: (F.cross_entropy(outputs, targets, reduction="sum"), len(targets)),
        nn.MultiMarginLoss(),
    ],
)
def test_a_mean_loss_is_that_of_the_global_batch_on_any_number_of_ranks(trained, fresh, points, loss):
    x, y = points
    found = on_ranks(trained, partial(model_of, fresh, mlp, loss), x, y, batch=48, steps=3)
    plain = fresh(mlp)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        value = loss(plain(torch.from_numpy(x)), torch.from_numpy(y))
        (value[0] / value[1] if isinstance(value, tuple) else value).backward()
        optimizer.step()
    assert_equal(found, plain.state_dict())


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), 'reduction = "sum"'),
        (partial(F.cross_entropy, reduction="none"), 'reduction = "none"'),
        (lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="sum"), "must be a mean"),
        (lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"), "a tensor of shape"),
        (lambda outputs, targets: 3.0, "a float"),
        ("cross_entropi", "did you mean 'cross_entropy'"),
        (nn.CosineEmbeddingLoss(), "cannot compute 4 of the samples"),
        (7, "not 7"),
        (nn.CrossEntropyLoss, "the loss is a class: make one, CrossEntropyLoss()"),
    ],
)
def test_a_loss_that_is_not_a_mean_is_rejected_in_one_line(fresh, points, loss, words):
    x, y = points
    with pytest.raises(ConfigError) as refused:
        model_of(fresh, mlp, loss).check({"x": x[:4], "y": y[:4]})
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_loss_by_name_says_that_it_takes_one_tensor(fresh, points):
    class Named(nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x)}

    x, y = points
    model = ddl.torch.Model(Named(5, 3).double(), "cross_entropy")
    with pytest.raises(ConfigError, match="one tensor of outputs, and the module returns a dict"):
        model.check({"x": x[:4], "y": y[:4]})


def test_metrics_are_means_over_samples_by_function_or_by_name(trained, fresh, points):
    functions = {
        "right": lambda outputs, targets: outputs.argmax(1) == targets,
        "mean": lambda outputs, targets: (outputs.argmax(1) == targets).double().mean(),
    }
    for metrics in (functions, ["accuracy", "confusion"]):
        [(_, loop)] = trained(1, partial(model_of, fresh, mlp, metrics=metrics), *points, shards=4, steps=30)
        results = loop.state.progress.results["test"]
        if metrics is functions:
            assert results["right"] == results["mean"] > 0.5
            assert 0 < loop.state.progress.results["train"]["right"] <= 1
        else:
            assert results["accuracy"] == pytest.approx(np.trace(results["confusion"]) / 48)


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = mlp()

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.layers(x.float())


def test_a_module_may_compute_in_bfloat16(points):
    x, y = points
    model = ddl.torch.Model(Autocast(), "cross_entropy", ["accuracy"])
    model.check({"x": x[:4].astype(np.float32), "y": y[:4]})
    state = TrainingState(model, (), "float32", 0, Device())
    grads = FlatBuffer(ddl.models.gradient_layout(model, "float32"))
    ctx = Context(training=True)
    ctx.begin([slice(0, 24), slice(24, 48)], [0, 1], 0)
    batch = {"x": x.astype(np.float32), "y": y}
    loss, weight, sums = model.loss_and_gradients(state.params.views, state.buffers, batch, grads.views, ctx)
    assert np.isfinite(loss) and weight == sums["accuracy/1"] == 48 and np.abs(grads.flat).max() > 0
    assert model.predict(state.params.views, state.buffers, batch, ctx)["output"].dtype == np.float32


def test_a_module_by_itself_gets_the_loss_and_metrics_that_suit_its_targets(fresh, points):
    x, y = points
    classes = build(fresh(mlp), ddl.data.Arrays(x, y).fields)
    assert classes.objective.name == "cross_entropy" and list(classes.step_metrics) == ["accuracy", "accuracy/1"]
    assert build(fresh(mlp), ddl.data.Arrays(x, x[:, :3]).fields).objective.name == "mse"


def half():
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 3)).half()


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (lambda: nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 3).double()), "parameters of one type"),
        (half, "torch.float16; ddl trains float32 and float64: keep them in float32"),
        (lambda: nn.Linear(5, 3, dtype=torch.complex64), "torch.complex64"),
        (lambda: "mlp", "takes a torch.nn.Module"),
        (nn.Tanh, "no parameter of the module requires a gradient"),
        (lambda: nn.LazyLinear(3), "lazy"),
        (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.SyncBatchNorm(3)), "BatchNorm beside SyncBatchNorm"),
        (lambda: nn.Linear(5, 3, device="meta"), "is on meta: ddl.torch trains modules in host memory"),
    ],
)
def test_a_module_that_cannot_be_trained_is_refused_in_one_line(module, words):
    with pytest.raises(ConfigError, match=words) as refused:
        ddl.torch.Model(module(), F.cross_entropy)
    assert "\n" not in str(refused.value)


def test_a_module_that_does_not_take_the_samples_is_refused_with_their_shapes(fresh, points):
    x, y = points
    with pytest.raises(ConfigError, match=r"cannot compute 4 of the samples \(x \(4, 3\), y \(4,\)\)"):
        model_of(fresh, mlp).check({"x": x[:4, :3], "y": y[:4]})
    with pytest.raises(ConfigError, match="takes 'y'"):
        model_of(fresh, mlp).check({"x": x[:4]})


def test_a_parameter_that_is_replaced_during_training_is_named(trained, fresh, points):
    made = []

    def make():
        made.append(model_of(fresh, mlp))
        return made[0]

    for change in (nn.Module.float, lambda module: module.to("meta")):
        with pytest.raises(DdlError, match=r"parameter '0.weight' of the module was replaced"):
            trained(1, make, *points, callbacks=[lambda outcome, change=change: change(made[0].module)])
        made.clear()


@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.float, lambda module: module.to("meta")])
def test_a_module_that_is_converted_before_training_is_refused_in_one_line(fresh, points, change):
    model, (x, y) = model_of(fresh, mlp), points
    change(model.module)
    with pytest.raises(ConfigError, match=r"parameter '0.weight' of the module is now torch") as refused:
        model.check({"x": x[:4], "y": y[:4]})
    assert "\n" not in str(refused.value)


def test_batch_norm_of_small_shards_is_refused_with_the_name_that_pytorch_has_for_the_other(points):
    net = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3))
    run = ddl.Trainer(net, points, global_batch=8, shards=8)
    with pytest.raises(ConfigError, match=r"use torch\.nn\.SyncBatchNorm\.convert_sync_batchnorm\(module\)"):
        run.fit(steps=1)


def test_tensors_are_data_whether_or_not_they_need_a_gradient(points, tmp_path, capsys):
    x, y = (torch.from_numpy(value) for value in points)
    settings = {"run.dir": str(tmp_path)}
    run = ddl.Trainer(nn.Linear(5, 3), (x.float().requires_grad_(), y), global_batch=80, settings=settings)
    run.fit(steps=1)
    assert run.predict(x.float().requires_grad_()).shape == (48, 3)
    assert "train.global_batch = 80 is larger than the training data" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="takes a list of samples"):
        ddl.Trainer(nn.Linear(5, 3), [(x[i], y[i]) for i in range(5)])
