"""Who may ask: this machine's browser, from this page alone. Plain ASGI, before everything else.

Against other sites in the same browser (Host, Origin, Sec-Fetch-Site, a cookie that never goes along with them), other
users of the machine (a random token) and requests that are too large.
"""

import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: The largest question, in bytes.
MOST_BYTES = 256 * 1024
#: The names that this machine has for itself, with any port: a tunnel ends at another one.
_NAMES = ("localhost", "127.0.0.1", "[::1]")

POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "connect", "style", "frame")),
        "img-src 'self' data: blob:",
        *(f"{kind} 'none'" for kind in ("frame-ancestors", "form-action", "base-uri")),
        "require-trusted-types-for 'script'",
        "trusted-types lit-html",
    )
)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
# A page of ours that goes on to the page: what comes from another site brings no cookie along, not even after 303.
_GO_ON = b'<!doctype html><meta http-equiv="refresh" content="0;url=/"><title>lens_scopes</title>'


class _Refused(Exception):  # noqa: N818 - an answer, with its code
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Guard:
    """Lets through what comes from this page with its cookie, and puts the same headers on every answer.

    Args:
        app: what is guarded.
        token: what the printed address has; None: a random one.

    """

    def __init__(self, app: App, token: str | None = None) -> None:
        """See the class."""
        self.app = app
        self.token = token or secrets.token_urlsafe(24)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message["headers"]}
                more = {"content-security-policy": POLICY, **_HEADERS}
                added = [(k.encode(), v.encode()) for k, v in more.items() if k.encode() not in known]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            if scope["type"] != "http":
                raise _Refused(403, "only http")  # noqa: TRY301 - one way out
            entered = self._check(scope)
        except _Refused as refusal:
            await _answer(
                with_headers, refusal.status, json.dumps({"error": {"kind": "Refused", "text": str(refusal)}})
            )
            return
        if entered is None:
            await self.app(scope, receive, with_headers)
        else:
            status, headers, body = entered
            await _answer(with_headers, status, body, headers)

    def _check(self, scope: Scope) -> tuple[int, dict[str, str], bytes] | None:
        """None to go on; or how somebody with the token is let in.

        Raises:
            _Refused: anything else.

        """
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = headers.get("host", [])
        if len(hosts) > 1:
            raise _Refused(400, "two Host headers")
        host = hosts[0] if hosts else ""
        if host.rpartition(":")[0 if _has_port(host) else 2].lower() not in _NAMES:
            raise _Refused(421, "this page is at 127.0.0.1 or localhost only")
        cookie = f"lens-scopes-{host.rpartition(':')[2] if _has_port(host) else '80'}"
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        site = headers.get("sec-fetch-site", ["none"])[0]
        elsewhere = site in ("cross-site", "same-site")
        reading = scope["method"] in ("GET", "HEAD")
        if given:
            if not (reading and scope["path"] == "/" and _same(given[0], self.token)):
                raise _Refused(403, "another token: open the address that lens-scopes serve has printed")
            if elsewhere and headers.get("sec-fetch-mode") != ["navigate"]:
                raise _Refused(403, "only a person opens this page")
            set_cookie = f"{cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            if elsewhere:
                return 200, {"set-cookie": set_cookie, "content-type": "text/html"}, _GO_ON
            return 303, {"set-cookie": set_cookie, "location": "/"}, b""
        if elsewhere:
            raise _Refused(403, "another site asked")
        origins = headers.get("origin", [])
        if any(origin.lower() != f"http://{host.lower()}" for origin in origins):
            raise _Refused(403, "another origin asked")
        if not _same(_cookies(headers).get(cookie, ""), self.token):
            raise _Refused(401, "no cookie: open the address that lens-scopes serve has printed")
        if scope["method"] == "POST":
            _check_post(headers, origins)
        elif not reading:
            raise _Refused(405, "GET and POST only")
        return None


def _check_post(headers: dict[str, list[str]], origins: list[str]) -> None:
    kind = headers.get("content-type", [""])[0].partition(";")[0].strip().lower()
    if kind != "application/json":
        raise _Refused(415, "a question is application/json")
    if not origins:
        raise _Refused(403, "a question says its Origin")
    lengths = headers.get("content-length", [])
    if len(lengths) != 1 or not lengths[0].isdigit() or "transfer-encoding" in headers:
        raise _Refused(411, "a question says its Content-Length")
    if int(lengths[0]) > MOST_BYTES:
        raise _Refused(413, f"a question has at most {MOST_BYTES} bytes")


def _has_port(host: str) -> bool:
    return ":" in host and host.rpartition(":")[2].isdigit()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _cookies(headers: dict[str, list[str]]) -> dict[str, str]:
    pairs = (part.strip().partition("=") for line in headers.get("cookie", []) for part in line.split(";"))
    return {name: value for name, _, value in pairs}


async def _answer(send: Send, status: int, body: str | bytes, headers: dict[str, str] | None = None) -> None:
    content = body.encode() if isinstance(body, str) else body
    known = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(k.encode(), v.encode()) for k, v in known.items()],
        }
    )
    await send({"type": "http.response.body", "body": content})
