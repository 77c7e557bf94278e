"""Refuse requests before Gradio sees them: under another host's name, and uploads that there is no room for."""

import re
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from vidsieve.cli.app.uploads import Uploads

App = Callable[[Any, Any, Any], Awaitable[None]]
HERE = ("localhost", "127.0.0.1", "[::1]")


class OnlyHosts:
    """Answers requests to these hosts alone.

    Else a page of somebody else, whose name its server has resolve to this machine, would be one with this page for a
    browser: it could ask about uploads, and read them.
    """

    def __init__(self, app: App, names: Collection[str]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            asked = _header(scope, b"host")
            name = re.sub(r":\d*$", "", asked).lower()
            if name not in self.names:
                text = (
                    f"vidsieve app: expected a request to {HERE[0]}, got one to {asked!r}; --allow-host lets a name in"
                )
                await _refuse(send, 403, text)
                return
        await self.app(scope, receive, send)


class Bounded:
    """Takes uploads that there is room for."""

    def __init__(self, app: App, uploads: Uploads) -> None:
        self.app, self.uploads = app, uploads

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kind = _header(scope, b"content-type") if scope["type"] == "http" else ""
        if not kind.lower().startswith("multipart/"):
            await self.app(scope, receive, send)
            return
        said = _header(scope, b"content-length")
        if not said.isdecimal() or _header(scope, b"transfer-encoding"):  # which a server goes by, where both are there
            await _refuse(send, 411, "expected an upload that says its length")
            return
        length = int(said[:20])
        if why := self.uploads.begin(length):
            await _refuse(send, 413, why)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            self.uploads.end(length)


def _header(scope: Any, name: bytes) -> str:
    """Get the first header of a name, as the application does where there are several; "" where there is none."""
    return next((str(value.decode("latin-1")) for one, value in scope["headers"] if one == name), "")


async def _refuse(send: Any, status: int, text: str) -> None:
    body = f"{text}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
