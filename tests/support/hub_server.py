"""A Hugging Face Hub on 127.0.0.1 for the tests: the endpoints that huggingface_hub's own client calls without Xet.

Accounts with tokens, repositories with branches, tags, pull requests and commits; preupload, LFS (basic and multipart) and commit;
model info, refs, tree, paths-info, resolve with redirects to a storage host of another name; private and gated repositories; the
Hub's own status codes and X-Error-Code headers. Everything is in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from support.servers import Running

LFS_SUFFIXES = (".safetensors", ".pth", ".bin", ".pt", ".onnx")  # as in the .gitattributes of a new repository
PIPELINE_TAGS = {"image-segmentation", "image-classification", "object-detection"}
LICENSES = {"apache-2.0", "mit", "bsd-3-clause", "other"}
PART = 1_000_000  # bytes of a part, where an upload goes in parts


@dataclass(frozen=True)
class Blob:
    """A file in a commit."""

    data: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """What git calls it: the SHA-1 of the content, or of the LFS pointer."""
        data = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()


@dataclass(frozen=True)
class Commit:
    parent: str | None
    message: str
    files: dict[str, Blob]

    @property
    def oid(self) -> str:
        tree = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(self.files.items()))
        return hashlib.sha1(f"{self.parent} {self.message}\n{tree}".encode()).hexdigest()


@dataclass
class Repo:
    id: str
    private: bool = False
    gated: bool = False
    allowed: set[str] = field(default_factory=set)  # users that a gated repository lets in
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # "main", other branches, "refs/pr/1"
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, ref: str, commit: Commit) -> str:
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit.oid

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)

    def head(self, revision="main") -> Commit:
        return self.commits[self.resolve(revision)]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    host: str
    authorized: bool
    status: int


class RefusedError(Exception):
    """An answer that is an error: status, X-Error-Code, message."""

    def __init__(self, status: int, code: str | None = None, message: str = ""):
        self.status, self.code, self.message = status, code, message or code or "error"


class Hub(Running):
    """The Hub; a context manager. `users`: token -> (name, organizations that it may write to)."""

    def __init__(self, users: dict[str, tuple[str, tuple[str, ...]]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.users = users
        self.repos: dict[str, Repo] = {}
        self.storage: dict[str, bytes] = {}  # LFS objects by SHA-256
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[Request] = []
        self.on_request: Callable[[Request], None] | None = None  # called when a request has been carried out, before the answer
        self.damage: Callable[[str, bytes], bytes] | None = None  # what storage answers, from (sha256, data)
        self.guard = threading.RLock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage_url = f"http://localhost:{self.server_port}/storage"  # another host to the client

    def handle_error(self, request, client_address):
        """Clients are killed in these tests."""

    def create(self, repo_id: str, **options) -> Repo:
        repo = self.repos[repo_id] = Repo(repo_id, **options)
        repo.add("main", Commit(None, "initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}))
        return repo

    def count(self, method: str, pattern: str) -> int:
        return sum(r.method == method and re.search(pattern, r.path) is not None for r in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def _run(self):
        hub, parts = self.server, urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.body = self._read_body()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.user, self.organizations = hub.users.get(token, (None, ()))
        try:
            if token and self.user is None:
                raise RefusedError(401, None, "Invalid credentials in Authorization header")
            for method, pattern, action in _ROUTES:
                match = re.fullmatch(pattern, parts.path)
                if match and self.command in method:
                    # a slash in a revision comes as %2F, and one in a name as itself
                    with hub.guard:
                        answer = action(self, *(unquote(group) for group in match.groups()))
                    return self._answer(*answer)
            raise RefusedError(404, None, f"no such endpoint: {self.command} {parts.path}")
        except RefusedError as refused:
            headers = {"X-Error-Message": refused.message} | ({"X-Error-Code": refused.code} if refused.code else {})
            self._answer(refused.status, {"error": refused.message}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _run

    def _read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status, content=b"", headers=None):
        hub = self.server
        with hub.guard:
            host, authorized = self.headers.get("Host", ""), "Authorization" in self.headers
            hub.requests.append(Request(self.command, unquote(self.path), host, authorized, status))
            if hub.on_request:
                hub.on_request(hub.requests[-1])
        headers = dict(headers or {})
        if not isinstance(content, bytes):
            content, headers["Content-Type"] = json.dumps(content).encode(), "application/json"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # who may do what

    def _repo(self, repo_id, *, content=False, write=False) -> Repo:
        repo = self.server.repos.get(repo_id)
        owner = repo_id.split("/")[0]
        mine = self.user is not None and (owner == self.user or owner in self.organizations)
        if repo is None or (repo.private and not mine):
            raise RefusedError(401 if self.user is None else 404, "RepoNotFound", "Repository not found")
        if repo.gated and content and not mine and self.user not in repo.allowed:
            raise RefusedError(401 if self.user is None else 403, "GatedRepo", "Access to this model is restricted")
        if write and not mine:
            raise RefusedError(403 if self.user else 401, None, "You don't have the rights to write to this repository")
        return repo

    def _commit(self, repo, revision) -> tuple[str, Commit]:
        oid = repo.resolve(revision)
        if oid is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, repo.commits[oid]

    # endpoints

    def whoami(self):
        if self.user is None:
            raise RefusedError(401, None, "Invalid username or password.")
        return 200, {"type": "user", "name": self.user, "orgs": [{"name": name} for name in self.organizations], "auth": {}}

    def create_repo(self):
        asked = json.loads(self.body)
        if self.user is None:
            raise RefusedError(401, None, "Invalid username or password.")
        owner = asked.get("organization") or self.user
        if owner != self.user and owner not in self.organizations:
            raise RefusedError(403, None, f"You don't have the rights to create a model under the namespace {owner}")
        repo_id = f"{owner}/{asked['name']}"
        answer = {"url": f"{self.server.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.server.repos:
            return 409, {"error": "You already created this model repo", **answer}
        self.server.create(repo_id, private=asked.get("private") is True or asked.get("visibility") == "private")
        return 200, answer

    def validate_yaml(self):
        found = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        errors = []
        data = yaml.safe_load(found[1]) if found else {}
        if data.get("pipeline_tag", "image-segmentation") not in PIPELINE_TAGS:
            errors.append('"pipeline_tag" is not one of the known tasks')
        if data.get("license", "other") not in LICENSES:
            errors.append('"license" is not one of the known licenses')
        errors += [f'"{key}" must be a list of text' for key in ("tags", "datasets") if not _texts(data.get(key, []))]
        for model in data.get("model-index", ()):
            for result in model["results"]:
                if not {"type"} <= result["task"].keys() or not {"type", "name"} <= result["dataset"].keys():
                    errors.append('"model-index" lacks a task or a data set')
                errors += [
                    '"model-index" has a metric without type or value' for m in result["metrics"] if not {"type", "value"} <= m.keys()
                ]
        warnings = [] if found else [{"message": "empty or missing yaml metadata in repo card"}]
        return (400 if errors else 200), {"errors": [{"message": e} for e in errors], "warnings": warnings}

    def info(self, repo_id, revision="main"):
        repo = self._repo(repo_id)
        oid, commit = self._commit(repo, revision)
        siblings = []
        for path, blob in commit.files.items():
            sibling = {"rfilename": path}
            if "blobs" in self.query:
                sibling |= {"size": len(blob.data), "blobId": blob.oid}
                if blob.lfs:
                    sibling["lfs"] = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
            siblings.append(sibling)
        about = {"id": repo_id, "modelId": repo_id, "author": repo_id.split("/")[0], "sha": oid, "private": repo.private}
        return 200, {**about, "gated": "manual" if repo.gated else False, "disabled": False, "tags": [], "siblings": siblings}

    def refs(self, repo_id):
        repo = self._repo(repo_id)
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.refs.items() if not n.startswith("refs/")]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repo.tags.items()]
        return 200, {"branches": branches, "tags": tags, "converts": []}

    def create_branch(self, repo_id, branch):
        repo = self._repo(repo_id, write=True)
        if branch in repo.refs:
            raise RefusedError(409, None, f"Reference already exists: {branch}")
        repo.refs[branch] = self._commit(repo, json.loads(self.body or b"{}").get("startingPoint", "main"))[0]
        return 200, {}

    def create_tag(self, repo_id, revision):
        repo = self._repo(repo_id, write=True)
        repo.tags[json.loads(self.body)["tag"]] = self._commit(repo, revision)[0]
        return 200, {}

    def _listing(self, path, blob):
        entry = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.oid}
        return entry | ({"lfs": {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}} if blob.lfs else {})

    def tree(self, repo_id, revision):
        commit = self._commit(self._repo(repo_id), revision)[1]
        return 200, [self._listing(path, blob) for path, blob in commit.files.items()]

    def paths_info(self, repo_id, revision):
        commit = self._commit(self._repo(repo_id), revision)[1]
        asked = parse_qs(self.body.decode())["paths"]
        return 200, [self._listing(path, commit.files[path]) for path in asked if path in commit.files]

    def preupload(self, repo_id, revision):
        commit = self._commit(self._repo(repo_id, write="create_pr" not in self.query), revision)[1]
        answers = []
        for file in json.loads(self.body)["files"]:
            path, there = file["path"], commit.files.get(file["path"])
            lfs = path.endswith(LFS_SUFFIXES) or file["size"] > 10_000_000
            oid = (there.sha256 if there.lfs else there.oid) if there else None
            answers.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid})
        return 200, {"files": answers}

    def lfs_batch(self, repo_id):
        self._repo(repo_id, write=True)
        asked = json.loads(self.body)
        objects = []
        for one in asked["objects"]:
            oid, size = one["oid"], one["size"]
            if oid not in self.server.storage:
                upload = {"href": f"{self.server.storage_url}/{oid}", "header": {}}
                if size > PART and "multipart" in asked["transfers"]:
                    count = -(-size // PART)
                    header = {str(i + 1): f"{self.server.storage_url}/{oid}/part/{i + 1}" for i in range(count)}
                    upload = {"href": f"{self.server.url}/api/complete_multipart/{oid}", "header": {"chunk_size": str(PART), **header}}
                one["actions"] = {"upload": upload, "verify": {"href": f"{self.server.url}/{repo_id}.git/info/lfs/verify", "header": {}}}
            objects.append(one)
        return 200, {"transfer": "basic", "objects": objects}

    def lfs_verify(self, repo_id):
        self._repo(repo_id, write=True)
        asked = json.loads(self.body)
        if len(self.server.storage.get(asked["oid"], b"")) != asked["size"]:
            raise RefusedError(404, None, "Object not in storage")
        return 200, {}

    def _store(self, oid, data):
        if hashlib.sha256(data).hexdigest() != oid:
            raise RefusedError(400, None, "The SHA-256 of the upload is not the announced one")
        self.server.storage[oid] = data

    def put(self, oid):
        self._store(oid, self.body)
        return 200, b""

    def put_part(self, oid, number):
        self.server.parts[oid, int(number)] = self.body
        return 200, b"", {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'}

    def complete(self, oid):
        parts = json.loads(self.body)["parts"]
        data = [self.server.parts.pop((oid, part["partNumber"])) for part in parts]
        if [f'"{hashlib.md5(d).hexdigest()}"' for d in data] != [part["etag"] for part in parts]:
            raise RefusedError(400, None, "An ETag is not that of its part")
        self._store(oid, b"".join(data))
        return 200, {}

    def commit(self, repo_id, revision):
        propose = "create_pr" in self.query
        repo = self._repo(repo_id, write=not propose)
        if self.user is None:
            raise RefusedError(401, None, "Invalid username or password.")
        parent, before = self._commit(repo, revision)
        files, message = dict(before.files), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit", parent) != parent and not propose:
                    raise RefusedError(412, None, "A commit has happened since. Please refresh and try again.")
            elif item["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.server.storage:
                    raise RefusedError(400, None, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = Blob(self.server.storage[value["oid"]], True)
            else:
                raise RefusedError(400, None, f"no such operation here: {item['key']}")
        number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
        oid = repo.add(f"refs/pr/{number}" if propose else revision, Commit(parent, message, files))
        page = f"{self.server.url}/{repo_id}"
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{page}/commit/{oid}"}
        return 200, answer | ({"pullRequestUrl": f"{page}/discussions/{number}"} if propose else {})

    def resolve(self, repo_id, revision, path):
        repo = self._repo(repo_id, content=True)
        oid, commit = self._commit(repo, revision)
        blob = commit.files.get(path)
        if blob is None:
            raise RefusedError(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": oid}
        if blob.lfs:
            location = f"{self.server.storage_url}/{blob.sha256}?signature=x"
            return 302, b"", {**headers, "X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data)), "Location": location}
        return 200, blob.data, {**headers, "ETag": f'"{blob.oid}"'}

    def get(self, oid):
        if oid not in self.server.storage:
            raise RefusedError(404, None, "no such object")
        data = self.server.storage[oid]
        if self.server.damage:
            data = self.server.damage(oid, data)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked:
            start = int(asked[1])
            return 206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return 200, data, {"Accept-Ranges": "bytes"}


def _texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_ID, _REVISION, _SHA = r"([^/]+/[^/]+?)", r"([^/]+)", r"([0-9a-f]{64})"
_ROUTES = (
    (("GET",), "/api/whoami-v2", _Handler.whoami),
    (("POST",), "/api/repos/create", _Handler.create_repo),
    (("POST",), "/api/validate-yaml", _Handler.validate_yaml),
    (("GET",), f"/api/models/{_ID}", _Handler.info),
    (("GET",), f"/api/models/{_ID}/revision/{_REVISION}", _Handler.info),
    (("GET",), f"/api/models/{_ID}/refs", _Handler.refs),
    (("POST",), f"/api/models/{_ID}/branch/{_REVISION}", _Handler.create_branch),
    (("POST",), f"/api/models/{_ID}/tag/{_REVISION}", _Handler.create_tag),
    (("GET",), f"/api/models/{_ID}/tree/{_REVISION}", _Handler.tree),
    (("POST",), f"/api/models/{_ID}/paths-info/{_REVISION}", _Handler.paths_info),
    (("POST",), f"/api/models/{_ID}/preupload/{_REVISION}", _Handler.preupload),
    (("POST",), f"/api/models/{_ID}/commit/{_REVISION}", _Handler.commit),
    (("POST",), rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("POST",), rf"/{_ID}\.git/info/lfs/verify", _Handler.lfs_verify),
    (("POST",), f"/api/complete_multipart/{_SHA}", _Handler.complete),
    (("PUT",), f"/storage/{_SHA}", _Handler.put),
    (("PUT",), rf"/storage/{_SHA}/part/(\d+)", _Handler.put_part),
    (("GET", "HEAD"), f"/storage/{_SHA}", _Handler.get),
    (("GET", "HEAD"), f"/{_ID}/resolve/{_REVISION}/(.+)", _Handler.resolve),
)
