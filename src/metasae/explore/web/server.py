"""The explorer's web server: a run or a sweep, on this machine."""

import contextlib
import socket
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette

from metasae.errors import UserError
from metasae.explore.pages.queries import Explorer
from metasae.explore.pages.sweep_pages import is_sweep
from metasae.explore.pages.trying import Trying
from metasae.explore.store.build import build
from metasae.explore.web.run_app import run_app
from metasae.explore.web.sweep_app import sweep_app
from metasae.progress.progress import SILENT, Progress


def app(
    run, try_text: Callable[[str], dict] | None = None, host: str = "127.0.0.1", progress: Progress = SILENT
) -> Starlette:
    """The application. run: a run folder with its store, a sweep's folder, or anything with the methods of `Explorer`.

    try_text: text -> which latents fire on it; by default the run folder's model and SAEs, loaded when first asked.
    host: the address it is served on; requests must name it, or this machine. progress: of a sweep's cells, whose
    stores are built when asked for.
    """
    if not isinstance(run, (str, Path)):
        return run_app(run, try_text, host)
    if is_sweep(run):
        return sweep_app(run, host, progress)
    return run_app(Explorer(run), try_text or Trying(run), host)


def serve(
    run_folder: str | Path,
    host: str = "127.0.0.1",
    port: int = 0,
    open_browser: bool = True,
    progress: Progress = SILENT,
) -> None:
    """Serves a run or a sweep until Ctrl-C; a run's store is built where it is missing or stale. port 0: any free one.

    Raises UserError when the folder is neither, the port is taken or the address is not this machine's.
    """
    import uvicorn

    run_folder = Path(run_folder)
    of_run = not is_sweep(run_folder)
    with listen(host, port) as listening:
        if of_run:
            build(run_folder, progress)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}/"
        config = uvicorn.Config(
            app(run_folder, host=host, progress=progress),
            log_level="warning",
            timeout_graceful_shutdown=2,
            server_header=False,
            date_header=False,
        )
        print(f"{run_folder.name}: {address}   (Ctrl-C stops)", flush=True)
        if open_browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        # uvicorn shuts down at the signal, then passes it on
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError where the port is taken or the address is not this machine's."""
    # asyncio sends at once only where the protocol is named; else every answer's end waits 40 ms for an acknowledgement
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        raise UserError(
            f"cannot serve on {host}:{port} ({getattr(error, 'strerror', None) or error}); choose another --port"
        ) from None
    return listening
