"""Choose an allreduce by bytes, ranks and nodes: built-in rules, and tuning tables read from disk.

The bench measures tuning tables (ddl/bench/allreduce.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ddl.collectives.table import TABLE
from ddl.errors import UserError
from ddl.wording import instead

# From this size on, two barriers and a sum in shared memory cost less than the library's allreduce. Between two ranks
# the library sends one message each way, and up to 4 KiB sends it eagerly: the difference is a few tenths of a
# microsecond and changes sign from day to day, so the library is used, which then cannot be slower than itself.
IN_PLACE_BYTES = 4 << 10
IN_PLACE_BYTES_OF_TWO = (4 << 10) + 1
# For arrays in private memory, on one node that can share memory: (from bytes, algorithm). Shared memory has to pay for
# copies in and out. With two ranks the library is faster in the middle, and above that the ring makes one copy less.
STEPS_OF_TWO = ((0, "native"), (256 << 10, "shared"), (1 << 20, "native"), (12 << 20, "ring"))
STEPS = ((0, "native"), (8 << 10, "shared"))


@dataclass(frozen=True)
class TuningRule:
    """``ranks`` workers on ``nodes`` nodes use ``algorithm`` for arrays of at least ``from_bytes``."""

    nodes: int
    ranks: int
    from_bytes: int
    algorithm: str


@dataclass(frozen=True)
class Tuning:
    """Measured rules. Topologies that were not measured use ``default_algorithm``."""

    rules: tuple[TuningRule, ...] = ()

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps({"rules": [asdict(rule) for rule in self.rules]}, indent=1) + "\n")

    def algorithm(self, nbytes: int, topology: Topology) -> str | None:
        """The algorithm measured to be fastest; None if this topology was not measured."""
        rules = [
            rule
            for rule in self.rules
            if (rule.nodes, rule.ranks) == (len(topology.workers), topology.ranks)
            and rule.from_bytes <= nbytes
            and topology.allows(rule.algorithm)
        ]
        return max(rules, key=lambda rule: rule.from_bytes).algorithm if rules else None

    @classmethod
    def load(cls, path: str | Path) -> Tuning:
        """Raises UserError if the file is not a tuning table, or names an unknown algorithm."""
        try:
            rules = tuple(TuningRule(**rule) for rule in json.loads(Path(path).read_text())["rules"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a tuning table ({error})") from error
        for rule in rules:
            if rule.algorithm not in TABLE:
                raise UserError(f"{path}: no algorithm {rule.algorithm!r}; {instead(rule.algorithm, TABLE)}")
        return cls(rules)


@dataclass(frozen=True)
class Topology:
    """The number of workers on each node, and whether the workers of a node can share memory."""

    workers: tuple[int, ...]
    can_share: bool

    @classmethod
    def of(cls, nodes: Sequence[Sequence[int]], can_share: bool) -> Topology:
        return cls(tuple(len(ranks) for ranks in nodes), can_share)

    @property
    def ranks(self) -> int:
        return sum(self.workers)

    def allows(self, algorithm: str) -> bool:
        """Whether ``algorithm`` can run here; True for algorithms that do not need shared memory."""
        if algorithm == "shared":
            return self.can_share and len(self.workers) == 1
        return algorithm != "hierarchical" or self.can_share


def choose(nbytes: int, topology: Topology, tuning: Tuning | None = None, in_place: bool = False) -> str:
    """The name of the algorithm for an array of ``nbytes`` per rank; equal arguments give the same name on every rank.

    in_place: whether the array lies in shared memory wherever the ranks of a node share memory."""
    measured = tuning.algorithm(nbytes, topology) if tuning else None
    if measured is not None:
        return measured
    if in_place and topology.allows("shared"):
        least = IN_PLACE_BYTES_OF_TWO if topology.ranks == 2 else IN_PLACE_BYTES
        return "shared" if nbytes >= least else "native"
    return default_algorithm(nbytes, topology)


def default_algorithm(nbytes: int, topology: Topology) -> str:
    """The built-in rule, from measurements on machines of 2 to 4 cores."""
    if topology.ranks == 1:
        return "native"
    if len(topology.workers) == 1:
        if topology.can_share:
            steps = STEPS_OF_TWO if topology.ranks == 2 else STEPS
            return [algorithm for least, algorithm in steps if nbytes >= least][-1]
        return "ring" if nbytes >= 4 << 20 else "native"
    if nbytes < 64 << 10:
        return "native"
    return "hierarchical" if topology.can_share and max(topology.workers) > 1 else "ring"
