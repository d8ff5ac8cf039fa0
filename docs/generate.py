"""Reference pages that mkdocs.yml generates from the code: settings, names that settings take, and events.

MkDocs calls ``on_files`` when it builds the site."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Path below docs/ -> Markdown."""
    return {
        "reference/settings.md": "\n".join(settings()),
        "reference/names.md": "\n".join(names()),
        "reference/events.md": "\n".join(events()),
    }


def settings() -> Iterator[str]:
    """Every setting, as ``--help`` has it."""
    from ddl.config.sections import SECTIONS
    from ddl.config.values import spell, types_of

    yield "# Settings\n"
    yield "In a job file a setting is a line `name = value` below its `[section]`."
    yield "`--section.name value` on the command line takes precedence."
    for section, kind in SECTIONS.items():
        yield f"\n## {section}\n\n{first_paragraph(kind)}\n"
        yield "| name | meaning | values | default |\n|---|---|---|---|"
        for field in fields(kind):
            name, values = field.name.rstrip("_"), spell(types_of(kind)[field.name])
            yield f"| `{name}` | {cell(field.metadata['meaning'])} | {cell(values)} | {default(field.default)} |"


def names() -> Iterator[str]:
    """Every table of names, with the options of each entry."""
    from ddl.collectives.table import TABLE
    from ddl.data import dataset, transforms
    from ddl.models.build import MODELS
    from ddl.nn.initial import INITIALISERS
    from ddl.nn.losses import LOSSES
    from ddl.nn.metric import METRICS
    from ddl.optim import OPTIMIZERS

    yield "# Names for settings\n"
    yield 'Each of these settings also takes your own, as `"package.module:Name"`. Options go into the table beside it.'
    yield from table("Models", "model.name", MODELS)
    yield from table("Losses", "model.loss", LOSSES)
    yield from table("Metrics", "model.metrics", METRICS)
    yield from table("Optimizers", "optim.name", OPTIMIZERS)
    yield from table("Initial values", "model.options", INITIALISERS)
    yield from table("Augmentations", "data.augment", transforms.TRANSFORMS)
    yield from table("Sources", "data.source", dataset.SOURCES)
    yield from table("Allreduce algorithms", "comm.algorithm", TABLE)


def events() -> Iterator[str]:
    """Every event of metrics.jsonl."""
    from ddl.metrics import events as module

    yield "# Events\n"
    yield "`metrics.jsonl` in the folder of a run has an event on each line. `event` names it, `time` counts from 1970."
    for kind in vars(module).values():
        if inspect.isclass(kind) and issubclass(kind, module.Event) and kind.kind:
            yield f"\n## {kind.kind}\n\n{first_paragraph(kind)}\n"
            yield "| field | type |\n|---|---|"
            yield from (f"| `{field.name}` | {cell(str(field.type))} |" for field in fields(kind))


def table(title: str, setting: str, entries: Mapping[str, Any]) -> Iterator[str]:
    """The section of one table of names."""
    yield f"\n## {title}\n\nFor `{setting}`.\n"
    yield "| name | | options |\n|---|---|---|"
    for name, entry in entries.items():
        yield f"| `{name}` | {cell(first_paragraph(entry))} | {cell(', '.join(options(entry)))} |"


def options(entry: Any) -> Iterable[str]:
    """The arguments of ``entry`` that have defaults, as ``name = default``."""
    try:
        parameters = inspect.signature(entry).parameters.values()
    except (TypeError, ValueError):
        return []
    return [f"`{p.name} = {p.default!r}`" for p in parameters if p.default not in (p.empty, None)]


def default(value: Any) -> str:
    """A default as a job file spells it."""
    if value is MISSING or value in ("", (), None):
        return ""
    if isinstance(value, tuple):
        return cell(f"`{list(value)}`")
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def first_paragraph(thing: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def cell(text: str) -> str:
    """``text`` in a cell of a table."""
    return text.replace("|", "\\|").replace("``", "`")


if __name__ == "__main__":  # look at one: python docs/generate.py reference/settings.md
    os.environ.setdefault("COLUMNS", "118")
    print(pages()[sys.argv[1]])
