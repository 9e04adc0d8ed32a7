"""A web server on this machine that gives ranges of files, and fails as networks and stores do."""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("500", "503", "short", "cut", "refused", "silent")
SILENCE_S = 1.5
"""longer than the time-out that tests set"""


class FaultyServer:
    """Serves ``files`` by path.

    Args:
        files: path without the first slash => content.
        share: of requests that fail.
        seed: of the faults.
        faults: kinds of failures; ``halved`` fails HEAD and states half the size of a file to GET.
        ranges: whether parts of files are sent.

    Attributes:
        counts: answered requests and faults, by kind.
        gets: (path, first byte) of the parts that were sent.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        share: float = 0.0,
        seed: int = 0,
        faults: tuple[str, ...] = FAULTS,
        ranges: bool = True,
    ) -> None:
        self.files, self.share, self.faults, self.ranges = dict(files), share, faults, ranges
        self.counts: Counter[str] = Counter()
        self.gets: list[tuple[str, int]] = []
        self._random, self._lock = random.Random(seed), threading.Lock()

    def fault(self) -> str:
        """The next failure, or "" for none."""
        with self._lock:
            found = self._random.choice(self.faults) if self._random.random() < self.share else ""
            self.counts[found or "answered"] += 1
            return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: FaultyServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        served, name = self.served, urlsplit(self.path).path.lstrip("/")
        fault = served.fault()
        if fault in ("500", "503") or (fault == "halved" and not with_body):
            self._send(503 if fault == "halved" else int(fault), b"busy", with_body)
        elif fault == "refused":
            self.close_connection = True
        elif fault == "silent":
            time.sleep(SILENCE_S)
            self.close_connection = True
        elif name.endswith("/") or not name:
            links = sorted({each[len(name) :].split("/")[0] for each in served.files if each.startswith(name)})
            page = "".join(f'<a href="{each}">{each}</a>' for each in links).encode()
            self._send(200, page, with_body, kind="text/html")
        elif name not in served.files:
            self._send(404, b"no such file", with_body)
        else:
            self._file(name, served.files[name], fault, with_body)

    def _file(self, name: str, content: bytes, fault: str, with_body: bool) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.served.ranges else None
        first, last = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(content))
        part = content[first:last]
        if with_body:
            self.served.gets.append((name, first))
        if fault == "halved" or (fault == "short" and "Range" in self.headers):
            part = part[: len(part) // 2]  # a gateway that lost the end, and says nothing
        etag = hashlib.md5(content).hexdigest()
        cut = len(part) // 2 if fault == "cut" else None
        self._send(
            206 if asked else 200, part, with_body, etag=etag, cut=cut, whole=None if with_body else len(content)
        )

    def _send(
        self,
        status: int,
        body: bytes,
        with_body: bool,
        kind: str = "application/octet-stream",
        etag: str | None = None,
        cut: int | None = None,
        whole: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if whole is None else whole))
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        if with_body:
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


@contextmanager
def serving(served: FaultyServer) -> Iterator[str]:
    """The address of a server that runs meanwhile."""
    handler = type("Handler", (_Handler,), {"served": served})
    server = _QuietServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
