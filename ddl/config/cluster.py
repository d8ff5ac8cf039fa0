"""The section of a job that a cluster's scheduler concerns; sections.py has the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddl.config.setting import setting


@dataclass(frozen=True)
class SlurmSettings:
    """A batch job of Slurm that runs ddl.launch: what it does before its end, and with its nodes."""

    margin_s: float = setting(
        60.0, "seconds before the job's time limit at which it saves its state and ends; 0: not by the clock", least=0
    )
    requeue: Literal["auto", "requeue", "chain", "off"] = setting(
        "auto",
        "how a job that ends early starts again: requeue: by scontrol requeue; chain: by a second job, queued at the "
        "start and cancelled once it is not needed; auto: requeue if the job may be requeued, else chain",
    )
    spare_nodes: int = setting(0, "nodes of the allocation that wait to replace a lost one", least=0)
