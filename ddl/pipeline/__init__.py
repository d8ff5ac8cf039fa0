"""Pipeline parallelism: a network cut into stages, each held by other ranks, with only activations between them.

ddl/train/staged.py trains with it; the sums of a stage's gradients are those of ddl/parallel."""

from ddl.pipeline.column import Column
from ddl.pipeline.cut import Cut, cheapest_cut, named_cut
from ddl.pipeline.flow import Flow, Micros
from ddl.pipeline.grid import Grid, first_grid, regrid
from ddl.pipeline.network import Pipeline, Stage, pipeline_of

__all__ = [
    "Column",
    "Cut",
    "Flow",
    "Grid",
    "Micros",
    "Pipeline",
    "Stage",
    "cheapest_cut",
    "first_grid",
    "named_cut",
    "pipeline_of",
    "regrid",
]
