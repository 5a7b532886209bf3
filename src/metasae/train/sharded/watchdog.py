"""A rank that ends, however it ends, ends the whole job within seconds and with a message that names it.

Every rank holds a connection to rank 0. The operating system closes it when a process ends, so rank 0 learns of it at once, says
so on stderr and tells the others; a rank that leaves as it should says so before. A machine that is switched off is noticed by the
connection's own probes. Then a rank that waits in a collective gets an error from it, which is put into words here. One that still
runs after a while, as it waits for a GPU or works for itself, is ended: its files are whole or absent, so nothing is lost that a
resumed job would not make again.
"""

import os
import secrets
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from metasae.errors import UserError

# Seconds: until a rank that cannot be interrupted is ended; for the news to arrive after a collective failed.
GRACE, NEWS = 10.0, 3.0
# Seconds for all ranks to come.
PATIENCE = 600.0
# What a rank says before it closes its connection: its work is done; it raised an error that it prints itself.
_DONE, _FAILED = -1, -2
_MESSAGE = struct.Struct("<i")


class RankLost(UserError):
    """Another rank ended. The message was printed when it became known, so it need not be printed again."""

    printed = True


def lost_message(rank: int, size: int) -> str:
    return (
        f"rank {rank} of {size} ended before the job was done (killed, out of memory, or by an error that it printed itself); "
        "start the same command again to go on from the last checkpoint"
    )


@contextmanager
def watched(store, rank: int, size: int) -> Iterator["Watch"]:
    """Watches the other ranks while inside. store: where rank 0 says how it is reached.

    Raises RankLost in place of what was raised because a rank is lost.
    """
    watch = Watch(store, rank, size)
    try:
        yield watch
        watch.leave(_DONE)
    except (UserError, KeyboardInterrupt):
        watch.leave(_FAILED)
        raise
    except BaseException as error:
        # what a collective or a checkpoint raises when a rank is gone; the news of which one may be a moment behind
        watch.news.wait(NEWS)
        if watch.lost is None:
            raise
        raise RankLost(lost_message(watch.lost, size)) from error
    finally:
        watch.close()


class Watch:
    """lost: the rank that ended, or None; news: set when there is one."""

    def __init__(self, store, rank: int, size: int):
        self.rank, self.size = rank, size
        self.lost: int | None = None
        self.news, self._over = threading.Event(), threading.Event()
        host = os.environ["MASTER_ADDR"]
        self._links = _accepted(store, host, size) if rank == 0 else {0: _connected(store, host, rank)}
        self._thread = threading.Thread(target=self._listen, daemon=True, name="metasae-watch")
        self._thread.start()

    def leave(self, why: int) -> None:
        """Says that this rank ends, and why."""
        self._over.set()
        self._tell(why)

    def close(self) -> None:
        self._over.set()
        for link in self._links.values():
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        self._thread.join(5.0)
        for link in self._links.values():
            link.close()

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, rank)
            while selector.get_map() and not self._over.is_set():
                for key, _ in selector.select():
                    said = _read(key.fileobj)
                    if said == _DONE:
                        selector.unregister(key.fileobj)
                    elif not self._over.is_set():
                        # the end of the connection is the end of the rank on its other side
                        return self._mourn(key.data if said in (None, _FAILED) else said, told=said == _FAILED)

    def _mourn(self, lost: int, told: bool) -> None:
        """told: the rank prints by itself why it ended."""
        self.lost = lost
        if self.rank == (1 if lost == 0 else 0) and not told:
            # at once: whoever started the ranks may soon end this one too
            print(f"metasae: {lost_message(lost, self.size)}", file=sys.stderr, flush=True)
        if self.rank == 0:
            self._tell(lost)
        self.news.set()
        if not self._over.wait(GRACE):
            # the main thread is inside a call that does not return or knows nothing of the others: only the process can end
            os._exit(UserError.exit_code)

    def _tell(self, number: int) -> None:
        for link in self._links.values():
            # a rank that is gone needs no telling
            with suppress(OSError):
                link.sendall(_MESSAGE.pack(number))


def _accepted(store, host: str, size: int) -> dict[int, socket.socket]:
    """Connections of all other ranks, by rank. The word in the store keeps strangers out."""
    family, _, _, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    word, links = secrets.token_bytes(16), {}
    with socket.create_server((place[0], 0), family=family, backlog=size) as server:
        server.settimeout(PATIENCE)
        store.set("metasae/watch", f"{server.getsockname()[1]} {word.hex()}")
        while len(links) < size - 1:
            try:
                link, _ = server.accept()
            except TimeoutError:
                raise UserError(
                    f"only {len(links) + 1} of {size} ranks came within {PATIENCE:.0f} s; start them all again"
                ) from None
            link.settimeout(60)
            said = _exactly(link, 16 + _MESSAGE.size)
            if said is None or said[:16] != word:
                link.close()
                continue
            links[_MESSAGE.unpack(said[16:])[0]] = _lasting(link)
    return links


def _connected(store, host: str, rank: int) -> socket.socket:
    port, word = store.get("metasae/watch").decode().split()
    link = socket.create_connection((host, int(port)), timeout=60)
    link.sendall(bytes.fromhex(word) + _MESSAGE.pack(rank))
    return _lasting(link)


def _lasting(link: socket.socket) -> socket.socket:
    """A connection that waits for ever, and probes the other machine when nothing comes."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


def _read(link: socket.socket) -> int | None:
    """A message, or None at the end of the connection."""
    said = _exactly(link, _MESSAGE.size)
    return None if said is None else _MESSAGE.unpack(said)[0]


def _exactly(link: socket.socket, n_bytes: int) -> bytes | None:
    out = b""
    while len(out) < n_bytes:
        try:
            some = link.recv(n_bytes - len(out))
        except OSError:
            return None
        if not some:
            return None
        out += some
    return out
