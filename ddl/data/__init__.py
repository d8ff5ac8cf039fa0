"""Data: sources and formats, shards and their plan, sample order, batches, augmentation, the ledger's format."""

from ddl.data.augmentations import make_transforms
from ddl.data.balance import class_weights, multiplicity, oversample
from ddl.data.dataset import SOURCES, Splits, as_known, open_dataset, split_by
from ddl.data.digits import digits
from ddl.data.fingerprint import compare, fingerprint
from ddl.data.formats.detect import FORMATS
from ddl.data.formats.one_column import column_of
from ddl.data.formats.pixels import ImageSettings
from ddl.data.inputs import Inputs, Known, data_lines
from ddl.data.ledger import Audit, Ledger, Record, Start, audit
from ddl.data.loader import Loader
from ddl.data.memory import Arrays, Shared, Subset, as_array, as_dtype, labels_of
from ddl.data.normalise import Normalise, can_normalise, combine, moments
from ddl.data.order import Order
from ddl.data.shards import Plan, assign, auto_shards, moved_shards, reassign
from ddl.data.source import Batch, Field, Source, Wrapper, as_source, drawing
from ddl.data.split import random_split, sequential_split, stratified_split
from ddl.data.tables.roles import Settings as TableSettings
from ddl.data.target_moments import lost_in_cast, target_moments
from ddl.data.targets import KINDS, Target, decide
from ddl.data.transforms import Blank, Crop, Flip, Mixup, Noise, Shift, Transform

__all__ = [
    "FORMATS",
    "KINDS",
    "SOURCES",
    "Arrays",
    "Audit",
    "Batch",
    "Blank",
    "Crop",
    "Field",
    "Flip",
    "ImageSettings",
    "Inputs",
    "Known",
    "Ledger",
    "Loader",
    "Mixup",
    "Noise",
    "Normalise",
    "Order",
    "Plan",
    "Record",
    "Shared",
    "Shift",
    "Source",
    "Splits",
    "Start",
    "Subset",
    "TableSettings",
    "Target",
    "Transform",
    "Wrapper",
    "as_array",
    "as_dtype",
    "as_known",
    "as_source",
    "assign",
    "audit",
    "auto_shards",
    "can_normalise",
    "class_weights",
    "column_of",
    "combine",
    "compare",
    "data_lines",
    "decide",
    "digits",
    "drawing",
    "fingerprint",
    "labels_of",
    "lost_in_cast",
    "make_transforms",
    "moments",
    "moved_shards",
    "multiplicity",
    "open_dataset",
    "oversample",
    "random_split",
    "reassign",
    "sequential_split",
    "split_by",
    "stratified_split",
    "target_moments",
]
