"""PyTorch's distributed backend "ddl": the collectives of unchanged DistributedDataParallel, over ddl's sums.

``torch.distributed.init_process_group("ddl")`` under mpirun. What happens after the loss of a rank is in steps.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import reduce, wraps
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ddl.collectives import allreduce as sum_in_place
from ddl.comm import Group, ending, mpi
from ddl.environment import launched_size
from ddl.errors import JobEnded
from ddl.fault import session
from ddl.torch.allocator import keep_freed_memory
from ddl.torch.deferred import SUMMED, Deferrals, Deferred, Sums
from ddl.torch.steps import Steps

_REDUCTIONS: dict[Any, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    dist.ReduceOp.SUM: torch.add,
    dist.ReduceOp.AVG: torch.add,
    dist.ReduceOp.PRODUCT: torch.mul,
    dist.ReduceOp.MIN: torch.minimum,
    dist.ReduceOp.MAX: torch.maximum,
    dist.ReduceOp.BAND: torch.bitwise_and,
    dist.ReduceOp.BOR: torch.bitwise_or,
    dist.ReduceOp.BXOR: torch.bitwise_xor,
}


class Done(dist.Work):
    """A collective that has returned."""

    def __init__(self, tensors: Any = None):
        super().__init__()
        self._future: Any = torch.futures.Future()
        self._future.set_result(tensors)

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        return True

    def get_future(self) -> Any:
        return self._future

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True


class ProcessGroup(dist.ProcessGroup):
    """All ranks of the job, for tensors in host memory."""

    def __init__(self, steps: Steps):
        super().__init__(steps.group.rank, steps.group.size)
        self.steps = steps
        self._deferrals = Deferrals(self._sum_gradients)
        self._sums = Sums(steps.group)

    def getBackendName(self) -> str:
        return "ddl"

    def size(self) -> int:
        return self.steps.group.size

    def rank(self) -> int:
        return self.steps.group.rank

    def allreduce(self, tensors: list[torch.Tensor], options: Any = None) -> dist.Work:
        operation = _operation(options)
        if torch._C._current_graph_task_id() == -1:
            _assign(tensors, self._reduced(tensors, operation))
            return Done(tensors)
        # DDP's own sums are asynchronous; those of SyncBatchNorm are not, and it counts the samples itself.
        if options is None or options.asyncOp:
            return self._deferrals.add(tensors, operation)  # which may do it at once

        def sum_tensors() -> None:
            for tensor in tensors:
                self._reduce(tensor, operation)

        self.steps.sum_gradients(tensors, sum_tensors, is_gradient=False)
        return Done(tensors)

    def _sum_gradients(self, sums: Sequence[Deferred]) -> None:
        def run() -> None:
            by_type: dict[torch.dtype, list[torch.Tensor]] = {}
            for tensor, operation in ((tensor, one.operation) for one in sums for tensor in one.tensors):
                if operation == dist.ReduceOp.SUM and tensor.dtype in SUMMED and tensor.is_contiguous():
                    by_type.setdefault(tensor.dtype, []).append(tensor.detach().view(-1))
                else:
                    self._reduce(tensor, operation)
            if self._sums.group is not self.steps.group:
                self._sums = Sums(self.steps.group)
            for flats in by_type.values():
                self._sums.sum(flats)

        self.steps.sum_gradients([tensor for one in sums for tensor in one.tensors], run, is_gradient=True)

    def allreduce_coalesced(self, tensors: list[torch.Tensor], options: Any = None) -> dist.Work:
        return self.allreduce(tensors, options)

    def reduce(self, tensors: list[torch.Tensor], options: Any = None) -> Done:
        results = self._reduced(tensors, _operation(options))
        if self.rank() == _root(options):
            _assign(tensors, results)
        return Done(tensors)

    def broadcast(self, tensors: list[torch.Tensor], options: Any = None) -> Done:
        root = _root(options)

        def send() -> list[list[np.ndarray]]:
            if root >= self.size():
                raise ValueError(f"rank {root} was to send, but {self.size()} ranks are left, numbered from 0")
            results = [_bytes(tensor).copy() for tensor in tensors]
            for result in results:
                self.steps.group.broadcast(result, root)
            return [results]

        _assign(tensors, self.steps.call(send)[0])
        return Done(tensors)

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], options: Any = None) -> Done:
        every = self._gathered(inputs)
        for number, parts in enumerate(outputs):
            found = [part[number] for part in every]
            if options is None or options.asyncOp:
                # DDP compares all ranks' sizes of parameters with its own: for it, a lost rank's are as this rank's.
                found += [found[self.rank()]] * (len(parts) - len(found))
            _assign(parts, found)
        return Done(outputs)

    def all_gather_single(self, output: torch.Tensor, mine: torch.Tensor, options: Any = None) -> Done:
        parts = [part[0] for part in self._gathered([mine])]
        _assign(list(output.view(-1).split(mine.numel())), parts)
        return Done([output])

    _allgather_base = all_gather_single

    def gather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], options: Any = None) -> Done:
        every = self._gathered(inputs)
        if self.rank() == _root(options):
            for number, parts in enumerate(outputs):
                _assign(parts, [part[number] for part in every])
        return Done(outputs)

    def scatter(self, outputs: list[torch.Tensor], inputs: list[list[torch.Tensor]], options: Any = None) -> Done:
        root, me = _root(options), self.rank()
        for number, output in enumerate(outputs):
            every = self._gathered(inputs[number] if me == root else [])
            _assign([output], [every[root][self.rank()]])
        return Done(outputs)

    def reduce_scatter_single(self, output: torch.Tensor, whole: torch.Tensor, options: Any = None) -> Done:
        summed = self._reduced([whole], _operation(options))[0]
        mine = torch.from_numpy(summed).view(whole.dtype)[self.rank() * output.numel() :][: output.numel()]
        output.copy_(mine.view(output.shape))
        return Done([output])

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter(
        self, outputs: list[torch.Tensor], inputs: list[list[torch.Tensor]], options: Any = None
    ) -> Done:
        for output, parts in zip(outputs, inputs, strict=True):
            self.reduce_scatter_single(output, torch.stack([part.detach() for part in parts]), options)
        return Done(outputs)

    def alltoall(self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], options: Any = None) -> Done:
        every = self._gathered(inputs)
        _assign(outputs, [part[self.rank()] for part in every])
        return Done(outputs)

    def all_to_all_single(
        self,
        output: torch.Tensor,
        mine: torch.Tensor,
        output_rows: Sequence[int] = (),
        input_rows: Sequence[int] = (),
        options: Any = None,
    ) -> Done:
        """output_rows, input_rows: how many are received from, and sent to, each rank; none: equal parts."""
        ranks = self.size()
        sent = mine.split(list(input_rows) or len(mine) // ranks)
        received = output.split(list(output_rows) or len(output) // ranks)
        return self.alltoall(list(received), list(sent))

    alltoall_base = all_to_all_single

    def barrier(self, opts: Any = None) -> Done:  # PyTorch gives it by name
        self.steps.call(lambda: [])
        return Done()

    def send(self, tensors: Any, destination: int, tag: int = 0) -> Any:
        raise NotImplementedError('backend "ddl" has no send and recv; make a group of backend "gloo" for them')

    def recv(self, tensors: Any, source: int, tag: int = 0) -> Any:
        raise NotImplementedError('backend "ddl" has no send and recv; make a group of backend "gloo" for them')

    def _gathered(self, mine: Sequence[torch.Tensor]) -> list[list[np.ndarray]]:
        """The memory of every rank's tensors, by rank."""
        return self.steps.call(lambda: self.steps.group.gather_objects([_bytes(tensor) for tensor in mine]))

    def _reduced(self, tensors: Sequence[torch.Tensor], operation: Any) -> list[np.ndarray]:
        def run() -> list[list[np.ndarray]]:
            # Into copies: if a rank dies meanwhile, the call begins again with what it was given.
            results = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]
            for result in results:
                self._reduce(result, operation)
            return [[_bytes(result) for result in results]]

        return self.steps.call(run)[0]

    def _reduce(self, tensor: torch.Tensor, operation: Any) -> None:
        """Reduce one tensor over the ranks, in place. Raises PeerLost; the tensor is then undefined."""
        group = self.steps.group
        if not tensor.numel():
            return
        if operation in (dist.ReduceOp.SUM, dist.ReduceOp.AVG) and tensor.dtype in SUMMED:
            flat = tensor.detach().contiguous().view(-1)
            sum_in_place(flat.numpy(), group)
        else:
            every = [torch.from_numpy(part) for part in group.gather_objects(_bytes(tensor).copy())]
            flat = reduce(_REDUCTIONS[operation], [part.view(tensor.dtype) for part in every])
        if operation == dist.ReduceOp.AVG:
            flat = flat.div(group.size)
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view(tensor.shape))


def _operation(options: Any) -> Any:
    operation = dist.ReduceOp.SUM if options is None else options.reduceOp
    found = next((known for known in _REDUCTIONS if operation == known), None)
    if found is None:
        raise ValueError(f'backend "ddl" does not know the reduction {operation}')
    return found


def _root(options: Any) -> int:
    return 0 if options is None else int(options.rootRank)


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's memory as an array (bytes,); a copy if it is not contiguous."""
    if tensor.device.type != "cpu":
        raise ValueError(f'backend "ddl" works on host memory; a tensor is on {tensor.device}')
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()


def _assign(tensors: Sequence[torch.Tensor], results: Sequence[np.ndarray]) -> None:
    """Copy arrays of bytes into tensors. Tensors of ranks that are lost, behind those of the others, become zeros."""
    with torch.no_grad():
        for number, tensor in enumerate(tensors):
            if not tensor.numel():
                continue  # NumPy gives arrays of no bytes no stride, and they cannot be of another type
            if number < len(results):
                tensor.copy_(torch.from_numpy(results[number]).view(tensor.dtype).view(tensor.shape))
            else:
                tensor.zero_()


_steps: Steps | None = None


def join(timeout: timedelta) -> Group:
    """This process as a rank of its job. A rank that takes no step and waits for no other for ``timeout`` counts as
    hung and is killed."""
    joined = session.current()
    if joined is None:
        joined = session.join(timeout.total_seconds())
        if joined.heartbeat is not None:
            joined.heartbeat.wait(False)  # what the script does from now on is watched
        ending.on_uncaught(_uncaught)
        if "OMP_NUM_THREADS" in os.environ:  # ddl has shared the cores among the ranks of this node
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return joined.group


def create(rank: int, size: int, timeout: timedelta) -> ProcessGroup:
    """The process group of all ranks; called by PyTorch. Raises ValueError for a group of some of them, and for ranks
    that torchrun has started."""
    if size > 1 and launched_size() is None and session.current() is None:
        raise ValueError(
            f'backend "ddl" needs ranks that MPI has started: mpirun --with-ft ulfm -n {size} python ..., not torchrun'
        )
    group = join(timeout)
    if (rank, size) != (group.rank, group.size):
        raise ValueError(
            f'backend "ddl" has one group, of all {group.size} ranks that mpirun started, numbered as mpirun did; '
            f'rank {rank} of {size} was asked for. Make other groups with new_group(..., backend="gloo")'
        )
    return of(group)


def of(group: Group) -> ProcessGroup:
    """The process group of all ranks of ``group``, which this process's session holds."""
    global _steps
    if _steps is None:
        keep_freed_memory()
        _refuse_join()
        _steps = Steps(group)
        register_optimizer_step_pre_hook(_steps.before_step)
    return ProcessGroup(_steps)


def _refuse_join() -> None:
    """Make DDP.join raise ValueError: ranks without a batch answer each sum when it is made, and here DDP's sums wait
    for the end of backward."""
    enter = Join.__init__

    @wraps(enter)
    def checked(self: Join, joinables: list[Any], enable: bool = True, *args: Any, **named: Any) -> None:
        if enable and any(dist.get_backend(one.join_process_group) == "ddl" for one in joinables):
            raise ValueError(
                'backend "ddl" has no DDP.join: give every rank as many batches, as DistributedSampler does, or use '
                "ddl.join with ddl.torch.DistributedOptimizer"
            )
        enter(self, joinables, enable, *args, **named)

    Join.__init__ = checked  # type: ignore[method-assign]


def _uncaught(error: BaseException) -> None:
    """An exception of the script ends the job, as it does under torchrun; only the loss of a rank is survived."""
    joined = session.current()
    assert joined is not None
    if isinstance(error, JobEnded):
        ending.leave(error.exit_status)
    sys.stderr = sys.__stderr__  # PyTorch's hook collects what is printed here, to print it after this has returned
    joined.end_if_refused(joined.refusal or error)
    ending.show(error)
    if joined.heartbeat is not None:
        joined.heartbeat.end()
    mpi.fail(joined.group, 1)
