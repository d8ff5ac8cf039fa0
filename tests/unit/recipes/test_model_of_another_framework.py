"""Recipe: a model of another framework. An adapter of six members trains modules that ddl did not define."""

from __future__ import annotations

import numpy as np

from ddl.nn import INITIALISERS


class Parameter:
    """What the other framework keeps for each parameter, as torch.nn.Parameter does."""

    def __init__(self, value):
        self.value, self.grad = value, None


class Module:
    """A module of another framework: it owns its parameters and computes their gradients in ``backward``."""

    def __init__(self):
        self.parameters = {"hidden": Parameter(np.zeros((4, 8))), "output": Parameter(np.zeros((8, 2)))}

    def __call__(self, x):
        self.x, hidden = x, x @ self.parameters["hidden"].value
        self.hidden = np.tanh(hidden)
        return self.hidden @ self.parameters["output"].value

    def backward(self, dy):
        self.parameters["output"].grad = self.hidden.T @ dy
        inner = dy @ self.parameters["output"].value.T * (1 - self.hidden**2)
        self.parameters["hidden"].grad = self.x.T @ inner


class Adapter:
    """The Model protocol of ddl around a Module: lend it the parameters, copy its gradients out."""

    step_metrics = ()

    def __init__(self):
        self.module, self.averages = Module(), {}
        initial = INITIALISERS["glorot"]
        self.params = {name: (p.value.shape, initial) for name, p in self.module.parameters.items()}

    def _outputs(self, params, batch):
        for name, parameter in self.module.parameters.items():
            parameter.value = params[name]  # a view of ddl's flat buffer, not a copy
        return self.module(batch["x"])

    def loss_and_gradients(self, params, buffers, batch, grads, ctx):
        outputs, rows = self._outputs(params, batch), np.arange(len(batch["y"]))
        shares = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        loss = -np.log(shares[rows, batch["y"]]).sum()
        right = float((outputs.argmax(axis=1) == batch["y"]).sum())
        if grads is not None:
            shares[rows, batch["y"]] -= 1
            self.module.backward(shares)
            for name, parameter in self.module.parameters.items():
                grads[name][...] = parameter.grad
            ctx.announce(list(self.params))
        return float(loss), float(len(rows)), {} if ctx.training else {"accuracy": right}

    def predict(self, params, buffers, batch, ctx):
        return {"output": self._outputs(params, batch)}

    def metric_values(self, sums, weight):
        return {name: value / weight for name, value in sums.items()}


def test_an_adapted_model_trains_to_the_same_parameters_on_one_rank_and_on_three(trained):
    [(alone, results)] = trained(1, model=Adapter)
    assert results["accuracy"] > 0.9
    for params, _ in trained(3, model=Adapter):
        np.testing.assert_allclose(params, alone, rtol=1e-9, atol=1e-12)
