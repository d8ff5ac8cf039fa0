"""``python -m ddl.predict RUN --input FILE``: what a trained run predicts, alone or under mpirun.

With ``--prompt`` a language model continues a text; with ``--samples`` a generator draws new samples."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddl.environment import complain, refuse
from ddl.errors import DataError, DdlError
from ddl.launcher.arguments import Parser
from ddl.output import protect_output
from ddl.wording import counted

if TYPE_CHECKING:
    from ddl.comm import Group
    from ddl.data import Source
    from ddl.run.trained import Trained

OUTPUT = "--output "  # what messages about its file begin with


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "ddl.predict",
        "What a trained run predicts for new samples: labels and probabilities by name, or values in the units of the "
        "data. Alone, or under mpirun on all its ranks.",
        usage="python -m ddl.predict RUN (--input FILE | --text LINE | --split PART | --prompt TEXT | --samples N) "
        "[--output FILE]",
        epilog="Each row begins with the file's name for an image, else with the number of the row, counted from 1.",
    )
    parser.add_argument("run", help="the run's folder, as in runs/NAME")
    parser.add_argument("--input", help="samples in any format that training reads (.csv, .jsonl, .npz, a .png, ...)")
    parser.add_argument("--text", action="append", help="a line of text; may be given several times")
    parser.add_argument(
        "--split", choices=["train", "validation", "test"], help="the run's own samples, with their targets"
    )
    parser.add_argument("--output", default="", help="a .csv, .jsonl, .parquet, .npz or .npy file; default: stdout")
    parser.add_argument(
        "--format", default="", help="csv, jsonl, parquet, npz or npy; default: by the name of --output"
    )
    parser.add_argument("--id", default="", metavar="COLUMN", help="the column of --input that names its rows")
    parser.add_argument("--raw", action="store_true", help="the numbers that the model computes, such as logits")
    parser.add_argument(
        "--checkpoint",
        default="final",
        help="final (which training evaluated at its end), newest, best, or a checkpoint's folder",
    )
    parser.add_argument("--trust", action="store_true", help="run the code that the run names (package.module:Name)")
    parser.add_argument("--prompt", help="text, or numbers of tokens, that a language model continues")
    parser.add_argument("--tokens", type=int, default=200, help="how many tokens to generate after the prompt")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="below 1 draws more carefully, 0 takes the likeliest",
    )
    parser.add_argument("--samples", type=int, help="how many samples a generator (of a GAN) draws")
    parser.add_argument("--top-k", type=int, default=0, help="choose among this many likeliest tokens; 0: among all")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    arguments = parser.parse_args(argv)
    sources = {f"--{name}": getattr(arguments, name) for name in ("input", "text", "split", "prompt", "samples")}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        parser.error(
            f"{' and '.join(given)} exclude each other"
            if given
            else "one of --input FILE, --text LINE, --split PART, --prompt TEXT and --samples N is needed"
        )
    if arguments.samples is not None and arguments.samples < 1:
        parser.error(f"--samples is {arguments.samples}, the fewest is 1")
    if any(not line.strip() for line in arguments.text or ()):
        parser.error("--text '' holds no text")
    if arguments.id and arguments.input is None:
        parser.error("--id names a column of --input FILE")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(sys.argv[1:] if argv is None else argv)
    from ddl.comm import mpi
    from ddl.fault import startup

    try:
        with startup.meeting():
            group = mpi.start()
    except DdlError as error:
        refuse("ddl.predict", error)
        return error.exit_status
    status = 0
    try:
        _predict(arguments, group)
    except DdlError as error:
        complain("ddl.predict", error)
        status = error.exit_status
    mpi.finish(group, status)
    return status


def _predict(arguments: argparse.Namespace, group: Group) -> None:
    from ddl.run.predictions import Predictions, format_of, write
    from ddl.run.trained import Trained, local_rank, together

    say, trust, output = partial(complain, "ddl.predict"), arguments.trust, arguments.output
    format = "" if arguments.prompt is not None else format_of(output, arguments.format, OUTPUT)
    trained = together(group, lambda: Trained.open(arguments.run, arguments.checkpoint, local_rank(group), say, trust))
    found: Predictions | None
    if arguments.prompt is not None:
        text = _continued(trained, arguments)
        if group.is_leader:
            print(text, flush=True)
        return
    if arguments.samples is not None:
        drawn = trained.draw(arguments.samples, arguments.seed)
        found = Predictions({"sample": np.arange(1, len(drawn) + 1), "output": drawn})
    else:
        trained.refuse_generator()
        with _samples(trained, arguments, group) as source:
            if source.left_out and group.is_leader:
                say(source.left_out)
            found = trained.predict(source, group, raw=arguments.raw, targets=arguments.split is not None)
    if not group.is_leader or found is None:
        return
    write(found, output, format, OUTPUT)
    if output:
        what = counted(len(found), "sample" if arguments.samples is not None else "prediction")
        print(f"{what} in {output} ({trained.checkpoint})", flush=True)
    else:
        say(trained.checkpoint)  # not on stdout, which holds the predictions


@contextlib.contextmanager
def _samples(trained: Trained, arguments: argparse.Namespace, group: Group) -> Iterator[Source]:
    """The samples to predict, opened on every rank."""
    from ddl.run.sample_names import named_by
    from ddl.run.trained import together

    if arguments.split is not None:
        yield together(group, lambda: trained.split(arguments.split))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(arguments.input) if arguments.text is None else Path(folder, "lines.txt")

        def opened() -> Source:
            if arguments.text is not None:
                trained.refuse_text()
                path.write_text("".join(" ".join(line.split()) + "\n" for line in arguments.text), "utf-8")
            elif trained.takes_text and not path.exists() and "*" not in path.name:
                raise DataError("no such file; --text LINE takes a line of text itself", path)
            source, data = trained.open_inputs(str(path)), trained.job.data
            delimiter = data.options.get("delimiter") if data.source == "files" else None
            return named_by(source, str(path), arguments.id, data.encoding, delimiter) if arguments.id else source

        yield together(group, opened)


def _continued(trained: Trained, arguments: argparse.Namespace) -> str:
    from ddl.models import generate

    return generate(
        trained.model,
        trained.state.params.views,
        arguments.prompt,
        tokens=arguments.tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
        symbols=trained.symbols,
    )


if __name__ == "__main__":
    protect_output()
    raise SystemExit(main())
