"""A stand-in for the Hugging Face hub on this machine: the calls that a push makes, and what they leave behind."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

GOOD, READ_ONLY = "hf_good", "hf_readonly"  # tokens that the stub knows


@dataclass
class Hub:
    """What the stub holds.

    repos: branch by repository, path by branch. objects: uploaded LFS bytes by hash. calls: method and path.
    """

    url: str = ""
    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    fail: dict[str, int] = field(default_factory=dict)  # status by a part of the path


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, verb: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.hub.calls.append(f"{verb} {path}")
        status, value = self._checked(verb, path, body)
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status >= 400:
            self.send_header("X-Error-Message", value["error"])
        self.end_headers()
        self.wfile.write(content)

    def _checked(self, verb: str, path: str, body: bytes) -> tuple[int, Any]:
        for part, status in self.hub.fail.items():
            if part in path:
                return status, dict(error="made to fail")
        if path.startswith("/lfs/"):
            return self._object(path.removeprefix("/lfs/"), body)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (GOOD, READ_ONLY):
            return 401, dict(error="Invalid credentials")
        if token == READ_ONLY and verb == "POST" and "validate" not in path:
            return 403, dict(error="this token is for reading")
        for pattern, answer in self.routes:
            if match := re.fullmatch(pattern, path):
                return answer(self, body, *map(unquote, match.groups()))
        return 404, dict(error=f"no such call {verb} {path}")

    def _object(self, oid: str, body: bytes) -> tuple[int, Any]:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, dict(error="other bytes than announced")
        self.hub.objects[oid] = body
        return 200, {}

    def _create(self, body: bytes) -> tuple[int, Any]:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        known = name in self.hub.repos
        if not known:
            self.hub.repos[name] = dict(main={".gitattributes": b""})
            self.hub.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
        answer = dict(url=f"{self.hub.url}/{name}", name=name, id=name)
        return (409, answer | dict(error="you already have it")) if known else (200, answer)

    def _validate(self, body: bytes) -> tuple[int, Any]:
        assert json.loads(body)["content"].startswith("---\n")
        return 200, dict(errors=[], warnings=[])

    def _branch(self, _: bytes, repo: str, branch: str) -> tuple[int, Any]:
        branches = self.hub.repos[repo]
        if branch in branches:
            return 409, dict(error="Reference already exists")
        branches[branch] = dict(branches["main"])
        return 200, {}

    def _tree(self, _: bytes, repo: str, branch: str) -> tuple[int, Any]:
        files = self.hub.repos[repo][branch]
        return 200, [dict(type="file", path=p, size=len(c), oid=hashlib.sha1(c).hexdigest()) for p, c in files.items()]

    def _preupload(self, body: bytes, repo: str, branch: str) -> tuple[int, Any]:
        assert branch in self.hub.repos[repo]
        asked = json.loads(body)["files"]
        mode = {f["path"]: "lfs" if f["path"].endswith(".safetensors") else "regular" for f in asked}
        return 200, dict(files=[dict(path=p, uploadMode=m, shouldIgnore=False) for p, m in mode.items()])

    def _batch(self, body: bytes, _repo: str) -> tuple[int, Any]:
        asked = json.loads(body)
        objects = [
            dict(o, actions=dict(upload=dict(href=f"{self.hub.url}/lfs/{o['oid']}", header={})))
            for o in asked["objects"]
        ]
        return 200, dict(transfer="basic", objects=objects)

    def _commit(self, body: bytes, repo: str, branch: str) -> tuple[int, Any]:
        lines = [json.loads(line) for line in body.splitlines()]
        files = dict(self.hub.repos[repo][branch])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.repos[repo][branch] = files
        self.hub.commits.append(
            dict(repo=repo, branch=branch, header=lines[0]["value"], keys=[x["key"] for x in lines])
        )
        oid = hashlib.sha1(body).hexdigest()
        return 200, dict(commitUrl=f"{self.hub.url}/{repo}/commit/{oid}", commitOid=oid)

    routes = (
        (r"/api/repos/create", _create),
        (r"/api/validate-yaml", _validate),
        (r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", _branch),
        (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", _tree),
        (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", _preupload),
        (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _batch),
        (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", _commit),
    )


@contextmanager
def hub_stub() -> Iterator[Hub]:
    """Run the stub on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), dict(hub=hub)))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
