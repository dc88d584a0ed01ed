"""A web server on this machine with faulty pages; the name of a page says what it does."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def odd_server(video: bytes, broadcast: bytes) -> Iterator[str]:
    """Serve a video in many faulty ways.

    Args:
        video: Bytes of a file with an end.
        broadcast: Bytes that can be sent again and again.

    Yields:
        The address, without a slash at its end.
    """
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.video, server.broadcast, server.stopped = video, broadcast, threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Respond with the method that has the name of the page."""

    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError):
            getattr(self, Path(self.path).stem)()

    def log_message(self, *args: object) -> None:
        """Log nothing."""

    def respond(self, length: int | None = None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def complete(self) -> None:
        self.respond(len(self.server.video))
        self.wfile.write(self.server.video)

    def drips(self) -> None:
        self.respond(len(self.server.video))
        for byte in self.server.video:
            self.wfile.write(bytes([byte]))
            if self.server.stopped.wait(0.1):
                return

    def breaks(self) -> None:
        self.respond(len(self.server.video))
        self.wfile.write(self.server.video[: len(self.server.video) // 2])

    def stalls(self) -> None:
        self.breaks()
        self.server.stopped.wait(60)

    def endless(self) -> None:
        self.respond()
        while not self.server.stopped.is_set():
            self.wfile.write(self.server.broadcast)

    def circle(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.path)
        self.end_headers()

    def page(self) -> None:
        self.respond()
        self.wfile.write(b"<!DOCTYPE html><html>Not here</html>")

    def gone(self) -> None:
        self.send_error(404)

    def nothing(self) -> None:
        self.respond(0)
