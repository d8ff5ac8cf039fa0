"""``python -m ddl.export RUN FILE``: a trained run as an ONNX graph or as safetensors weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from ddl.environment import complain
from ddl.errors import DdlError
from ddl.launcher.arguments import Parser
from ddl.output import protect_output


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "ddl.export",
        "Write the network of a trained run for other programs: FILE.onnx, with its normalisation and any number of "
        "rows, or FILE.safetensors, its weights.",
    )
    parser.add_argument("run", help="the run's folder, as in runs/NAME")
    parser.add_argument("file", help="what to write: a name that ends with .onnx or .safetensors")
    parser.add_argument("--layout", default="ddl", help="of weights: ddl, or torch for PyTorch's names and layouts")
    parser.add_argument(
        "--checkpoint",
        default="final",
        help="final (which training evaluated at its end), newest, best, or a checkpoint's folder",
    )
    parser.add_argument("--trust", action="store_true", help="run the code that the run names (package.module:Name)")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    say = partial(complain, "ddl.export")
    from ddl.run.files import check_export, export
    from ddl.run.trained import Trained

    try:
        check_export(arguments.file, arguments.layout)
        trained = Trained.open(arguments.run, arguments.checkpoint, say=say, trust=arguments.trust)
        path = export(trained, arguments.file, arguments.layout)
    except DdlError as error:
        say(error)
        return error.exit_status
    print(f"{path}, {path.stat().st_size:,} bytes ({trained.checkpoint})", flush=True)
    return 0


if __name__ == "__main__":
    protect_output()
    raise SystemExit(main())
