"""``python -m ddl.dashboard FOLDER``: follow a run, or all runs in a folder, in a browser."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ddl.dashboard.server import Dashboard
from ddl.environment import refuse
from ddl.errors import EX_USAGE, ConfigError
from ddl.launcher.arguments import Parser
from ddl.output import protect_output
from ddl.watch import find_runs
from ddl.wording import counted


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until it is interrupted; status 0, or 2 if there is no folder or the port is taken."""
    parser = Parser("ddl.dashboard", "Shows a run, or all runs in a folder, in a browser, from their files alone.")
    parser.add_argument("folder", type=Path, help="a run's folder, as in runs/NAME, or a folder with runs, as in runs")
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1; 0: one that is free")
    options = parser.parse_args(argv)
    try:
        if not options.folder.is_dir():
            raise ConfigError(f"there is no folder {str(options.folder)!r}")
        if not 0 <= options.port < 1 << 16:
            raise ConfigError(f"--port is {options.port}: it must be below 65536")
        dashboard = Dashboard(options.folder, options.port)
    except ConfigError as error:
        refuse("ddl.dashboard", error)
        return EX_USAGE
    except OSError as error:
        refuse("ddl.dashboard", f"port {options.port} of 127.0.0.1 cannot be used: {error.strerror}")
        return EX_USAGE
    count = counted(len(find_runs(options.folder)), "run")
    print(f"{count} in {options.folder}; Ctrl-C ends this server, not the runs")
    print(f"  from elsewhere: ssh -L {dashboard.port}:127.0.0.1:{dashboard.port} {socket.gethostname()}")
    print(f"  {dashboard.url}", flush=True)
    with suppress(KeyboardInterrupt):
        dashboard.serve()
    dashboard.server.server_close()
    return 0


if __name__ == "__main__":
    protect_output()
    raise SystemExit(main())
