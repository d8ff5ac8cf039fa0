"""Recovery of unchanged DistributedDataParallel: what a rank has done, and how the survivors agree after a loss.

When a rank dies, DDP must not see an error inside backward: it would never work again. So a sum that fails leaves the
gradients as they are, and before the optimizer's step the survivors recover, agree on one state, and skip that step.
DDP keeps dividing by the number of ranks it was made with, so later sums are scaled by the ratio. The dead rank's
samples are no longer visited. process_group.py sends and receives."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ddl.comm import Group
from ddl.data import Plan, assign
from ddl.errors import DdlError, PeerLost
from ddl.fault import session
from ddl.fault.recover import Recovery, RecoverySettings, Report
from ddl.fault.watchdog import Heartbeat
from ddl.fault.work import Recoverable

KEPT_BYTES = 1 << 20  # results of the script's own collectives up to this size are kept for ranks that missed them
BACKWARDS_WITHOUT_A_STEP = 1000


class Steps(Recoverable):
    """What this rank has done so far, and the recovery of the ranks' common state.

    taken: steps of optimizers that all ranks have taken or skipped. is_summing: gradients were summed since then.
    lost: the failure that a sum of gradients met; nothing is sent until the ranks have recovered.
    skipped: the step that no rank takes, after a failure. calls: collectives outside backward that have returned.
    kept: the result of the last of them, if it is small. A rank that such a call failed on gets it from a rank on which
    it succeeded: no rank can return from a second one before all have entered it."""

    def __init__(self, group: Group):
        self.group, self.began = group, group.size
        self.taken, self.skipped = 0, -1
        self.is_summing = False
        self.lost: PeerLost | None = None
        self.backwards: set[int] = set()  # since the failure
        self.calls = 0
        self.kept: list[list[np.ndarray]] | None = []
        self.received: list[list[np.ndarray]] | None = None
        self.has_missed = False  # a call that other ranks have returned from
        self.optimizers: list[torch.optim.Optimizer] = []
        joined = session.current()
        assert joined is not None
        self.heartbeat = joined.heartbeat or Heartbeat(group.me.identity)
        settings = RecoverySettings(beat=self._beat, recovering=self.heartbeat.recovering)
        self.recovery = Recovery(self, assign(group.size, group.size), group, settings)

    def _beat(self, phase: str) -> None:
        self.heartbeat.beat(self.taken, phase)

    @property
    def skips(self) -> bool:
        """Whether this rank computes a step that no rank will take."""
        return self.skipped == self.taken

    # Gradients: called during backward.

    def sum_gradients(self, tensors: Sequence[torch.Tensor], operation: Callable[[], None], is_gradient: bool) -> None:
        """Run ``operation``, a sum over the ranks, unless a rank was lost; then the gradients stay as they are."""
        self.is_summing = True
        if self.lost is not None:
            self.backwards.add(torch._C._current_graph_task_id())
            if len(self.backwards) > BACKWARDS_WITHOUT_A_STEP:
                raise RuntimeError(
                    "a rank was lost, and no optimizer of torch.optim has taken a step since"
                ) from self.lost
        if self.lost is not None or self.skips:
            return
        try:
            operation()
        except PeerLost as lost:
            self.lost = lost
            self.group.revoke()
            return
        if is_gradient and self.group.size != self.began:
            for tensor in tensors:
                if tensor.is_floating_point() or tensor.is_complex():
                    tensor.mul_(self.began / self.group.size)

    def before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """PyTorch calls this before each step of any optimizer. Leaves an optimizer without gradients, so that its
        step does nothing, if the ranks do not take this step."""
        if not any(optimizer is known for known in self.optimizers):
            self.optimizers.append(optimizer)
        if not self.is_summing:
            return  # an optimizer of this rank alone
        step = self.taken
        if not self.skips and self._all_have_summed():
            self.taken, self.is_summing = step + 1, False
            self._beat("function")
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        if self.taken == step:  # otherwise this rank has received the state after the step
            self.taken = step + 1
        self.is_summing = False

    def _all_have_summed(self) -> bool:
        """Whether every rank has the sums of this step. If not, the survivors have recovered when this returns."""
        if self.lost is None:
            try:
                self.group.barrier()
                return True
            except PeerLost as lost:
                self.lost = lost
        self.recover(self.lost)
        return False

    # Collectives of the script or of DDP's forward pass.

    def call(self, operation: Callable[[], list[list[np.ndarray]]]) -> list[list[np.ndarray]]:
        """Run a collective outside backward, whose result is the same on all ranks; after a failure run it again, or
        return the result that other ranks have got."""
        while True:
            try:
                if self.lost is not None:
                    raise self.lost
                results = operation()
                # A root may return from a broadcast before the others have begun.
                self.group.barrier()
                break
            except PeerLost as lost:
                self.recover(lost)
                if self.has_missed:
                    if self.received is None:
                        raise RuntimeError(
                            "a rank died in this collective: other ranks have returned from it, and its result was too "
                            f"large to be kept for this one (above {KEPT_BYTES >> 20} MiB)"
                        ) from lost
                    results = self.received
                    break
        self.calls += 1
        is_small = sum(array.nbytes for part in results for array in part) <= KEPT_BYTES
        self.kept = [[array.copy() for array in part] for part in results] if is_small else None
        self._beat("function")
        return results

    def recover(self, lost: PeerLost) -> None:
        before = self.group
        self.group, report = self.recovery.recover(before, lost)
        joined = session.hold(self.group)
        self.lost = None
        self.backwards.clear()
        if report.refusal is not None:
            joined.refusal = report.refusal
            raise report.refusal
        self._report(report)

    def _report(self, report: Report) -> None:
        if not self.group.is_leader:
            return
        dead = ", ".join(f"rank {death.identity} on {death.host} ({death.kind})" for death in report.deaths)
        skipped = f"step {self.skipped} is skipped" if self.skips else "no step is lost"
        print(
            f"ddl: lost {dead or 'no rank'}; {self.group.size} ranks keep training after "
            f"{report.seconds * 1e3:.0f} ms; {skipped}; samples of lost ranks are no longer visited",
            file=sys.stderr,
            flush=True,
        )

    # The contract of Recoverable: the state is that of the modules and optimizers themselves.

    def position(self) -> tuple[int, int]:
        return self.taken, 0

    def flat_arrays(self) -> list[np.ndarray]:
        return []

    def meta(self) -> Any:
        states = [optimizer.state_dict()["state"] for optimizer in self.optimizers]
        return self.taken, self._parameters(), states

    def take_over(self, arrays: list[np.ndarray], meta: Any) -> None:
        self.taken, parameters, states = meta
        self.is_summing = False
        with torch.no_grad():
            for mine, theirs in zip(self._parameters(), parameters, strict=True):
                mine.copy_(theirs)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            # Its own settings stay: a scheduler of this script changes them after each step.
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def attach(self, group: Group, plan: Plan) -> DdlError | None:
        positions = group.gather_objects((self.taken, self.is_summing, self.calls))
        newest, calls = max(taken for taken, _, _ in positions), max(calls for _, _, calls in positions)
        skips = any(taken == newest and is_summing for taken, is_summing, _ in positions)
        self.has_missed, self.received = self.calls < calls, None
        if any(known < calls for _, _, known in positions):
            source = next(rank for rank, (_, _, known) in enumerate(positions) if known == calls)
            self.received = group.gather_objects(self.kept if group.rank == source else None)[source]
        group.barrier()
        self.skipped = newest if skips else -1
        return None

    def detach(self) -> None:
        """Nothing is bound to a generation."""

    def _parameters(self) -> list[torch.Tensor]:
        return [p.detach() for optimizer in self.optimizers for g in optimizer.param_groups for p in g["params"]]
