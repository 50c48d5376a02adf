"""What every request passes before the application sees it: name of the server, token, length; an ASGI middleware."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

#: paths that need no token: the page asks for it, a supervisor knows none, the description holds no data
OPEN_PATHS = ("/", "/health", "/openapi.json")
#: seconds in which the body of a request has to arrive
BODY_SECONDS = 20.0
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """Refuses what the application need not see: 400 another name, 401 no token, 408 too slow, 413 too long.

    Args:
        names: by which the server may be addressed; None: any.
        token: what requests must bring; None: nothing.
        max_body_bytes: longest body.
    """

    def __init__(self, app: App, *, names: Sequence[str] | None, token: str | None, max_body_bytes: int) -> None:
        self._app, self._names, self._max_body_bytes = app, names, max_body_bytes
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self._names is not None and host_name(headers.get(b"host", b"")) not in self._names:
            await _refuse(send, 400, "This server is not addressed by that name; see --allowed-hosts.")
        elif not self._may_pass(scope["path"], headers):
            await _refuse(send, 401, "A token is needed: Authorization: Bearer TOKEN.")
        else:
            await self._pass_on(scope, receive, send)

    def _may_pass(self, path: str, headers: Mapping[bytes, bytes]) -> bool:
        if self._token is None or path in OPEN_PATHS:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # takes as long for a wrong token as for the right one
        return hmac.compare_digest(given.strip(), self._token) and scheme.lower() == b"bearer"

    async def _pass_on(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._body(receive)
        except TimeoutError:
            await _refuse(send, 408, "The request did not arrive in time.")
            return
        if body is None:
            await _refuse(send, 413, f"The request is longer than {self._max_body_bytes:,} bytes.")
            return
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return given.pop() if given else await receive()

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self._app(scope, replay, with_headers)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None: it is too long."""
        parts, length = [], 0
        while True:
            message = await receive()
            parts.append(message.get("body", b""))
            length += len(parts[-1])
            if length > self._max_body_bytes:
                return None
            if message["type"] != "http.request" or not message.get("more_body", False):
                return b"".join(parts)


def host_name(header: bytes) -> str:
    """The name in a Host header, without port: of `[::1]:8000` it is `::1`."""
    text = header.decode("latin-1").strip().lower()
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]


async def _refuse(send: Send, status: int, detail: str) -> None:
    headers = [(b"content-type", b"application/json"), *_HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": detail}).encode()})
