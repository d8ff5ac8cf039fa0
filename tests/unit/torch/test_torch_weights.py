"""``model.from`` reads a state_dict that PyTorch saved, and nothing that could run code."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn

import ddl.torch
from ddl.arrays import Device
from ddl.config import Job, override
from ddl.errors import ConfigError
from ddl.train.initial import start_from
from ddl.train.state import TrainingState


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def started_from(path, **settings):
    """(messages, the state_dict of a new module) after ``model.from``."""
    model = ddl.torch.Model(net(), "cross_entropy")
    state = TrainingState(model, (), "float32", 0, Device())
    messages = start_from(override(Job(), {"model.from": str(path), **settings}), model)(state)
    model.show(state.params.views, state.buffers)
    return messages, model.module.state_dict()


def test_parameters_and_buffers_are_those_of_the_file(tmp_path):
    saved = net()
    saved(torch.randn(8, 3))  # its running statistics and its counter move
    torch.save(saved.state_dict(), tmp_path / "net.pt")
    messages, found = started_from(tmp_path / "net.pt")
    assert messages == []
    for name, value in saved.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    assert found["1.num_batches_tracked"] == 1


def test_what_does_not_match_is_named_and_may_be_left_out(tmp_path):
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5))
    torch.save(other.state_dict(), tmp_path / "net.pth")
    with pytest.raises(ConfigError, match=r"2.weight has shape \(5, 4\) there and \(2, 4\) here"):
        started_from(tmp_path / "net.pth")
    [message], found = started_from(tmp_path / "net.pth", **{"model.strict": False})
    assert "7 of 9 arrays were taken" in message
    assert np.array_equal(found["0.weight"].numpy(), other[0].weight.detach().numpy())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (net, "cannot be read: Weights only load failed"),
        (lambda: {"model": net().state_dict(), "epoch": 3}, r"no state_dict.*it has OrderedDict and int"),
        (lambda: None, "cannot be read"),
    ],
)
def test_other_files_are_refused_in_one_line(value, words, tmp_path):
    value = value()
    torch.save(value, tmp_path / "net.pt") if value is not None else (tmp_path / "net.pt").write_text("text")
    with pytest.raises(ConfigError, match=words) as refused:
        started_from(tmp_path / "net.pt")
    assert "\n" not in str(refused.value)
