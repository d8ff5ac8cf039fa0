"""PyTorch's DistributedDataParallel, unchanged, over backend "ddl": the digits on 4 ranks, any of which may be killed.

    mpirun --with-ft ulfm -n 4 python launch/examples/torch_ddp.py

``import ddl.torch`` and the backend's name are the only two lines that differ from a script for Gloo. After a rank is
lost the others skip the step in progress and train on without its samples; ``ddl.torch.Model`` and ``ddl.torch.State``
lose neither."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import ddl.torch  # noqa: F401 - makes the backend known


def main(epochs: int = 10) -> None:
    dist.init_process_group("ddl")
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    dataset = TensorDataset(x[:1437], y[:1437])
    sampler = DistributedSampler(dataset, seed=1)
    loader = DataLoader(dataset, batch_size=32, sampler=sampler)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
        total = torch.tensor([float(loss.detach())])
        dist.all_reduce(total, op=dist.ReduceOp.AVG)
        if dist.get_rank() == 0:
            print(f"epoch {epoch + 1}: loss {total.item():.4f} on {dist.get_world_size()} ranks", flush=True)
    with torch.no_grad():
        accuracy = (model(x[1437:]).argmax(1) == y[1437:]).float().mean()
    if dist.get_rank() == 0:
        print(f"accuracy {accuracy:.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
