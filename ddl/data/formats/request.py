"""The request that an opener of a format is given. detect.py calls the openers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddl.data.formats.pixels import ImageSettings
from ddl.data.source import Source
from ddl.data.tables.roles import Settings
from ddl.registry import instantiate

Parts = dict[str, Source]  # "train", and "validation" and "test" where the files say so


@dataclass(frozen=True)
class Request:
    """A request to open files in a format. targets: a file or columns, depending on the format. options: its settings.

    target_kind: "auto", "classes", "values", or "whole": classes if all numbers are whole, else values. For tables,
    whose targets may be text; those of other formats are converted in targets.py.
    like: what a table of the training part ``learned``: columns are matched by its names.
    table: the settings of tables. images: how images become samples."""

    targets: str = ""
    target_kind: str = "auto"
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.float32))
    options: Mapping[str, Any] = field(default_factory=dict)
    like: Mapping[str, Any] | None = None
    table: Settings = field(default_factory=Settings)
    images: ImageSettings = field(default_factory=ImageSettings)

    def make(self, opener: Callable[..., Any], what: str, /, **fixed: Any) -> Any:
        return instantiate(opener, {**self.options, **fixed}, what)
