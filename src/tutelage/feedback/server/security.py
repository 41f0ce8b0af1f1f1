"""Around every request: hosts that are answered, bodies that are not too large, headers that confine the browser."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from tutelage.feedback.server.settings import Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; "
    "trusted-types tutelage"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with "no-referrer" browsers send the forms of these pages with "Origin: null"
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
    "x-robots-tag": "noindex, nofollow",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
MEGABYTE = 1 << 20
LARGEST = ((re.compile(r"/admin/p/\d+/items"), 64 * MEGABYTE), (re.compile(r"/api/v1/items"), 8 * MEGABYTE))
"""Longest bodies in bytes; every other one is at most 1 MB."""


class TooLarge(Exception):  # noqa: N818  (it never leaves this file)
    """A body went past its limit while it was read; whatever the application makes of it, the answer is 413."""


class Guarded:
    """An ASGI application inside these rules."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        guarded = self._with_headers(scope, send)
        if headers.get("host", "").lower() not in self.settings.hosts:
            await refuse(guarded, 421, f"This server is {self.settings.url}; it does not answer under another name.")
            return
        limit = next((size for path, size in LARGEST if path.fullmatch(scope["path"])), MEGABYTE)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            await refuse(guarded, 413, f"The body is too large: {length} bytes; allowed: {limit}.")
            return
        await self._limited(scope, receive, guarded, limit)

    async def _limited(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """A body without a stated length is counted while it comes."""
        read, started = 0, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise TooLarge
            return message

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if read <= limit or started:
                started = True
                await send(message)

        with suppress(TooLarge):
            await self.app(scope, counted, noted)
        if read > limit and not started:
            await refuse(send, 413, f"The body is too large; allowed: {limit} bytes.")

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        extra = dict(HEADERS)
        if self.settings.secure:
            extra["strict-transport-security"] = "max-age=31536000"
        static = scope["path"].startswith("/static/")
        extra["cache-control"] = "no-cache" if static else "no-store"  # no-cache: kept, and asked about by its ETag

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = {key.lower() for key, _ in message["headers"]}
                added = [(k.encode(), v.encode()) for k, v in extra.items() if k.encode() not in own]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        return answer


async def refuse(send: Send, status: int, text: str) -> None:
    """A plain answer from before the application."""
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
