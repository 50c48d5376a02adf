"""A web server on this machine that serves one file, and fails as it is told to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Act:
    """How one request is answered.

    Attributes:
        cut_at: close the connection after so many bytes of the body.
        status: answer with this error.
        announce: the length that the header gives, instead of the true one; None: no length.
        ignores_range, ignores_if_range: as if the request had not said it.
        shift: begin a part so many bytes from where it was asked for.
        content_type: of the body.
    """

    cut_at: int | None = None
    status: int = 200
    announce: int | None = -1
    ignores_range: bool = False
    ignores_if_range: bool = False
    shift: int = 0
    content_type: str = "application/octet-stream"


@dataclass
class FileServer:
    """What is served, what happens next, and what was asked for.

    Attributes:
        acts: one for each request that comes; after the last, requests are answered as they should be.
        requests: path, `Range` and `If-Range` of each.
    """

    content: bytes
    etag: str | None = '"first"'
    last_modified: str | None = None
    acts: list[Act] = field(default_factory=list)
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    address: str = ""

    @property
    def ranges(self) -> list[str | None]:
        return [asked for _, asked, _ in self.requests]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        served: FileServer = self.server.served  # type: ignore[attr-defined]
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        served.requests.append((self.path, asked, condition))
        act = served.acts.pop(0) if served.acts else Act()
        if act.status != 200:
            self.send_error(act.status)
            return
        total = len(served.content)
        if condition is not None and condition not in (served.etag, served.last_modified) and not act.ignores_if_range:
            asked = None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and not act.ignores_range else 0
        if start and start >= total:
            self.send_error(416)
            return
        body = served.content[start + act.shift :] if start else served.content
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start + act.shift}-{total - 1}/{total}")
        for name, value in (("ETag", served.etag), ("Last-Modified", served.last_modified)):
            if value is not None:
                self.send_header(name, value)
        length = len(body) if act.announce == -1 else act.announce
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Content-Type", act.content_type)
        self.end_headers()
        self.wfile.write(body if act.cut_at is None else body[: act.cut_at])

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(content: bytes) -> Iterator[FileServer]:
    """A server for the length of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    served = FileServer(content, address=f"http://127.0.0.1:{server.server_port}/data/file.tsv")
    server.served = served  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
