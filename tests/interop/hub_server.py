"""As much of the hub's HTTP interface on loopback as its real client needs to make a repository, commit small files and
read them back.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubServer:
    """revisions: branch or commit -> {path: bytes}.

    requests: (method, path) of every request; tokens: what stood in their Authorization.
    """

    def __init__(self):
        self.revisions: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.private, self.requests, self.tokens, self.refuse = None, [], set(), ""

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b"".join(iter(self.chunk, b""))
                outer.requests.append((self.command, self.path))
                outer.tokens.add(self.headers.get("Authorization"))
                status, headers, content = outer.reply(self.command, self.path.partition("?")[0], body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def chunk(self):
                content = self.rfile.read(int(self.rfile.readline(), 16))
                self.rfile.readline()
                return content

            do_GET = do_POST = do_HEAD = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def reply(self, method, path, body):
        if self.refuse:
            return 403, {"X-Error-Message": self.refuse}, b"{}"
        if path == "/api/repos/create":
            self.private = json.loads(body).get("visibility") == "private" or json.loads(body).get("private", False)
            self.revisions.setdefault("main", {})
            return _json({"url": f"{self.url}/owner/name"})
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if branch := _after("/api/models/owner/name/branch/", path):
            self.revisions.setdefault(branch, {})
            return _json({})
        if _after("/api/models/owner/name/preupload/", path):
            files = json.loads(body)["files"]
            return _json(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                        for file in files
                    ]
                }
            )
        if branch := _after("/api/models/owner/name/commit/", path):
            return self.commit(branch, [json.loads(line) for line in body.decode().splitlines()])
        if revision := _after("/api/models/owner/name/revision/", path):
            return self.info(revision)
        if revision := _after("/api/models/owner/name/tree/", path):
            files = self.revisions.get(revision, {})
            return _json(
                [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(files[name]),
                        "oid": hashlib.sha1(files[name]).hexdigest(),
                    }
                    for name in files
                ]
            )
        if match := re.fullmatch(r"/owner/name/resolve/([^/]+)/(.+)", path):
            return self.file(*match.groups())
        return 404, {"X-Error-Code": "EntryNotFound"}, b""

    def commit(self, branch, lines):
        files = self.revisions[branch] = dict(self.revisions[branch])
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        digest = hashlib.sha1(
            json.dumps([[name, len(content)] for name, content in sorted(files.items())]).encode()
        ).hexdigest()
        self.revisions[digest], self.commits[branch] = files, digest
        return _json({"success": True, "commitOid": digest, "commitUrl": f"{self.url}/owner/name/commit/{digest}"})

    def info(self, revision):
        if revision not in self.revisions:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        siblings = [{"rfilename": name} for name in sorted(self.revisions[revision])]
        sha = self.commits.get(revision, revision)
        return _json(
            {
                "id": "owner/name",
                "modelId": "owner/name",
                "sha": sha,
                "private": False,
                "tags": [],
                "siblings": siblings,
            }
        )

    def file(self, revision, path):
        content = self.revisions.get(revision, {}).get(path)
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        etag = hashlib.sha1(content).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": self.commits.get(revision, revision)}, content


def _json(value):
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _after(prefix, path):
    return path.removeprefix(prefix) if path.startswith(prefix) else ""
