"""A hub of models on this machine, as far as its library asks one: names, downloads, uploads without a network."""

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def serving(folders):
    """Yields the address of a hub that holds some folders by name."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.split("?")[0]
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
                self.answer_about(found[1])
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
                files = [{"type": "file", "oid": "0" * 40, **about} for about in self.files(found[1])]
                self.answer(json.dumps(files).encode(), "application/json")
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                file = folders[found[1]] / found[2]
                if file.is_file():
                    self.answer(file.read_bytes(), "application/octet-stream")
                else:
                    self.answer(b"", "text/plain", 404, {"X-Error-Code": "EntryNotFound"})
            else:
                self.answer(b"", "text/plain", 404)

        def files(self, name):
            paths = sorted(path for path in folders[name].rglob("*") if path.is_file())
            return [{"path": str(path.relative_to(folders[name])), "size": path.stat().st_size} for path in paths]

        def answer_about(self, name):
            if name not in folders:
                return self.answer(b"", "text/plain", 404, {"X-Error-Code": "RepoNotFound"})
            siblings = [{"rfilename": about["path"]} for about in self.files(name)]
            about = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            return self.answer(json.dumps(about).encode(), "application/json")

        def answer(self, content, kind, status=200, headers=()):
            self.send_response(status)
            about = {"Content-Type": kind, "Content-Length": str(len(content)), "X-Repo-Commit": COMMIT}
            about["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
            for name, value in {**about, **dict(headers)}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
