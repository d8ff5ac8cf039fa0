"""Gradients on a GPU have the same sums as gradients on the host."""

import numpy as np
import pytest

from ddl.arrays import Device, Layout, host
from ddl.comm.threads import run_ranks
from ddl.parallel import GradientSum, SumOptions

LAYOUT = Layout.of({"w1": (300, 70), "b1": (70,), "w2": (70, 30)})


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", ["on", "off"])
@pytest.mark.parametrize("can_share", [True, False])
@pytest.mark.parametrize("on_gpu", [[0, 1, 2], [0]], ids=["all on the GPU", "one on the GPU"])
def test_sums_of_ranks_on_a_gpu(overlap, can_share, on_gpu):
    pytest.importorskip("cupy")

    def work(group):
        device = Device(0 if group.rank in on_gpu else None)
        reducer = GradientSum(group, LAYOUT, 2, SumOptions(overlap=overlap, bucket_mib=0.01), device=device)
        found = []
        for step in range(5):
            for name in reversed(list(LAYOUT.shapes)):
                reducer.local[name][...] = group.rank + step
                reducer.announce([name])
            reducer.header[:] = step
            total = reducer.finish()
            views = LAYOUT.views(host(total.gradient))
            found.append(({float(v) for view in views.values() for v in np.unique(view)}, total.header.tolist()))
        reducer.close()
        return found

    for got in run_ranks(3, work, can_share=can_share):
        assert got == [({3.0 + 3 * step}, [3.0 * step] * 2) for step in range(5)]
