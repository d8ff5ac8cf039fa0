"""Arrays: NumPy or CuPy behind one interface, flat buffers with named views, keyed random generators.

The only room that imports cupy."""

from ddl.arrays import aligned
from ddl.arrays.arena import Arena
from ddl.arrays.flat import FlatBuffer, Layout, Views
from ddl.arrays.namespace import Array, Device, device, host, namespace_of
from ddl.arrays.partition import partition, partition_slice
from ddl.arrays.random import generator

__all__ = [
    "Arena",
    "Array",
    "Device",
    "FlatBuffer",
    "Layout",
    "Views",
    "aligned",
    "device",
    "generator",
    "host",
    "namespace_of",
    "partition",
    "partition_slice",
]
