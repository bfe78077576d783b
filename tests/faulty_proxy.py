"""An HTTP proxy in front of a real server that answers badly on purpose.

Invariant: what it forwards it forwards unchanged; a fault is applied to whole requests, and each is written down in
`seen`.

    with faulty_proxy(uri) as proxy:
        proxy.next_faults.append("lose_reply")    # of the next request that `matching` names
        proxy.fault = "unavailable"               # of all, until it is "none" again
        connect(proxy.uri)
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

REFUSALS = {
    "refused": (401, "text/plain", b"You are not authenticated."),
    "forbidden": (
        403,
        "application/json",
        json.dumps({"error_code": "PERMISSION_DENIED", "message": "Permission denied"}).encode(),
    ),
    "expired": (
        400,
        "application/xml",
        b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>",
    ),
}
"""What servers answer to credentials that are wrong or old; the last is S3's."""
FAULTS = ("none", "unavailable", "cut", "lose_reply", "half_reply", "slow", "hang", *REFUSALS)
"""Forward; 503; close without an answer; forward and close without the answer, or in its middle; forward after
`delay_s`; never answer; see `REFUSALS`.
"""
INTERNAL_ERROR = json.dumps({"error_code": "INTERNAL_ERROR", "message": "the server cannot hold this"}).encode()
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length"}


class FaultyProxy:
    """What the proxy does, to be changed while it runs.

    Args:
        target: URI of the real server.
        matching: part of the path of the requests that `next_faults` and `fault` are for.
    """

    def __init__(self, target: str, matching: str):
        self.target = urlsplit(target)
        self.matching = matching
        self.fault = "none"
        self.next_faults: deque[str] = deque()
        self.delay_s = 1.0
        self.delay_per_point_s = 0.0
        """A server that is slow: added for each metric point that a request holds."""
        self.poison: bytes | None = None
        """Requests that hold it are answered as MLflow answers a failure of its own: 500, INTERNAL_ERROR."""
        self.seen: list[tuple[str, str]] = []
        """(fault, path) of every matching request."""
        self.replied_bytes: Counter[str] = Counter()
        """Bytes of the answers' bodies that were sent, by the last part of the path."""
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self.uri = ""

    def fault_for(self, path: str) -> str:
        """The fault of this request, taken from the queue where it matches."""
        with self._lock:
            if self.matching not in path:
                return "none"
            fault = self.next_faults.popleft() if self.next_faults else self.fault
            assert fault in FAULTS, fault
            self.seen.append((fault, path))
            return fault

    def count(self, fault: str) -> int:
        """How many matching requests met this fault."""
        with self._lock:
            return sum(one == fault for one, _ in self.seen)

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """The real server's answer: status, headers, body."""
        connection = http.client.HTTPConnection(self.target.hostname or "", self.target.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            connection.close()


@contextmanager
def faulty_proxy(target: str, *, matching: str = "runs/log-batch") -> Iterator[FaultyProxy]:
    """A proxy on a free port in front of `target`."""
    proxy = FaultyProxy(target, matching)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.fault_for(self.path)
            self.close_connection = True
            if proxy.poison is not None and proxy.poison in body:
                self.reply(500, [("Content-Type", "application/json")], INTERNAL_ERROR)
                return
            time.sleep(proxy.delay_per_point_s * body.count(b'"timestamp"'))
            if fault == "cut":
                return
            if fault == "hang":
                proxy.stopped.wait(30)
                return
            if fault == "unavailable":
                self.reply(503, [("Content-Type", "text/plain")], b"not now")
                return
            if fault in REFUSALS:
                status, kind, text = REFUSALS[fault]
                self.reply(status, [("Content-Type", kind)], text)
                return
            if fault == "slow":
                time.sleep(proxy.delay_s)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            answered = proxy.forward(self.command, self.path, headers, body)
            if fault != "lose_reply":
                self.reply(*answered, half=fault == "half_reply")

        def reply(self, status: int, headers: list[tuple[str, str]], body: bytes, half: bool = False) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            sent = body[: len(body) // 2] if half else body
            proxy.replied_bytes[self.path.rpartition("/")[2]] += len(sent)
            self.wfile.write(sent)

        def log_message(self, format: str, *words: object) -> None:
            """Nothing on the terminal."""

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that gave up is what these tests are about."""

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy.uri = f"http://127.0.0.1:{server.server_address[1]}"
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        serving.start()
        try:
            yield proxy
        finally:
            proxy.stopped.set()
            server.shutdown()
