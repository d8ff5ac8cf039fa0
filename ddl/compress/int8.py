"""A trained run as an ONNX graph of 8-bit whole numbers, measured beside the graph of float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ddl.arrays import Array, Device, Views
from ddl.comm.threads import alone
from ddl.compress.measure import Variant
from ddl.data import Source
from ddl.errors import ConfigError
from ddl.export import quantize
from ddl.models.model import Supervised
from ddl.nn import Context
from ddl.nn.layer import Shape, Spec
from ddl.run.files import check_export
from ddl.run.trained import Trained
from ddl.train.evaluate import evaluate
from ddl.train.state import TrainingState

CALIBRATION = 512  # training samples, evenly spread over the training split and so over all shards
AT_ONCE = 64


def forms_of(trained: Trained, held_out: str) -> tuple[bytes, list[Variant]]:
    """The quantised graph, and both graphs as forms of the model.

    held_out: the split on which they are evaluated. Raises ConfigError for a model without ONNX form, or of which
    nothing can be quantised, and if the training samples cannot be opened any more."""
    if not isinstance(trained.model, Supervised):
        raise ConfigError(f"model {trained.job.model.name!r} cannot be quantised: it is not trained on targets")
    graph = check_export("model.onnx")(trained, "ddl")
    whole = quantize.quantized(graph, _samples(trained.split("train")))
    source = trained.split(held_out)
    return whole, [_form(f"ONNX {kind}", data, trained, source) for kind, data in (("float32", graph), ("int8", whole))]


def _samples(source: Source) -> Iterator[Mapping[str, np.ndarray]]:
    places = np.linspace(0, len(source) - 1, min(CALIBRATION, len(source))).astype(np.int64)
    for start in range(0, len(places), AT_ONCE):
        part = places[start : start + AT_ONCE]
        source.hold([range(int(part[0]), int(part[-1]) + 1)])
        yield {name: value for name, value in source.gather(part).items() if name in ("x", "categories")}


def _form(name: str, graph: bytes, trained: Trained, source: Source) -> Variant:
    session = quantize.session(graph)
    assert isinstance(trained.model, Supervised)
    model = replace(trained.model, network=_OfSession(session, trained.model.spec.output), _states=[])
    state = TrainingState(model, (), "float32", 0, Device())
    metrics = evaluate(model, state, source, alone(), rows=trained.job.data.batch_eval)
    return Variant(name, len(graph), metrics, lambda batch: session.run(["output"], dict(batch)))


@dataclass(frozen=True)
class _OfSession:
    """The network of an ONNX session as a layer, which takes samples as they are stored; only forward."""

    session: Any
    output: Shape

    def spec(self, shape: Shape) -> Spec:
        return Spec(self.output)

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        inputs = {"x": x} if ctx.categories is None else {"x": x, "categories": ctx.categories}
        return self.session.run(["output"], inputs)[0], None

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Any:
        raise NotImplementedError("an ONNX graph has no backward pass")
