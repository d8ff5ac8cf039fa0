"""``python -m ddl.predict RUN --input FILE --output FILE``: a trained run's outputs, alone or under mpirun.

With ``--prompt`` a language model continues a text; with ``--samples`` a generator draws new samples."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddl.environment import complain, refuse
from ddl.errors import ConfigError, DdlError
from ddl.launcher.arguments import Parser
from ddl.output import protect_output
from ddl.wording import counted


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "ddl.predict",
        "Outputs of a trained run for new inputs, alone or under mpirun on all its ranks.",
        usage="python -m ddl.predict RUN (--input FILE --output FILE | --prompt TEXT | --samples N --output FILE)",
    )
    parser.add_argument("run", help="the run's folder, as in runs/NAME")
    parser.add_argument("--input", help="samples in any format that training reads (.npy, .npz, .csv, ...)")
    parser.add_argument("--output", help="where outputs go: .npy, .npz or .csv")
    parser.add_argument("--checkpoint", default="newest", help="newest, best, or a checkpoint's folder")
    parser.add_argument("--trust", action="store_true", help="run the code that the run names (package.module:Name)")
    parser.add_argument("--prompt", help="text, or numbers of tokens, that a language model continues")
    parser.add_argument("--tokens", type=int, default=200, help="how many tokens to generate after the prompt")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="below 1 draws more carefully, 0 takes the likeliest",
    )
    parser.add_argument("--samples", type=int, help="how many samples a generator (of a GAN) draws into --output")
    parser.add_argument("--top-k", type=int, default=0, help="choose among this many likeliest tokens; 0: among all")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    return parser.parse_args(argv)


def write_outputs(path: Path, outputs: Mapping[str, np.ndarray]) -> None:
    """One array as .npy or .csv, any number of them as .npz; written aside and renamed."""
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    first = next(iter(outputs.values()))
    try:
        with open(aside, "wb") as file:
            if path.suffix == ".npz":
                np.savez(file, **outputs)  # type: ignore[arg-type]
            elif path.suffix == ".npy":
                np.save(file, first)
            elif path.suffix == ".csv":
                np.savetxt(file, first.reshape(len(first), -1), delimiter=",", fmt="%.9g")
            else:
                raise ConfigError(f"--output {path}: the name must end with .npy, .npz or .csv")
        os.replace(aside, path)
    except OSError as error:
        raise ConfigError(f"--output {path} cannot be written: {error.strerror}") from error
    finally:
        aside.unlink(missing_ok=True)


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
        output = _predict(arguments, group)
        if group.is_leader:
            print(output, flush=True)
    except DdlError as error:
        complain("ddl.predict", error)
        status = error.exit_status
    mpi.finish(group, status)
    return status


def _predict(arguments: argparse.Namespace, group: Any) -> str:
    from ddl.run.trained import Trained, local_rank, together

    say, trust = partial(complain, "ddl.predict"), arguments.trust
    trained = together(group, lambda: Trained(arguments.run, arguments.checkpoint, local_rank(group), say, trust))
    if arguments.prompt is not None:
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
    if arguments.samples is not None:
        if not arguments.output or arguments.samples < 1:
            raise ConfigError("--samples N draws one sample or more, into --output FILE")
        drawn = trained.draw(arguments.samples, arguments.seed)
        if group.is_leader:
            write_outputs(Path(arguments.output), {"samples": drawn})
        return f"{counted(len(drawn), 'sample')} of shape {drawn.shape[1:]} in {arguments.output}"
    if not arguments.input or not arguments.output:
        raise ConfigError("--input FILE and --output FILE are needed (or --prompt TEXT, or --samples N --output FILE)")
    source = together(group, lambda: trained.open_inputs(arguments.input))
    outputs = trained.predict(source, group)
    if outputs is not None:
        write_outputs(Path(arguments.output), outputs)
    return f"{counted(len(source), 'output')} in {arguments.output}"


if __name__ == "__main__":
    protect_output()
    raise SystemExit(main())
