"""``python -m ddl.compress RUN``: a smaller form of a trained run, with size, metrics and speed before and after."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ddl.environment import complain
from ddl.errors import DdlError
from ddl.launcher.arguments import Parser
from ddl.output import protect_output

if TYPE_CHECKING:
    from ddl.compress.measure import Variant
    from ddl.run.trained import Trained


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "ddl.compress",
        "Write a smaller form of a trained run, and measure both on the run's held-out samples: size, metrics, and the "
        "time of an answer to one sample and to a batch.",
        usage="python -m ddl.compress RUN (--quantize int8 | --channels SHARE) [--output PATH]",
    )
    parser.add_argument("run", help="the run's folder, as in runs/NAME")
    parser.add_argument(
        "--quantize",
        choices=["int8"],
        help="an ONNX file with weights and activations of 8 bits (extra: quantize), by default RUN/int8.onnx",
    )
    parser.add_argument(
        "--channels",
        type=float,
        metavar="SHARE",
        help="keep this share of the channels of convolutions and of the units of dense layers: a run folder, by "
        "default RUN-small; ddl train FOLDER/config.toml fine-tunes it",
    )
    parser.add_argument("--output", default="", help="the file or folder to write; the report is FILE.json, or in it")
    parser.add_argument("--split", default="test", choices=["validation", "test"], help="the held-out samples")
    parser.add_argument(
        "--checkpoint",
        default="final",
        help="final (which training evaluated at its end), newest, best, or a checkpoint's folder",
    )
    parser.add_argument("--trust", action="store_true", help="run the code that the run names (package.module:Name)")
    arguments = parser.parse_args(argv)
    if (arguments.quantize is None) == (arguments.channels is None):
        parser.error("one of --quantize int8 and --channels SHARE is needed")
    if arguments.channels is not None and not 0 < arguments.channels < 1:
        parser.error(f"--channels is {arguments.channels:g}: it must be above 0 and below 1")
    if arguments.quantize and arguments.output and not arguments.output.endswith(".onnx"):
        parser.error(f"--output is {arguments.output}: the name must end with .onnx")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(sys.argv[1:] if argv is None else argv)
    say = partial(complain, "ddl.compress")
    from ddl.compress.measure import as_json, as_text, measured
    from ddl.run.trained import Trained
    from ddl.run.whole_file import whole_file

    try:
        trained = Trained.open(arguments.run, arguments.checkpoint, say=say, trust=arguments.trust)
        write = _quantized if arguments.quantize else _narrowed
        path, report, forms = write(trained, arguments)
        found = measured(forms, trained.split(arguments.split))
        about = {"run": arguments.run, "checkpoint": trained.checkpoint, "split": arguments.split, "written": str(path)}
        with whole_file(report) as file:
            file.write(as_json(found, **about).encode())
    except DdlError as error:
        say(error)
        return error.exit_status
    print(f"{as_text(found)}\n{path}, report in {report}", flush=True)
    if arguments.channels is not None:
        print(f"ddl train {path}/config.toml fine-tunes it", flush=True)
    return 0


def _quantized(trained: Trained, arguments: argparse.Namespace) -> tuple[Path, Path, list[Variant]]:
    from ddl.compress.int8 import forms_of
    from ddl.run.whole_file import whole_file

    path = Path(arguments.output or trained.folder / "int8.onnx")
    data, forms = forms_of(trained, arguments.split)
    with whole_file(path) as file:
        file.write(data)
    return path, path.with_suffix(".json"), forms


def _narrowed(trained: Trained, arguments: argparse.Namespace) -> tuple[Path, Path, list[Variant]]:
    from ddl.compress.channels import narrow
    from ddl.compress.measure import own_form
    from ddl.run.files import save

    folder = Path(arguments.output or f"{trained.folder}-small")
    smaller = narrow(trained, arguments.channels, folder)
    save(smaller, folder)
    source = trained.split(arguments.split)
    forms = [own_form(name, one, source) for name, one in (("before", trained), ("after", smaller))]
    return folder, folder / "compress.json", forms


if __name__ == "__main__":
    protect_output()
    raise SystemExit(main())
