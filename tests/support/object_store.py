"""An S3 server on this machine: moto's, behind a proxy that fails as networks and stores do."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from foundation.storage import retrying
from foundation.storage.remote import objects

FAULTS = ("500", "503", "refused", "cut", "short", "silent", "lost", "misreported")
"""an answer 500 or 503; a connection closed at once, in the middle of the answer, or after ``SILENCE_S``; an answer of
half its length; and, after the store has done the work, no answer, or 500"""
SILENCE_S = 1.5
_ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>%s of the tests</Message></Error>"
_HOP_BY_HOP = ("connection", "transfer-encoding", "server", "date", "content-length")
_numbers = count()


class ObjectStore:
    """A bucket of an S3 server that runs here.

    Attributes:
        address: of the bucket, ``s3://NAME``.
        environment: the variables that lead to the server; they are set in this process too.
        share: of requests that fail; may change at any time.
        faults: kinds of failures.
        counts: requests by method, and faults by kind.
        requests: (method, path with its query) of each, in order.
    """

    def __init__(self, endpoint: str, backend: tuple[str, int]) -> None:
        self.backend = backend
        self.environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "the-secret-of-the-tests",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._lock = threading.Lock()
        self.begin()

    def begin(self, seed: int = 0) -> None:
        """Forget faults and counts; the bucket is a new one."""
        self.address = f"s3://bucket-{os.getpid()}-{next(_numbers)}"
        self.share, self.faults, self._random = 0.0, FAULTS, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []
        self._next: deque[str] = deque()
        self._outage: int | None = None

    def fail_next(self, *faults: str) -> None:
        """Fail the next requests in these ways; "" lets one pass."""
        with self._lock:
            self._next.extend(faults)

    def fail_from(self, number: int | None) -> None:
        """Answer 503 to every request from this one on, counted as in ``requests``; None answers all again."""
        self._outage = number

    def files(self) -> dict[str, bytes]:
        """Name => content of everything in the bucket, without faults."""
        share, self.share = self.share, 0.0
        try:
            system = s3fs.S3FileSystem(skip_instance_cache=True)
            top = self.address.removeprefix("s3://")
            return {name.removeprefix(f"{top}/"): system.cat_file(name) for name in system.find(top)}
        finally:
            self.share = share

    def hashes(self, below: str) -> dict[str, str]:
        """SHA-256 of everything below a folder of the bucket, by name: as ``tiny_export.content`` of a local one."""
        found = {name: content for name, content in self.files().items() if name.startswith(f"{below}/")}
        return {name.removeprefix(f"{below}/"): hashlib.sha256(each).hexdigest() for name, each in found.items()}

    def fault(self, method: str, path: str) -> str:
        """How the next request fails; "" if it does not."""
        with self._lock:
            self.counts[method] += 1
            self.requests.append((method, path))
            fails = self._random.random() < self.share
            fault = self._next.popleft() if self._next else self._random.choice(self.faults) if fails else ""
            if self._outage is not None and len(self.requests) > self._outage:
                fault = "503"
            if fault:
                self.counts[fault] += 1
            return fault


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: ObjectStore

    def do_GET(self) -> None:
        self._pass_on()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        pass

    def _pass_on(self) -> None:
        fault = self.store.fault(self.command, self.path)
        if fault in ("refused", "silent"):
            time.sleep(SILENCE_S if fault == "silent" else 0)
            self.close_connection = True
            return
        body = self._body()
        if fault in ("500", "503"):
            self._answer(int(fault), {}, _ERROR % ((b"InternalError", b"500") if fault == "500" else (b"Busy", b"503")))
            return
        status, headers, answer = self._ask(body)
        if fault == "lost":
            self.close_connection = True
        elif fault == "misreported":
            self._answer(500, {}, _ERROR % (b"InternalError", b"500"))
        else:
            self._answer(status, headers, answer, fault)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while n := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(n))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _ask(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.store.backend, timeout=60)
        headers = {
            name: value for name, value in self.headers.items() if name.lower() not in ("transfer-encoding", "expect")
        }
        headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes, fault: str = "") -> None:
        half = body[: len(body) // 2]
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        stated = {name.lower(): value for name, value in headers.items()}.get("content-length")
        n = stated if self.command == "HEAD" and stated else str(len(half if fault == "short" else body))
        self.send_header("Content-Length", n)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(half if fault in ("short", "cut") else body)
        if fault == "cut":
            self.close_connection = True


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the pauses out of retries, and a second of silence for too long."""
    monkeypatch.setattr(retrying, "time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setattr(objects, "TIMEOUT_S", SILENCE_S / 2)


@contextmanager
def running_server() -> Iterator[ObjectStore]:
    """moto's server and the proxy, while the context lasts; ``bucket_of`` gives a bucket in it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    proxy = _QuietServer(("127.0.0.1", 0), _Proxy)
    store = ObjectStore(f"http://127.0.0.1:{proxy.server_address[1]}", moto.get_host_and_port())
    proxy.RequestHandlerClass = type("Proxy", (_Proxy,), {"store": store})
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        proxy.shutdown()
        proxy.server_close()
        moto.stop()


@contextmanager
def bucket_of(store: ObjectStore) -> Iterator[ObjectStore]:
    """A new bucket, with the variables that lead to it set for this process and its children."""
    before = {name: os.environ.get(name) for name in store.environment}
    store.begin()
    os.environ.update(store.environment)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(store.address)
    try:
        yield store
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
