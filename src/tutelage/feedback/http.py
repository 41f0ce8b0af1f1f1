"""A few lines of HTTP on the standard library: JSON and forms, cookies, no redirects, nothing through a proxy on loopback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from http.cookiejar import CookieJar
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPCookieProcessor, HTTPRedirectHandler, ProxyHandler, Request, build_opener

from tutelage.feedback.server.settings import is_loopback

LONGEST_WAIT = 30.0
"""Seconds for one answer."""


class UnreachableError(OSError):
    """The server did not answer, or said that it cannot now (5xx, 429): trying again later may help."""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    text: str

    def json(self) -> Any:
        """The body read as JSON. Raises ValueError where it is none."""
        return json.loads(self.text)


class _Stay(HTTPRedirectHandler):
    """A redirect is an answer like others: a token never travels on to another address."""

    def redirect_request(self, *_: Any) -> None:
        """None: do not follow."""


class Http:
    """Requests to one server, with the cookies that it sets."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url)
        local = is_loopback(parts.hostname or "")
        if not parts.hostname or (parts.scheme != "https" and not (parts.scheme == "http" and local)):
            raise ValueError(f"url: {url!r}; allowed: https://NAME, or http:// on this machine")
        self.url, self.headers = f"{parts.scheme}://{parts.netloc}", dict(headers or {})
        direct = [ProxyHandler({})] if local else []
        self._opener = build_opener(*direct, _Stay, HTTPCookieProcessor(CookieJar()))

    def send(
        self, method: str, path: str, body: Any = None, form: Mapping[str, str] | None = None, **headers: str
    ) -> Reply:
        """One request, `body` as JSON or `form` as fields. Raises UnreachableError."""
        data, kind = None, {}
        if body is not None:
            data, kind = json.dumps(body).encode(), {"content-type": "application/json"}
        elif form is not None:
            data, kind = urlencode(form).encode(), {"content-type": "application/x-www-form-urlencoded"}
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(self.url + path, data, {**self.headers, **kind, **names}, method=method)
        try:
            with self._opener.open(request, timeout=LONGEST_WAIT) as answer:
                return Reply(answer.status, answer.read().decode("utf-8", "replace"))
        except HTTPError as error:
            with error:
                reply = Reply(error.code, error.read().decode("utf-8", "replace"))
            if reply.status >= 500 or reply.status == 429:
                raise UnreachableError(f"{self.url} answers {reply.status}: {reply.text[:200]}") from None
            return reply
        except (OSError, HTTPException) as error:  # refused, reset, timed out, cut short
            raise UnreachableError(f"{self.url} does not answer ({error})") from None
