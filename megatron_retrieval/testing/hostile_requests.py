"""Requests that no honest client sends, drawn by seed: bodies, paths, headers and methods of all kinds."""

from __future__ import annotations

import json
import random
from http.client import HTTPConnection, HTTPException

METHODS = ("POST", "POST", "POST", "GET", "PUT", "DELETE", "BREW")
PATHS = (
    *("/search", "/answer", "/passages/../../etc/passwd", "/passages/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/%00"),
    *("/documents/..%2f..%2fetc%2fpasswd", "//etc/passwd", "/passages/" + "a" * 9000, "/health?x=" + "%ff" * 99),
)
HEADERS = ("Content-Type", "X-" + "a" * 200, "Authorization", "Host", "Transfer-Encoding", "Content-Length", "Expect")
VALUES = (
    *("application/json", "text/plain; charset=utf-16", "Bearer " + "x" * 5000, "evil.example", "chunked", "-1"),
    *("99999999999", "gzip, chunked", "\t", "a" * 70_000),
)


def hostile_request(port: int, seed: int) -> int | str:
    """Send one such request to a server of this machine; its status, or what happened to the connection."""
    chance = random.Random(seed)
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.putrequest(chance.choice(METHODS), chance.choice(PATHS))
        body = _body(chance)
        if chance.random() < 0.7:
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", str(len(body)))
        for _ in range(chance.randrange(3)):
            connection.putheader(chance.choice(HEADERS), chance.choice(VALUES))
        connection.endheaders()
        connection.send(body)
        return connection.getresponse().status
    except (OSError, HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def _body(chance: random.Random) -> bytes:
    character = chr(chance.randrange(1, 0xD7FF))
    bodies = (
        b"\xff\xfe" * chance.randrange(1, 5000),
        b"[" * chance.randrange(1, 60_000),
        json.dumps({"question": "x" * chance.randrange(1000, 200_000)}).encode(),
        b'{"question": "\\ud800", "k": 1e999}',
        b'{"question": "x", "k": ' + b"9" * chance.randrange(1, 9000) + b"}",
        json.dumps({"question": character * 30, "k": chance.choice([0, -1, 5, "5"])}).encode(),
        json.dumps({"question": "x", "method": "../../etc", "file": "/etc/passwd"}).encode(),
        chance.randbytes(chance.randrange(400)),
        json.dumps({"question": {"$gt": ""}, "k": None}).encode(),
    )
    return chance.choice(bodies)
