"""The server of the dashboard: the page, and the runs as JSON, to who knows the token in the URL.

ddl/watch reads the runs. Nothing is ever written, and no path of a request reaches the file system."""

from __future__ import annotations

import gzip
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ddl.metrics.jsonl import plain
from ddl.watch import RunView, find_runs

FILES = {  # everything that can be asked for by name
    "": ("index.html", "text/html; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "uPlot.js": ("uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    "uPlot.css": ("uPlot.min.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
READING_S = 0.3  # per request; runs that are not read by then are read for the next ones
LOOK_AGAIN_S = 3.0  # for new runs
LOCAL = ("127.0.0.1", "localhost")


class Runs:
    """The runs in a folder, read as far as there was time. Threads of the server share it."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic):
        self.folder, self.clock = folder, clock
        self._views: dict[str, RunView] = {}
        self._looked = -LOOK_AGAIN_S
        self._next = 0
        self._lock = threading.Lock()

    def overview(self) -> dict[str, Any]:
        """All runs in a few values each; "complete": whether all files have been read to their ends."""
        with self._lock:
            complete = self._refresh()
            runs = [{"id": name, **view.overview()} for name, view in self._views.items()]
        return {"folder": str(self.folder), "time": time.time(), "complete": complete, "runs": runs}

    def run(self, name: str, version: int) -> dict[str, Any] | None:
        """Everything about a run, or only its version if the caller has that already; None for an unknown name."""
        with self._lock:
            view = self._views.get(name)
            if view is None:
                return None
            if view.version == version:
                return {"id": name, "version": version, "unchanged": True}
            return {"id": name, **view.to_json()}

    def _refresh(self) -> bool:
        began = self.clock()
        if began - self._looked >= LOOK_AGAIN_S:
            self._looked = began
            found = find_runs(self.folder)
            self._views = {name: self._views.get(name) or RunView(path) for name, path in found.items()}
        views, complete = list(self._views.values()), True
        for _ in views:  # in turn, so that each is reached
            left = began + READING_S - self.clock()
            if left < 0:
                return False
            complete &= views[self._next % len(views)].refresh(left)
            self._next += 1
        return complete


class Dashboard:
    """Serves ``folder`` on 127.0.0.1. port: 0 lets the system choose. Raises OSError if the port is taken."""

    def __init__(self, folder: str | Path, port: int = 0, token: str = ""):
        self.runs, self.token = Runs(Path(folder)), token or secrets.token_urlsafe(16)
        self._files = {name: (read_static(file), kind) for name, (file, kind) in FILES.items()}
        dashboard = self

        class Handler(BaseHTTPRequestHandler):
            server_version, sys_version = "ddl", ""

            def do_GET(self) -> None:
                dashboard.answer(self)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nothing: the terminal shows the URL, and no line for every request."""

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.token}/"

    def serve(self) -> None:
        """Until ``close`` or an interrupt."""
        self.server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a GET request. Without the token every path is refused alike."""
        parts = urlsplit(request.path)
        token, _, rest = parts.path.removeprefix("/").partition("/")
        host = request.headers.get("Host", "").rpartition(":")[0]  # a foreign page cannot name itself like this
        if host not in LOCAL or not hmac.compare_digest(token.encode(), self.token.encode()):
            return self._send(request, HTTPStatus.FORBIDDEN, b"the URL lacks the token that ddl dashboard printed\n")
        if rest in self._files:
            body, kind = self._files[rest]
            return self._send(request, HTTPStatus.OK, body, kind)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        answer: dict[str, Any] | None = None
        if rest == "api/runs":
            answer = self.runs.overview()
        elif rest == "api/run":
            version = query.get("version", "-1")
            answer = self.runs.run(query.get("id", ""), int(version) if version.isdecimal() else -1)
        if answer is None:
            return self._send(request, HTTPStatus.NOT_FOUND, b"there is nothing of this name\n")
        body = json.dumps(plain(answer), separators=(",", ":")).encode()
        self._send(request, HTTPStatus.OK, body, "application/json")

    def _send(
        self, request: BaseHTTPRequestHandler, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8"
    ) -> None:
        zipped = len(body) > 4096 and "gzip" in request.headers.get("Accept-Encoding", "")
        body = gzip.compress(body, 1) if zipped else body
        try:
            request.send_response(status)
            for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
                request.send_header(name, value)
            if zipped:
                request.send_header("Content-Encoding", "gzip")
            request.end_headers()
            request.wfile.write(body)
        except ConnectionError:  # the page was closed meanwhile
            request.close_connection = True


def read_static(name: str) -> bytes:
    return resources.files("ddl.dashboard").joinpath("static").joinpath(name).read_bytes()
