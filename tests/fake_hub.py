"""What the hub's client is answered, from this machine: the listing of one repository, and its files."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", "refs/pr/7", COMMIT)


class Hub:
    """A repository "owner/name" with the files of a folder.

    Attributes:
      folder: what it holds.
      token: that a client must send; None for a public repository.
      sent: paths of the files that were downloaded.
    """

    def __init__(self, folder: Path, token: str | None = None):
        self.folder, self.token = folder, token
        self.sent: set[str] = set()

    def answer(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        path = unquote(urlsplit(request.path).path)
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"X-Error-Code": "GatedRepo"}, b""
        if path == "/api/models/owner/name":
            path += "/revision/main"
        for start in ("/api/models/owner/name/revision/", "/api/models/owner/name/tree/", "/owner/name/resolve/"):
            if path.startswith(start):
                revision = next((r for r in REVISIONS if f"{path}/".startswith(f"{start}{r}/")), None)
                if revision is None:
                    return 404, {"X-Error-Code": "RevisionNotFound"}, b""
                return self.of_revision(start, path.removeprefix(f"{start}{revision}").strip("/"), request)
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def of_revision(self, kind: str, path: str, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        """The answer to a request of one kind."""
        files = {str(file.relative_to(self.folder)): file for file in self.folder.rglob("*") if file.is_file()}
        if kind.endswith("revision/"):
            about = {"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            return 200, {}, json.dumps(about).encode()
        if kind.endswith("tree/"):
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": identity(file)}
                for name, file in files.items()
            ]
            return 200, {}, json.dumps(entries).encode()
        if path not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        if request.command == "GET":
            self.sent.add(path)
        headers = {"ETag": f'"{identity(files[path])}"', "X-Repo-Commit": COMMIT}
        return 200, headers, files[path].read_bytes()


def identity(file: Path) -> str:
    """A name for the content of a file."""
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextlib.contextmanager
def served(hub: Hub) -> Iterator[str]:
    """Answers as long as the context lasts; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
