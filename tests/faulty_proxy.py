"""A proxy in front of an S3 server that fails as object stores do: 503 SlowDown, and slow answers."""

import http.client
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass
class Faults:
    """How often the proxy fails, and how often it did."""

    refused: float
    """Share of requests that get a 503."""

    delayed: float
    """Share of requests that wait for `delay` seconds first."""

    delay: float = 0.5
    requests: int = 0
    failures: int = 0


@contextmanager
def faulty_proxy(target: str, faults: Faults) -> Iterator[str]:
    """The address of a proxy for `target`, an http:// address."""
    chance = random.Random(0)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                draw = chance.random()
                faults.requests += 1
                faults.failures += draw < faults.refused
            if draw < faults.refused:
                self.answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
                return
            if draw < faults.refused + faults.delayed:
                time.sleep(faults.delay)
            # The signature covers the Host header, so it goes on as the client wrote it.
            connection = http.client.HTTPConnection(urlsplit(target).netloc, timeout=60)
            connection.request(self.command, self.path, body or None, dict(self.headers))
            response = connection.getresponse()
            headers = {name: value for name, value in response.getheaders() if name not in HOP_BY_HOP}
            self.answer(response.status, headers, response.read())
            connection.close()

        def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


HOP_BY_HOP = ("Connection", "Transfer-Encoding", "Keep-Alive")
