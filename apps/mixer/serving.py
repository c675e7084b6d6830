"""`diffadapt app`: the mixer on a port of this machine, as a page or as endpoints alone."""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffadapt import shapes
from diffadapt.errors import DiffAdaptError, SourceError

UPLOAD = "2gb"
_LOCAL = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Options:
    """What the command is asked for. model: an embedded pipeline's name, a Hub id, or a folder. port: None for the
    first free one from 7860. host: where to listen; beyond this machine's own, anybody who reaches it may use it."""

    model: str = "unet"
    adapters: tuple[Path, ...] = ()
    port: int | None = None
    host: str = "127.0.0.1"
    headless: bool = False
    mcp: bool = True
    previews: bool = True


@dataclass
class Served:
    """A mixer that runs. Close it with `close`, or as a context."""

    url: str
    endpoints: Any
    app: Any
    last: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """Stop serving, and remove the sessions' files."""
        self.last.close()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def serve(options: Options) -> Served:
    """Load the pipeline, begin to scan the library, and serve, in threads of their own.

    Raises SourceError for a model that cannot be loaded and a port that is taken.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from .endpoints import Endpoints
    from .page_parts import Page
    from .previews import Drawn
    from .session import Sessions
    from .studio import embedded, loaded

    _check_place(options)
    is_embedded = options.model in shapes.PIPELINES
    studio, library = (embedded if is_embedded else loaded)(options.model, options.adapters)
    with ExitStack() as last:
        library.scan()
        last.callback(library.close)
        sessions = Sessions()
        last.callback(sessions.close_all)
        drawn = Drawn(studio, library) if is_embedded else None
        endpoints = Endpoints(studio, library, sessions)
        try:
            app, url = _headless(endpoints, options) if options.headless else _page(Page(endpoints, drawn), options)
        except OSError as error:  # somebody was faster
            raise _taken(options) from error
        last.callback(app.close)
        if drawn is not None:
            last.callback(drawn.close)
            if options.previews and not options.headless:
                drawn.start(shapes.adapters(options.model))
        return Served(url, endpoints, app, last.pop_all())


def _check_place(options: Options) -> None:
    """Raise SourceError where nobody can listen at the host and port, before a pipeline is loaded for it."""
    if ":" in options.host:
        raise SourceError(f"{options.host}: the mixer listens at IPv4 addresses and names. Expected one, as 127.0.0.1.")
    if options.port is not None and not 0 < options.port < 1 << 16:
        raise SourceError(f"The port is {options.port}; expected 1 to 65535.")
    try:
        socket.create_server((options.host, options.port or 0)).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _taken(options) from error
        where = options.host if options.port is None else f"{options.host}, port {options.port}"
        why = str(error.strerror).partition(" (")[0]
        raise SourceError(f"{where}: nobody can listen there ({why}).") from error


def _taken(options: Options) -> SourceError:
    if options.port is None:
        return SourceError("No port from 7860 on is free. Choose one with --port.")
    return SourceError(f"The port {options.port} is taken. Choose another with --port, or none for the first free one.")


def _launching(options: Options) -> dict[str, Any]:
    """What both ways to serve are launched with."""
    return {
        "server_name": options.host, "server_port": options.port, "prevent_thread_lock": True, "quiet": True,
        "max_file_size": UPLOAD, "allowed_paths": [], "enable_monitoring": False, "show_error": False, "share": False,
        "ssr_mode": False, "mcp_server": options.mcp and find_spec("mcp") is not None,
    }  # fmt: skip


def _guards(options: Options) -> list[Any]:
    """Middleware: on this machine alone, a page elsewhere whose name was pointed here is not answered."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return [Middleware(TrustedHostMiddleware, allowed_hosts=[*_LOCAL])] if options.host in _LOCAL else []


def _page(page: Any, options: Options) -> tuple[Any, str]:
    from .page import build, static

    blocks = build(page)
    blocks.queue(max_size=64)
    _, url, _ = blocks.launch(
        css=static("style.css"),
        js=static("page.js"),
        app_kwargs={"middleware": _guards(options)},
        **_launching(options),
    )
    return blocks, url


def _headless(endpoints: Any, options: Options) -> tuple[Any, str]:
    from gradio import Server

    from .endpoints import MODEL

    app = Server(title="diffadapt", middleware=_guards(options))
    for endpoint in endpoints.all():
        waits: dict[str, Any] = {"concurrency_id": MODEL, "concurrency_limit": 1} if endpoint.model else {}
        app.api(endpoint.call, name=endpoint.name, **waits)

    @app.get("/")
    def index() -> dict[str, Any]:
        return {"diffadapt": "mixer", "endpoints": [f"/{endpoint.name}" for endpoint in endpoints.all()]}

    served, url, _ = app.launch(**_launching(options))
    return served.get_blocks(), url


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diffadapt app`."""
    parser.add_argument(
        "--model", default="unet", metavar="MODEL",
        help="a pipeline of Diffusers, as a Hub id or folder; or an embedded one, unet (default) or dit",
    )  # fmt: skip
    parser.add_argument(
        "--adapters", nargs="*", type=Path, default=(), metavar="FOLDER", help="adapters, with all below"
    )
    parser.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine only)")
    parser.add_argument("--headless", action="store_true", help="the same endpoints without a page")
    parser.add_argument("--no-mcp", action="store_true", help="do not offer the endpoints as MCP tools")


def run(chosen: argparse.Namespace) -> int:
    """Serve until Ctrl-C. Returns 1 where that cannot begin, and says why."""
    options = Options(
        chosen.model, tuple(chosen.adapters), chosen.port, chosen.host, chosen.headless, not chosen.no_mcp
    )
    try:
        served = serve(options)
    except (DiffAdaptError, OSError) as error:
        print(f"diffadapt app: {error}", file=sys.stderr)
        return 1
    with served:
        print(f"The mixer is at {served.url} (Ctrl-C stops it).", flush=True)
        with suppress(KeyboardInterrupt):
            served.app.block_thread()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from a process's own arguments."""
    parser = argparse.ArgumentParser(prog="diffadapt app")
    add_arguments(parser)
    return run(parser.parse_args(arguments))
