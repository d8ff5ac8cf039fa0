"""Objects of the user's, named in a job as "package.module:Name"."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from ddl.errors import ConfigError


def load_object(name: str, setting: str) -> Any:
    """The object that ``name`` names; modules are found as by ``python -m``, the current folder included.

    Raises ConfigError that names the setting."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigError(f'{setting} = {name!r} must be "package.module:Name"')
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{setting} = {name!r}: module {module_name} cannot be imported ({error})") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{setting} = {name!r}: {module_name} has no {attribute}")
        found = getattr(found, part)
    return found
