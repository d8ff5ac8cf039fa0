"""A Trainer's arguments as the settings of a job: what config.toml of its run says.

trainer.py takes the arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields as fields_of
from typing import TYPE_CHECKING, Any

from ddl.config import OptimSettings
from ddl.data import Source
from ddl.models.layers import described_loss, described_network
from ddl.nn.losses import LOSSES
from ddl.optim import OPTIMIZERS, Optimizer
from ddl.registry import described

if TYPE_CHECKING:
    from ddl.run.trainer import Trainer


def record(trainer: Trainer, given: Mapping[str, Source | None], model: Any, loss: Any, metrics: Any) -> dict[str, Any]:
    """The arguments of a Trainer as config.toml records them: names unchanged, objects as plain values from which they
    can be rebuilt, or else as text."""
    lengths = {name: 0 if source is None else len(source) for name, source in given.items()}
    record: dict[str, Any] = {
        "data.source": described(given["train"]),
        **_of_model(model, loss),
        "data.augment": [one if isinstance(one, str) else described(one) for one in trainer.augment],
        "train.callbacks": [one for one in trainer.callbacks if isinstance(one, str)],
        **{f"data.{name}": lengths[name] / sum(lengths.values()) for name in ("validation", "test")},
    }
    if metrics is not None:
        record["model.metrics"] = [one if isinstance(one, str) else described(one) for one in metrics]
    if isinstance(trainer.schedule, str):
        record["optim.schedule"] = trainer.schedule
    if isinstance(trainer.optimizer, str):
        return {**record, "optim.name": trainer.optimizer}
    numbers = _numbers(trainer.optimizer)
    groups = [
        {"match": rule.match, "frozen": rule.frozen, **(_numbers(rule.optimizer) if rule.optimizer else {})}
        for rule in trainer.rules
    ]
    return {**record, "optim.no_decay": [], "optim.groups": groups} | {f"optim.{k}": v for k, v in numbers.items()}


def _of_model(model: Any, loss: Any) -> dict[str, Any]:
    options: dict[str, Any] = {}
    name, chosen = model, "auto" if loss is None else loss
    if not isinstance(model, str):
        tables = described_network(model)
        name, options = ("layers", {"layers": tables}) if tables else (described(model), {})
    if not isinstance(chosen, str):
        chosen, of_loss = described_loss(loss) or (described(loss), {})
        options |= {"loss": of_loss} if of_loss else {}
    return {"model.name": name, "model.loss": chosen, "model.options": options}


def loss_name(loss: Any) -> str:
    """The name of one of ddl's losses; "auto" for none, "" for the user's own."""
    if loss is None or isinstance(loss, str):
        return loss or "auto"
    return next((name for name, made in LOSSES.items() if type(loss) is made), "")


def _numbers(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's name and numbers as settings of [optim]."""
    name = next((name for name, made in OPTIMIZERS.items() if type(optimizer) is made), None)
    settings = {field.name for field in fields_of(OptimSettings)}
    numbers = {key: value for key, value in getattr(optimizer, "__dict__", {}).items() if key in settings}
    return {**numbers, "name": name or described(optimizer)}
