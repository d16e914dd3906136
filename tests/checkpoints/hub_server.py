"""A small server on 127.0.0.1 that speaks the Hub's endpoints, as far as huggingface_hub asks."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


def commit_of(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


@dataclass
class Hub:
    """The repository `lab/moe`: revision -> folder; and what was asked of it.

    `before_weights` is called before a whole file of weights is sent.
    """

    revisions: Mapping[str, Path]
    tags: Mapping[str, str] = field(default_factory=dict)
    before_weights: Callable[[], object] = lambda: None
    url: str = ""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    sent: int = 0

    def folder(self, revision: str) -> Path | None:
        named = {commit_of(r): folder for r, folder in self.revisions.items()}
        tagged = {tag: self.revisions[branch] for tag, branch in self.tags.items()}
        return {**named, **tagged, **self.revisions}.get(revision)


@contextmanager
def serve(revisions: Mapping[str, Path]) -> Iterator[Hub]:
    hub = Hub(revisions)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range")))
            parts = path.strip("/").split("/")
            if parts[:3] == ["api", "models", "lab"] and parts[3] == "moe":
                self.describe(parts[4:])
            elif parts[:3] == ["lab", "moe", "resolve"]:
                self.file(parts[3], "/".join(parts[4:]), body=body)
            else:
                self.fail("RepoNotFound")

        def describe(self, rest: list[str]) -> None:
            if rest == ["refs"]:
                refs = [{"name": r, "ref": f"refs/heads/{r}", "targetCommit": commit_of(r)}
                        for r in hub.revisions]  # fmt: skip
                tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": commit_of(b)}
                        for t, b in hub.tags.items()]  # fmt: skip
                self.json({"branches": refs, "tags": tags, "converts": []})
                return
            revision = rest[1] if len(rest) > 1 else "main"
            folder = hub.folder(revision)
            if folder is None:
                self.fail("RevisionNotFound")
                return
            files = [
                {"rfilename": f.name, "size": f.stat().st_size, "blobId": commit_of(f.name),
                 "lfs": {"sha256": hashlib.sha256(f.read_bytes()).hexdigest(),
                         "size": f.stat().st_size, "pointerSize": 130}}
                for f in sorted(folder.iterdir())
            ]  # fmt: skip
            name = next(r for r, place in hub.revisions.items() if place == folder)
            self.json({"id": "lab/moe", "modelId": "lab/moe", "sha": commit_of(name),
                       "siblings": files, "tags": [], "private": False,
                       "downloads": 0, "likes": 0})  # fmt: skip

        def file(self, revision: str, name: str, *, body: bool) -> None:
            folder = hub.folder(revision)
            if folder is None:
                self.fail("RevisionNotFound")
                return
            if not (folder / name).is_file():
                self.fail("EntryNotFound")
                return
            if body and name.endswith(".safetensors") and not self.headers.get("Range"):
                hub.before_weights()
            data = (folder / name).read_bytes()
            wanted = self.headers.get("Range")
            part = data
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                part = data[int(first) : int(last) + 1 if last else None]
            self.send_response(206 if wanted else 200)
            if wanted:
                end = int(first) + len(part) - 1
                self.send_header("Content-Range", f"bytes {first}-{end}/{len(data)}")
            commit = revision if len(revision) == 40 else commit_of(revision)
            for key, value in (
                ("Content-Length", str(len(part))), ("X-Repo-Commit", commit),
                ("ETag", f'"{hashlib.sha256(data).hexdigest()}"'), ("Accept-Ranges", "bytes"),
                ("X-Linked-Size", str(len(data))),
            ):  # fmt: skip
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(part)
                hub.sent += len(part)

        def fail(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def json(self, document: object) -> None:
            raw = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
