"""Between a store and its server: a relay on loopback that breaks one connection where it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Literal
from urllib.parse import parse_qs, quote, urlsplit

Break = Literal["unsent", "unheard", "unanswered"]
BREAKS: tuple[Break, ...] = ("unsent", "unheard", "unanswered")


class Proxy:
    """A relay to the server of `url`. After `arm` one connection breaks at the given message of the client's:

    "unsent"      the server never gets it, and notices that the client is gone;
    "unheard"     the server gets it, and notices nothing: its session stays until somebody ends it;
    "unanswered"  the server gets it and answers it, the client does not get the answer, and both know.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        asked = parse_qs(parts.query)
        self._path = f"{asked['host'][0]}/.s.PGSQL.{asked.get('port', ['5432'])[0]}"
        self._mutex = threading.Lock()
        self._left = -1
        self._break: Break = "unsent"
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        options = quote(asked.get("options", [""])[0])
        self.url = (
            f"postgresql://postgres@127.0.0.1:{port}{parts.path}"
            f"?sslmode=disable&gssencmode=disable&options={options}"
        )
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, message: int, how: Break) -> None:
        """Break at the message with this number (from 0), counted over all connections from now on."""
        with self._mutex:
            self._left, self._break = message, how

    def disarm(self) -> bool:
        """Whether a connection was broken."""
        with self._mutex:
            fired, self._left = self._left < 0, -1
            return fired

    def close(self) -> None:
        self._listener.close()
        for one in self._sockets:
            _end(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._path)
            except OSError:
                _end(client)
                server.close()
                continue
            self._sockets += [client, server]
            broken = threading.Event()
            for target in (self._ask, self._answer):
                threading.Thread(target=target, args=(client, server, broken), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket, broken: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 20):
                with self._mutex:
                    breaks = self._left == 0
                    how = self._break
                    if self._left >= 0:
                        self._left -= 1
                if breaks and how == "unsent":
                    _end(client)
                    break
                if breaks:
                    broken.set()
                server.sendall(data)
                if breaks and how == "unheard":
                    _end(client)
                    return
        if not broken.is_set():
            _end(server)

    def _answer(self, client: socket.socket, server: socket.socket, broken: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                if not broken.is_set():
                    client.sendall(data)
                    continue
                _end(client)
                if self._break == "unanswered":
                    break  # else the rest is for nobody, and the server is kept in its belief
        _end(client)
        _end(server)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
