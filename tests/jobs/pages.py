"""Run the code of documentation pages as a reader would, block after block in one empty folder.

    python -m tests.jobs.pages                        # all pages
    python -m tests.jobs.pages docs/tutorial/table.md

A ``bash`` block runs in bash, a ``python`` block as a script; a block with ``title="name"`` is written to that file
instead. Other blocks are not run, nor is one below ``<!-- not run: why -->``; a page that says
``<!-- run by tests/... -->`` has another test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 200.0
BLOCK = re.compile(
    r'^(?:<!-- not run: (?P<why>.+?) -->\n+)?```(?P<kind>\w*)(?: title="(?P<file>[^"]+)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. file: where it is written instead of being run; why_not: why it is not run."""

    kind: str
    text: str
    line: int
    file: str = ""
    why_not: str = ""

    @property
    def is_run(self) -> bool:
        return self.kind in ("bash", "python") and not self.file and not self.why_not


def all_pages() -> list[Path]:
    """The pages that have blocks to run, and no other test."""
    pages = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "<!-- run by tests/" not in path.read_text()]
    return [path for path in pages if any(block.is_run for block in blocks_of(path.read_text()))]


def blocks_of(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        yield Block(match["kind"], match["text"], line, match["file"] or "", match["why"] or "")


def run_page(path: Path, folder: Path) -> list[str]:
    """Run the blocks of a page in ``folder``; what each printed. Raises AssertionError at the first that fails."""
    printed = []
    for block in blocks_of(path.read_text(encoding="utf-8")):
        if block.file and not block.why_not:
            target = folder / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text)
        elif block.is_run:
            command = ["bash", "-euo", "pipefail", "-c", block.text]
            if block.kind == "python":
                command = [sys.executable, "-c", block.text]
            status, text = run(command, folder)
            assert status == 0, f"{path}, line {block.line}: status {status}\n{block.text}\n{text}"
            printed.append(text)
    return printed


def run(command: list[str], folder: Path) -> tuple[int, str]:
    """(status, all that was printed) of a command; a negative status if it had to be killed."""
    environ = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    with tempfile.TemporaryFile("w+", errors="replace") as out:  # a pipe would wait for what a block left running
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            status = -1
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out.seek(0)
        return status, out.read()


def main(arguments: list[str]) -> int:
    failed = 0
    for path in map(Path, arguments) if arguments else all_pages():
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(f"== {path}", *run_page(path.resolve(), Path(folder)), sep="\n", flush=True)
            except AssertionError as error:
                failed += 1
                print(f"== {path}: FAILED", error, sep="\n", flush=True)
    print(f"{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
