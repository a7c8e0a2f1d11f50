"""A server on this machine that gives real files: by address, in parts, and as a model hub does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


@dataclass
class Server:
    """files: bytes by path; repositories: files by repository, then by name. breaks_at: after so many bytes each answer
    to a GET ends, once for each number in the list. asked: the requests, method, path and range."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    licence: str | None = None
    commit: str = COMMIT
    gated: set[str] = field(default_factory=set)
    breaks_at: list[int] = field(default_factory=list)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def fetched(self) -> list[tuple[str, str | None]]:
        """The GETs of files, without those of what a repository holds."""
        return [(path, span) for method, path, span in self.asked if method == "GET" and "/api/" not in path]


@contextmanager
def serving() -> Iterator[Server]:
    """The server for a `with` block."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            server.asked.append((self.command, path, self.headers.get("Range")))
            if path.startswith("/api/models/"):
                self.api(path.removeprefix("/api/models/"))
                return
            headers: dict[str, str] = {}
            content = server.files.get(path)
            if "/resolve/" in path:
                repo, _, rest = path.strip("/").partition("/resolve/")
                files = server.repositories.get(repo)
                name = rest.partition("/")[2]
                if files is None:
                    self.refuse(401, "RepoNotFound")
                    return
                if repo in server.gated:
                    self.refuse(403, "GatedRepo")
                    return
                content = files.get(name)
                if content is None:
                    self.refuse(404, "EntryNotFound")
                    return
                headers["X-Repo-Commit"] = server.commit
            if content is None:
                self.refuse(404, None)
                return
            self.send(content, headers)

        def send(self, content: bytes, headers: dict[str, str]) -> None:
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            start, span = 0, self.headers.get("Range")
            if span is not None and self.headers.get("If-Range") in (None, tag):
                start = int(span.removeprefix("bytes=").split("-")[0])
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            for name, value in {"ETag": tag, **headers, "Content-Length": str(len(content) - start)}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                rest = content[start:]
                if server.breaks_at:
                    rest = rest[: server.breaks_at.pop(0)]
                    self.close_connection = True
                self.wfile.write(rest)

        def api(self, rest: str) -> None:
            repo, _, revision = rest.partition("/revision/")
            files = server.repositories.get(repo)
            if files is None:
                self.refuse(401, "RepoNotFound")
            elif revision not in ("", "main", server.commit):
                self.refuse(404, "RevisionNotFound")
            else:
                digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
                siblings = [
                    {
                        "rfilename": name,
                        "size": len(content),
                        "blobId": digests[name][:40],
                        "lfs": {"sha256": digests[name], "size": len(content), "pointerSize": 130},
                    }
                    for name, content in files.items()
                ]
                card = {} if server.licence is None else {"cardData": {"license": server.licence}}
                self.say(200, {"id": repo, "sha": server.commit, "siblings": siblings, **card})

        def refuse(self, status: int, code: str | None) -> None:
            self.say(status, {"error": "no"}, {} if code is None else {"X-Error-Code": code})

        def say(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(text))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(text)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        server.address = f"http://127.0.0.1:{httpd.server_address[1]}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            httpd.shutdown()
            thread.join()
