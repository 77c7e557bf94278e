"""Serve the page until Ctrl-C."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vidsieve.checks import require
from vidsieve.cli.app.requests import HERE
from vidsieve.cli.app.service import Service, Settings
from vidsieve.errors import VidsieveError

GRACE = 1  # seconds that open pages get when the server stops
PATIENCE = 10.0  # seconds that the answer in progress gets then


def serve(
    settings: Settings,
    host: str,
    port: int,
    max_upload: int,
    note: Callable[[str], None],
    allowed: Sequence[str] = (),
) -> dict[str, Any]:
    """Serve the page at `host` and `port` (0: any that is free) until Ctrl-C, and return how many answers it gave.

    max_upload: bytes.  allowed: names that requests may ask for beside those of `hosts`.
    Uploads and pictures lie in a folder of their own, which goes when the server stops.
    """
    with TemporaryDirectory(prefix="vidsieve-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # which Gradio reads when it is imported
        require("gradio", "app")
        with listen(host, port) as listening:
            url = address(listening)
            service = Service(settings, note)
            note("making the page")
            import uvicorn

            from vidsieve.cli.app.page import application

            made = application(service, Path(folder), max_upload, hosts(listening, host, allowed))
            note("")
            config = uvicorn.Config(made, log_config=None, log_level="critical", timeout_graceful_shutdown=GRACE)
            print(f"vidsieve: {url} (Ctrl-C stops it)", file=sys.stderr, flush=True)
            _run_until_stopped(uvicorn.Server(config), listening)
            service.stop(PATIENCE)  # what it writes would be left there
    return {"url": url, "answered": service.answered}


def _run_until_stopped(server: Any, listening: socket.socket) -> None:
    """Run the server until Ctrl-C or SIGTERM, which is made the same, so that the folder goes."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.run([listening])
    except KeyboardInterrupt:  # how one stops it
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def listen(host: str, port: int) -> socket.socket:
    """Open the socket of the server. Raises `VidsieveError` where that cannot be."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise VidsieveError(
            f"cannot listen at port {port} of {host} ({error.strerror}); choose another --host or --port (0: any "
            "port that is free)"
        ) from error


def address(listening: socket.socket) -> str:
    return f"http://{_bracketed(listening.getsockname()[0])}:{listening.getsockname()[1]}"


def hosts(listening: socket.socket, host: str, allowed: Sequence[str]) -> set[str] | None:
    """Name the hosts that requests may ask for: this machine and those `allowed`; None for any.

    Any where it listens to other machines, whose names for this one nobody knows, unless some are `allowed`.
    """
    here = listening.getsockname()[0]
    if not allowed and not ip_address(here.partition("%")[0]).is_loopback:
        return None
    return {name.lower() for name in (*HERE, _bracketed(host), _bracketed(here), *allowed)}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
