"""Train a PyTorch module with ddl: the same result on any number of ranks, and ranks may die.

    pip install "ddl-mpi[torch]"
    python launch/examples/torch_trainer.py
    mpirun --with-ft ulfm -n 4 python launch/examples/torch_trainer.py

The module, the dataset, the optimizer and the scheduler are plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import Dataset, Subset

import ddl
import ddl.torch


class Digits(Dataset):
    """1797 images of 8 x 8 points, shifted at random where ``augment`` says so."""

    def __init__(self, augment: bool = False):
        arrays = ddl.data.digits().arrays
        self.x = torch.tensor(arrays["x"], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
        self.y, self.augment = arrays["y"], augment

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        image = self.x[number]
        if self.augment:
            image = torch.roll(image, int(torch.randint(-1, 2, ())), dims=-1)
        return image, int(self.y[number])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.dropout, self.out = nn.Dropout(0.1), nn.Linear(144, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.out(self.dropout(x.flatten(1)))


def right(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.argmax(1) == targets


def main() -> None:
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    run = ddl.Trainer(
        ddl.torch.Model(net, F.cross_entropy, metrics={"accuracy": right}),
        data=ddl.torch.Dataset(Subset(Digits(augment=True), range(1400))),
        validation=ddl.torch.Dataset(Subset(Digits(), range(1400, 1797))),
        global_batch=96,
        optimizer=optimizer,
        schedule=CosineAnnealingLR(optimizer, 4 * 15),
        settings={"run.name": "torch-example", "metrics.console_every_s": 0},
    )
    summary = run.fit(epochs=4)
    net.eval()  # it holds the trained weights, on every rank
    with torch.no_grad():
        images = torch.stack([image for image, _ in Subset(Digits(), range(1400, 1405))])
        guesses = net(images).argmax(1)
    if run.group.is_leader:
        result = summary["validation"]
        print(f"{run.group.size} of {summary['ranks_started']} ranks, ", end="")
        print(f"accuracy {result['accuracy']:.4f}, loss {result['loss']:.5f}, first guesses {guesses.tolist()}")
        torch.save(net.state_dict(), "torch-example.pt")


if __name__ == "__main__":
    main()
