"""Which algorithm sums so many bytes over so many ranks on so many nodes: pure arithmetic, and a table on disk.

Measuring a table is the bench's work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ddl.errors import UserError

# From here on two barriers and a sum in shared memory cost less than the library's allreduce. Between two ranks that
# is one message each way, which up to 4 KiB lies ready in the receiver's memory: a few tenths of a microsecond decide,
# and they fall to either side by the day; never slower than the library is what can be promised there.
IN_PLACE_BYTES = 4 << 10
IN_PLACE_BYTES_OF_TWO = (4 << 10) + 1
# Arrays of the ranks' own, on one node that shares memory: from so many bytes on. The copies in and out must pay; with
# two ranks the library has a range of its own, above which their ring needs one copy less than shared memory.
STEPS_OF_TWO = ((0, "native"), (256 << 10, "shared"), (1 << 20, "native"), (12 << 20, "ring"))
STEPS = ((0, "native"), (8 << 10, "shared"))
ALGORITHMS = ("native", "ring", "shared", "hierarchical")


@dataclass(frozen=True)
class Rule:
    """From ``from_bytes`` on, ``ranks`` workers on ``nodes`` nodes use ``algorithm``."""

    nodes: int
    ranks: int
    from_bytes: int
    algorithm: str


@dataclass(frozen=True)
class Tuning:
    """Measured rules, for the topologies that were measured; others go by ``default_algorithm``."""

    rules: tuple[Rule, ...] = ()

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps({"rules": [asdict(rule) for rule in self.rules]}, indent=1) + "\n")

    def algorithm(self, nbytes: int, topology: Topology) -> str | None:
        """What was measured to be best here; None where nothing was measured."""
        here = [
            rule
            for rule in self.rules
            if (rule.nodes, rule.ranks) == (len(topology.workers), topology.ranks)
            and rule.from_bytes <= nbytes
            and topology.allows(rule.algorithm)
        ]
        return max(here, key=lambda rule: rule.from_bytes).algorithm if here else None

    @classmethod
    def load(cls, path: str | Path) -> Tuning:
        """Raises UserError when the file is not a table of known algorithms."""
        try:
            rules = tuple(Rule(**rule) for rule in json.loads(Path(path).read_text())["rules"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a tuning table ({error})") from error
        for rule in rules:
            if rule.algorithm not in ALGORITHMS:
                raise UserError(f"{path}: no algorithm {rule.algorithm!r}; there are {', '.join(ALGORITHMS)}")
        return cls(rules)


@dataclass(frozen=True)
class Topology:
    """Workers on each node, and whether those of a node share memory."""

    workers: tuple[int, ...]
    can_share: bool

    @classmethod
    def of(cls, nodes: Sequence[Sequence[int]], can_share: bool) -> Topology:
        return cls(tuple(len(ranks) for ranks in nodes), can_share)

    @property
    def ranks(self) -> int:
        return sum(self.workers)

    def allows(self, algorithm: str) -> bool:
        if algorithm == "shared":
            return self.can_share and len(self.workers) == 1
        return algorithm != "hierarchical" or self.can_share


def choose(nbytes: int, topology: Topology, tuning: Tuning | None = None, in_place: bool = False) -> str:
    """The name of the algorithm for ``nbytes`` a rank; the same on every rank, given the same arguments.

    in_place: the array would lie in memory that the ranks of a node share, where they share any."""
    found = tuning.algorithm(nbytes, topology) if tuning else None
    if found is not None:
        return found
    if in_place and topology.allows("shared"):
        least = IN_PLACE_BYTES_OF_TWO if topology.ranks == 2 else IN_PLACE_BYTES
        return "shared" if nbytes >= least else "native"
    return default_algorithm(nbytes, topology)


def default_algorithm(nbytes: int, topology: Topology) -> str:
    """The rule of thumb, from measurements on small machines."""
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
