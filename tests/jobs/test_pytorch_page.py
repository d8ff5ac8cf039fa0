"""Each block of code in docs/pytorch.md and pytorch-ddp.md runs as it is written, on two ranks, and its job on one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pytorch.md").read_text(encoding="utf-8")
DDP_PAGE = (ROOT / "docs" / "pytorch-ddp.md").read_text(encoding="utf-8")
NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden: int = 16):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, 3))

    def forward(self, x):
        return self.layers(x)
"""
DATA = """
import torch
from torch.utils.data import TensorDataset

def TrainSet():
    x = torch.randn(640, 5, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x[:, :3].argmax(1))
"""
BEFORE = """
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR
from torch.utils.data import Subset
import ddl, ddl.torch
from mypackage.data import TrainSet
from mypackage.nets import Net

train_set = TrainSet()
validation_set = Subset(train_set, range(64))
x, y = train_set.tensors

def use(block):
    torch.manual_seed(0)
    names = dict(globals())
    exec(block, names)
    with torch.no_grad():
        net = names["net"] if "net" in names else names["run"].model.module
        weights = torch.cat([p.reshape(-1) for p in net.parameters()])
    every = ddl.world.group().gather_objects(weights)
    assert all(torch.equal(one, every[0]) for one in every), block
    torch.manual_seed(0)
    fresh = Net()
    assert loss(net) < loss(fresh), block
    print("ran")

def loss(net):
    with torch.no_grad():
        return float(F.cross_entropy(net.eval()(x), y))

import ddl.world
"""


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "mypackage"
    folder.mkdir()
    for name, text in (("__init__", ""), ("nets", NETS), ("data", DATA)):
        (folder / f"{name}.py").write_text(text)
    return tmp_path


def test_the_blocks_run_and_leave_all_ranks_with_one_module(door, package):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 5
    script = package / "page.py"
    script.write_text(BEFORE + "\n".join(f"use({block!r})" for block in blocks))
    ended = door([script], 2)
    assert ended.status == 0, ended.said
    assert ended.out.splitlines().count("ran") == 2 * len(blocks), ended.said
    assert (package / "net.pt").exists()


def test_the_job_trains_and_is_evaluated_in_another_process(door, package):
    [command] = re.findall(r"^mpirun -n 4 python (.*)$", PAGE, re.MULTILINE)
    ended = door([*command.split(), "--train.epochs=2", "--metrics.console_every_s=0", "--run.dir=run"])
    assert ended.status == 0, ended.said
    ended = door(["-m", "ddl.evaluate", "run", "--trust"])
    assert ended.status == 0 and "accuracy" in ended.out, ended.said


def test_two_lines_make_a_script_with_ddp_run_here(door, tmp_path):
    [block] = re.findall(r"```python\n(.*?)```", DDP_PAGE, re.DOTALL)
    assert len([line for line in block.splitlines() if line]) == 2
    (tmp_path / "train.py").write_text(f"""
import torch
{block}
net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1, bias=False))
with torch.no_grad():
    net.module.weight.zero_()
rank = torch.distributed.get_rank()
net(torch.tensor([[1.0, rank]])).sum().backward()
print("gradient", net.module.weight.grad.tolist())
""")
    ended = door([tmp_path / "train.py"], 2)
    assert ended.status == 0 and ended.out.splitlines() == ["gradient [[1.0, 0.5]]"] * 2, ended.said
