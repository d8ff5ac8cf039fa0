"""The manual of a job's settings: what ``--help`` prints, made from the sections themselves."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from ddl.config.convert import spell, types_of
from ddl.config.sections import SECTIONS


def manual(program: str) -> str:
    """Usage and every setting with its type, default and meaning."""
    lines = [
        f"usage: python -m {program} [job.toml] [--section.key value ...]",
        "",
        "Trains a model on all ranks that mpirun started; without a job file, a small CNN on the bundled",
        "handwritten digits. The command line wins over the job file, the file over the defaults below.",
        "",
        "  --help          this manual",
        "  --print_config  the resolved settings, as a job file",
        "  --trace FILE    the same as --metrics.trace FILE",
        "  --chaos SCRIPT  the same as --fault.chaos SCRIPT",
    ]
    for name, section in SECTIONS.items():
        lines += ["", f"[{name}] {section.__doc__}"]
        kinds = types_of(section)
        for field in fields(section):
            default = field.default if field.default is not MISSING else {}
            option = f"--{name}.{field.name.rstrip('_')}"
            lines.append(f"  {option:<28} {spell(kinds[field.name])}, default {_shown(default)}")
            lines.append(f"{'':31}{field.metadata['meaning']}")
    lines += [
        "",
        "Lists are written as a TOML array or with commas; tables as {key = value} or --model.options.key value.",
        'Your own model, data source, loss, metric or callback is named as "package.module:Name".',
    ]
    return "\n".join(lines)


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, (tuple, list)):
        return "[" + ", ".join(f'"{v}"' for v in default) + "]"
    return f'"{default}"' if isinstance(default, str) else str(default)
