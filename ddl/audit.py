"""``python -m ddl.audit RUN``: prove from a run's ledger that each sample was used exactly once per epoch.

The proof is in data/ledger.py; this module prints it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ddl.data.ledger import Audit, audit, read
from ddl.errors import EX_USAGE, DataError
from ddl.launcher.arguments import Parser
from ddl.metrics import read_summary
from ddl.output import protect_output
from ddl.wording import counted

LEDGER = "ledger.jsonl"


def report(run: Path) -> Audit:
    """The audit of a run folder. The ledger must contain all steps that the last launch's summary claims.

    Raises DataError if there is no ledger, or if the ledger or the summary is invalid."""
    entries, summary = read(run / LEDGER), read_summary(run)
    # A summary of another launch: a newer one is under way, or was killed.
    is_newest = bool(entries and summary) and summary["launch"] == entries[-1].launch
    return audit(entries, steps=summary["steps"] if is_newest else None)


def lines(found: Audit) -> list[str]:
    """The report as lines; the verdict is the last."""
    report = [
        f"{counted(found.steps, 'step')}, {found.epochs:.4g} epoch{'s' * (found.epochs != 1)}, "
        f"{counted(found.launches, 'launch')}, {counted(found.generations, 'generation')}",
        f"samples: {found.expected} expected, {found.used} used, {found.missing} missing, "
        f"{found.repeated} repeated, {found.skipped} skipped",
        *found.problems,
    ]
    if found.is_exact and found.skipped:
        report.append("exact: every sample was used once per epoch, except in skipped steps")
    elif found.is_exact:
        report.append("exact: every sample was used once per epoch")
    else:
        report.append("NOT exact")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Print the audit; status 0 when it is exact, 1 when it is not, 2 when there is nothing to audit."""
    made = Parser("ddl.audit", "Proves from a run's ledger that every sample was used exactly once per epoch.")
    made.add_argument("run", type=Path, help="a run's folder, as in runs/NAME")
    made.add_argument("--stragglers", action="store_true", help="which rank the others waited for, from metrics.jsonl")
    made.add_argument("--json", action="store_true", help="print the counts and problems as JSON")
    options = made.parse_args(argv)
    if options.stragglers:
        return _stragglers(options.run / "metrics.jsonl")
    try:
        found = report(options.run)
    except DataError as error:
        print(f"ddl.audit: {error}", file=sys.stderr)
        return EX_USAGE
    if options.json:
        print(json.dumps({**found.samples, "steps": found.steps, "exact": found.is_exact, "problems": found.problems}))
    else:
        print("\n".join(lines(found)))
    return 0 if found.is_exact else 1


def _stragglers(path: Path) -> int:
    from ddl.metrics.jsonl import read_lines
    from ddl.metrics.stragglers import as_lines, waits_of

    try:
        print("\n".join(as_lines(waits_of(read_lines(path)))))
    except (OSError, ValueError) as error:
        print(f"ddl.audit: {path}: {error}", file=sys.stderr)
        return EX_USAGE
    return 0


if __name__ == "__main__":
    protect_output()
    raise SystemExit(main())
