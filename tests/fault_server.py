"""A proxy in front of an S3 server that lets some requests fail, and counts what was asked."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("500", "SlowDown", "stall", "truncate", "flip", "reset")
CHUNK = 1 << 16


class FaultServer(ThreadingHTTPServer):
    """Passes requests on to `upstream`; `choose(number, handler)` names the fault of the number-th GET, '' for none."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = upstream
        self.choose: Callable[[int, BaseHTTPRequestHandler], str] = lambda number, handler: ""
        self.pause = 0.0  # s before each GET's answer
        self.seen: list[tuple[str, str, str]] = []  # (method, path, Range) of each request
        self.faults = Counter[str]()
        self.statuses = Counter[int]()
        self.closing, self.random = threading.Event(), random.Random(0)
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def every(self, nth: int, faults: tuple[str, ...] = FAULTS) -> None:
        """Each nth GET fails, with one fault after the other."""
        self.choose = lambda number, _: faults[number // nth % len(faults)] if number % nth == nth - 1 else ""

    def first(self, fault: str, times: int = 1) -> None:
        """The next GETs fail."""
        begin = self.gets
        self.choose = lambda number, _: fault if number < begin + times else ""

    @property
    def gets(self) -> int:
        return sum(method == "GET" for method, _, _ in self.seen)

    def ranges(self) -> list[str]:
        """The ranges asked for, in their order."""
        return [span for method, _, span in self.seen if method == "GET" and span]

    def handle_error(self, request: Any, client_address: Any) -> None:  # a client that was killed
        pass


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: FaultServer

    def do_GET(self) -> None:
        with self.server.lock:
            number = self.server.gets
            self.server.seen.append(("GET", self.path, self.headers.get("Range", "")))
            fault = self.server.choose(number, self)
            if fault:
                self.server.faults[fault] += 1
        time.sleep(self.server.pause)
        if fault in ("500", "SlowDown"):
            return self.refuse(500 if fault == "500" else 503, "InternalError" if fault == "500" else fault)
        if fault == "reset":
            return self.hang_up()
        if fault == "stall":
            self.server.closing.wait(20)
            return self.hang_up()
        return self.forward(fault)

    def do_HEAD(self) -> None:
        self.server.seen.append(("HEAD", self.path, ""))
        self.forward("")

    def do_PUT(self) -> None:
        self.forward("")

    do_POST = do_DELETE = do_PUT

    def forward(self, fault: str) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        with_connection = http.client.HTTPConnection(*self.server.upstream, timeout=60)
        try:
            with_connection.request(self.command, self.path, self.rfile.read(size) or None, headers)
            answer = with_connection.getresponse()
            body = answer.read()
        finally:
            with_connection.close()
        self.server.statuses[answer.status] += 1
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(body)
        if answer.status != 304:
            self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if fault == "flip" and body:
            at = self.server.random.randrange(len(body))
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        if fault == "truncate":
            self.wfile.write(body[: len(body) // 2])
            return self.hang_up()
        self.wfile.write(body)
        return None

    def refuse(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>Please reduce your request rate.</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def fault_server(upstream: tuple[str, int]) -> Iterator[FaultServer]:
    """The proxy, running."""
    with FaultServer(upstream) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
