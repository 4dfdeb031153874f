"""A local web server that misbehaves as real ones do, and a stub of the Hugging Face hub's API for downloads."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" + 34 * "0"
FAULTS = ("cut", "length", "short", "corrupt", "500", "no-range", "slow", "endless")


class Server(ThreadingHTTPServer):
    """Serves `files`, path → bytes; `faults[path]` are used up one a GET, 'cut!' with a mark stays.

    cut: half of what was asked for, then the connection closes. length: Content-Length is 1000 too many. short: it is
    half. corrupt: one byte differs. 500: an error. no-range: the whole file, whatever range was asked for. slow: a
    little at a time. endless: without a length, and without an end until the client goes.
    repos: path of a repository → its files; what is below 'owner/name/resolve/<commit>/' in `files`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, Range

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add_repository(self, repo: str, files: dict[str, bytes]) -> None:
        """Put a repository with one commit onto the stub of the hub, as branch 'main' and tag 'v1'."""
        for revision in (COMMIT, "main", "v1"):
            for path, content in files.items():
                self.files[f"/{repo}/resolve/{revision}/{path}"] = content
        answer = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
        for where in ("", f"/revision/{COMMIT}", "/revision/main", "/revision/v1"):
            self.files[f"/api/models/{repo}{where}"] = json.dumps(answer).encode()

    def gets(self, end: str) -> list[str | None]:
        """The ranges of all GETs of paths with this end."""
        return [asked for method, path, asked in self.asked if method == "GET" and path.endswith(end)]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes is no error."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        content = self.server.files.get(path)
        if content is None:
            return self._absent(path)
        fault = self._fault(path) if self.command == "GET" else ""
        if fault == "500":
            return self._answer(500, b"")
        if fault == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._send(content, fault)

    def _fault(self, path: str) -> str:
        faults = self.server.faults.get(path, [])
        if not faults:
            return ""
        return faults[0][:-1] if faults[0].endswith("!") else faults.pop(0)

    def _send(self, content: bytes, fault: str) -> None:
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(first[1]) if first and fault != "no-range" else 0
        if start >= len(content) > 0:
            return self._answer(416, b"")
        body = content[start:]
        lengths = {"length": len(body) + 1000, "short": len(body) // 2}
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if fault != "endless":
            self.send_header("Content-Length", str(lengths.get(fault, len(body))))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if fault in ("cut", "length", "short", "endless"):
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "endless":
            while True:
                self.wfile.write(bytes(1 << 16))
        pieces = [body[: len(body) // 2]] if fault == "cut" else [body]
        if fault == "slow":
            pieces = [body[i : i + 1 + len(body) // 8] for i in range(0, len(body), 1 + len(body) // 8)]
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()
            if fault == "slow":
                time.sleep(0.2)

    def _absent(self, path: str) -> None:
        code = ""
        if path.startswith("/api/models/"):
            known = any(name.startswith("/api/models/" + "/".join(path.split("/")[3:5])) for name in self.server.files)
            code = "RevisionNotFound" if known else "RepoNotFound"
        elif "/resolve/" in path:
            code = "EntryNotFound"
        self._answer(404, b"", code)

    def _answer(self, status: int, body: bytes, code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Server]:
    """A server while the block runs."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
