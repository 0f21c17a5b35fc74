"""A hub on this machine: the routes of the Hugging Face hub that fetching and publishing use, over repositories in a folder.

A repository is a folder user/name of files, and has one branch, main, whose commit is made of what the files hold.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse

import huggingface_hub.constants
import pytest

RESOLVED = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
ASKED = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+?)(?:/revision/(?P<revision>[^/]+))?")
WRITTEN = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)/(?P<step>preupload|commit)/main")
BATCH, OBJECT = re.compile(r"/(?P<repository>[^/]+/[^/]+)\.git/info/lfs/objects/batch"), re.compile(r"/objects/(?P<oid>\w+)")


class Hub:
    """Attributes:
        endpoint: what HF_ENDPOINT is to be. sent: bytes of files that were sent. asked: requests that came.
        fault: what happens to a file that is asked for, by its name: "gated", "short" (half of it comes, and no more), "wrong".
        status: in place of all answers. token: that writing needs.
    """

    def __init__(self, root: pathlib.Path):
        self.root, self.sent, self.asked, self.fault, self.status, self.token = root, 0, 0, {}, None, "hf_token"
        self.objects: dict[str, bytes] = {}
        self.commits: dict[str, dict[str, bytes]] = {}

    def files(self, repository: str) -> dict[str, bytes] | None:
        folder = self.root / repository
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.is_dir() else None

    def commit(self, repository: str) -> str:
        """The commit that main is at, which is kept."""
        files = self.files(repository)
        name = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[name] = files
        return name


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        content = json.dumps(content).encode() if isinstance(content, dict) else content
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content)

    def refused(self, status, code=""):
        self.answer(status, b"{}", X_Error_Code=code, Content_Type="application/json")

    def do_GET(self):
        hub, path = self.hub, urllib.parse.urlparse(self.path).path
        hub.asked += 1
        match = RESOLVED.fullmatch(path) or ASKED.fullmatch(path)
        if hub.status is not None:
            self.refused(hub.status)
        elif match is None or hub.files(match["repository"]) is None:
            self.refused(404, "RepoNotFound")
        elif match["revision"] not in (None, "main", hub.commit(match["repository"]), *hub.commits):
            self.refused(404, "RevisionNotFound")
        elif match.re is ASKED:
            self.listing(match["repository"])
        else:
            self.file(match)

    do_HEAD = do_GET

    def listing(self, repository):
        files = self.hub.files(repository)
        large = {name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
                 for name, content in files.items() if name.endswith(".safetensors")}
        self.answer(200, {"id": repository, "sha": self.hub.commit(repository), "siblings": [
            {"rfilename": name, "size": len(content), "lfs": large.get(name)} for name, content in files.items()]})

    def file(self, match):
        hub, name = self.hub, match["file"]
        commit = hub.commit(match["repository"]) if match["revision"] == "main" else match["revision"]
        content, fault = hub.commits[commit].get(name), hub.fault.get(name)
        if content is None:
            return self.refused(404, "EntryNotFound")
        if fault == "gated":
            return self.refused(403, "GatedRepo")
        blob = (hashlib.sha256(content) if name.endswith(".safetensors") else
                hashlib.sha1(b"blob %d\0" % len(content) + content)).hexdigest()
        headers = {"X_Repo_Commit": commit, "ETag": f'"{blob}"', "Content_Length": str(len(content))}
        if fault == "wrong":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if fault == "short":
            content, self.close_connection = content[: len(content) // 2], True
        if self.command == "GET":
            hub.sent += len(content)
        return self.answer(200, content, **headers)

    def body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self):
        hub, body = self.hub, self.body()
        hub.asked += 1
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.refused(401)
        if self.path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            there = (hub.root / name).exists()
            (hub.root / name).mkdir(parents=True, exist_ok=True)
            return self.answer(409 if there else 200, {"url": f"{hub.endpoint}/{name}"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"warnings": [{"message": "no licence"}]})
        if match := BATCH.fullmatch(self.path):
            return self.answer(200, {"objects": [{**one, "actions": {"upload": {
                "href": f"{hub.endpoint}/objects/{one['oid']}"}}} for one in json.loads(body)["objects"]]})
        match = WRITTEN.fullmatch(self.path)
        return (self.preupload if match["step"] == "preupload" else self.written)(match["repository"], body)

    def do_PUT(self):
        self.hub.objects[OBJECT.fullmatch(self.path)["oid"]] = self.body()
        self.answer(200)

    def preupload(self, repository, body):
        self.answer(200, {"files": [{"path": file["path"], "shouldIgnore": False, "uploadMode":
                                     "lfs" if file["path"].endswith(".safetensors") else "regular"}
                                    for file in json.loads(body)["files"]]})

    def written(self, repository, body):
        folder = self.hub.root / repository
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (folder / value["path"]).write_bytes(self.hub.objects[value["oid"]])
        commit = self.hub.commit(repository)
        self.answer(200, {"commitUrl": f"{self.hub.endpoint}/{repository}/commit/{commit}", "commitOid": commit,
                          "success": True})


@contextlib.contextmanager
def serving(root: pathlib.Path, cache: pathlib.Path):
    """A hub over the folder `root`, which is huggingface_hub's while the block runs, with the cache `cache` and a token."""
    hub = Hub(root)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("OfHub", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in (("ENDPOINT", hub.endpoint), ("HUGGINGFACE_CO_URL_TEMPLATE", template), ("HF_HUB_CACHE", str(cache)),
                            ("HF_HUB_DISABLE_XET", True)):
            patch.setattr(huggingface_hub.constants, name, value)
        patch.setenv("HF_TOKEN", hub.token)
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
