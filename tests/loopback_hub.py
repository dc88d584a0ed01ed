"""A Hub on this machine: an HTTP server with the part of the Hugging Face Hub API that its clients use here.

    with LoopbackHub(folder) as hub:
        subprocess.run(command, env=hub.environment(home))
        hub.connect(monkeypatch, home)  # for this process, which saves the seconds that a new one takes to start

Repositories of models, datasets and Spaces can be created, committed to (small files inside the commit, large ones uploaded
before it, by the LFS protocol), listed and downloaded, completely or in ranges. Writing needs the token, and so does reading a
private repository. A commit whose parent is not the last commit is rejected, as by the Hub. File contents are stored in
`folder`, the history in memory.

`LoopbackHub.failures` makes requests fail.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants, hf_api


USER = "someone"  # owner of the token
TOKEN = "x"
LFS_SUFFIXES = (".safetensors", ".parquet", ".arrow", ".bin", ".mp4")  # stored outside of git
DATE = "2026-01-01T00:00:00.000Z"  # of all commits
_KIND = r"(?P<kind>models|datasets|spaces)"
_PREFIX = r"(?:(?P<kind>datasets|spaces)/)?"  # URLs of model files have none
_NAME = r"(?P<name>[^/]+/[^/]+?)"
_REVISION = r"(?P<revision>[^/]+)"


class HubError(Exception):
    """An error response, with the code by which clients distinguish errors of the same status."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Request:
    """A request of a client: method, path and query as sent, headers, body."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict:
        """Parse the body."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Response:
    """A response to a client."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Failure:
    """A failure of some requests.

    Attributes:
        pattern: Regular expression, searched in `METHOD /path`.
        error: The response; None closes the connection in the middle of the request body.
        times: Number of requests that fail.
        served: Whether the request is processed before the connection is closed, so that only its response is lost.
    """

    pattern: str
    error: HubError | None = None
    times: int = 1
    served: bool = False


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit: the hash of its content and the object id that clients see."""

    sha256: str
    size: int
    git_oid: str
    is_lfs: bool

    @property
    def oid(self) -> str:
        """Object id by which clients detect files that they have already."""
        return self.sha256 if self.is_lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    oid: str
    title: str
    files: Mapping[str, StoredFile]


@dataclass
class Repository:
    """A repository of the kind models, datasets or spaces, with the one branch main."""

    kind: str
    name: str
    private: bool
    commits: list[Commit] = field(default_factory=list)

    def at(self, revision: str) -> Commit:
        """Return the commit of a branch name or commit id."""
        known = {commit.oid: commit for commit in self.commits} | {"main": self.commits[-1]}
        if revision not in known:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return known[revision]

    def add(self, title: str, files: Mapping[str, StoredFile]) -> Commit:
        """Add a commit."""
        history = json.dumps([len(self.commits), title, {path: file.sha256 for path, file in files.items()}])
        self.commits.append(Commit(hashlib.sha1(history.encode()).hexdigest(), title, dict(files)))
        return self.commits[-1]


class LoopbackHub:
    """The server; runs inside a `with` block.

    Attributes:
        url: URL of the server.
        repositories: By kind and name, such as `("datasets", "someone/clips")`.
        requests: Method and path of all requests.
        failures: Failures of the next requests; for each request the first that matches is used, at most `times` times.
    """

    def __init__(self, folder: Path):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.failures: list[Failure] = []
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        methods = {f"do_{method}": _Handler.respond for method in ("GET", "HEAD", "POST", "PUT")}
        handler = type("Handler", (_Handler,), {"hub": self, **methods})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        # By default, `shutdown` waits for up to half a second.
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """Return environment variables that make a process use this server as the Hub and `home` for its caches."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # otherwise evaluate contacts another server
            "HF_HOME": str(home),
            "NO_PROXY": "127.0.0.1",
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
        }

    def connect(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        """Make this process use this server as the Hub and `home` for its cache of the Hub, until the patches are undone."""
        values = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)  # of the functions that transformers calls
        monkeypatch.setenv("HF_TOKEN", TOKEN)

    def respond(self, request: Request) -> Response:
        """Process a request; a HubError raised here is sent to the client."""
        # The URL for uploading file contents is given only to clients with write access.
        allowed = ("", f"Bearer {TOKEN}") if request.method != "POST" else (f"Bearer {TOKEN}",)
        if request.headers.get("Authorization", "") not in allowed:
            raise HubError(401, "Invalid credentials in Authorization header")
        for methods, pattern, handle in ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and request.method in methods:
                return handle(self, request, **{key: unquote(value or "") for key, value in match.groupdict().items()})
        raise HubError(404, f"The loopback Hub does not know {request.method} {request.path}")

    def next_failure(self, method: str, path: str) -> Failure | None:
        """Return the failure of a request, or None, and count it."""
        with self._lock:
            for failure in self.failures:
                if failure.times > 0 and re.search(failure.pattern, f"{method} {path}"):
                    failure.times -= 1
                    return failure
        return None

    # File contents.

    def _blob(self, sha256: str) -> Path:
        return self._folder / sha256

    def _store(self, content: bytes, is_lfs: bool) -> StoredFile:
        """Store content; the file appears when it is complete."""
        sha256 = hashlib.sha256(content).hexdigest()
        temporary = self._folder / f".{sha256}.{threading.get_ident()}"
        temporary.write_bytes(content)
        temporary.replace(self._blob(sha256))
        return self._stored(sha256, is_lfs)

    def _stored(self, sha256: str, is_lfs: bool) -> StoredFile:
        """Describe stored content. The git object id is that of the content, or of a pointer for LFS files."""
        size = self._blob(sha256).stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        content = pointer if is_lfs else self._blob(sha256).read_bytes()
        return StoredFile(sha256, size, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), is_lfs)

    # Repositories.

    def _find(self, request: Request, kind: str, name: str) -> Repository:
        repository = self.repositories.get((kind or "models", name))
        if repository is None or (repository.private and "Authorization" not in request.headers):
            raise HubError(404 if "Authorization" in request.headers else 401, "Repository not found", "RepoNotFound")
        return repository

    def _whoami(self, _request: Request) -> Response:
        return _json({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def _validate_card(self, _request: Request) -> Response:
        return _json({"errors": [], "warnings": []})

    def _create(self, request: Request) -> Response:
        requested = request.json()
        kind, name = requested.get("type", "model") + "s", f"{requested['organization'] or USER}/{requested['name']}"
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        with self._lock:
            if known := self.repositories.get((kind, name)):
                error = {"url": self._url(known), "error": "You already created this repo"}
                return Response(json.dumps(error).encode(), 409)
            repository = Repository(kind, name, requested.get("visibility") == "private")
            repository.add("initial commit", {".gitattributes": self._store(attributes.encode(), is_lfs=False)})
            self.repositories[kind, name] = repository
        return _json({"url": self._url(repository)})

    def _url(self, repository: Repository) -> str:
        """Return the URL of a repository."""
        prefix = "" if repository.kind == "models" else f"{repository.kind}/"
        return f"{self.url}/{prefix}{repository.name}"

    def _info(self, request: Request, kind: str, name: str, revision: str) -> Response:
        repository = self._find(request, kind, name)
        commit = repository.at(revision or "main")
        return _json(
            {
                "id": name,
                "author": name.partition("/")[0],
                "sha": commit.oid,
                "private": repository.private,
                "lastModified": DATE,
                "tags": [],
                "library_name": "transformers",
                "pipeline_tag": self._pipeline_tag(commit),
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            }
        )

    def _pipeline_tag(self, commit: Commit) -> str | None:
        """Return the task that the card of a repository names."""
        card = commit.files.get("README.md")
        metadata = "" if card is None else self._blob(card.sha256).read_text().partition("\n---\n")[0]
        found = re.search(r"^pipeline_tag: (.*)$", metadata, flags=re.MULTILINE)
        return None if found is None else found[1]

    # Writing.

    def _preupload(self, request: Request, kind: str, name: str, revision: str) -> Response:
        files = self._find(request, kind, name).at(revision).files
        responses = []
        for path in (file["path"] for file in request.json()["files"]):
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            oid = files[path].oid if path in files else None
            responses.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return _json({"files": responses})

    def _lfs_batch(self, request: Request, kind: str, name: str) -> Response:
        """Return upload URLs for files that are not stored yet."""
        self._find(request, kind, name)
        objects = request.json()["objects"]
        for item in objects:
            if not self._blob(item["oid"]).exists():
                item["actions"] = {"upload": {"href": f"{self.url}/lfs/{item['oid']}"}}
        return _json({"transfer": "basic", "objects": objects})

    def _lfs_upload(self, request: Request, oid: str) -> Response:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise HubError(400, f"{oid} has another hash")
        self._store(request.body, is_lfs=True)
        return Response()

    def _commit(self, request: Request, kind: str, name: str, revision: str) -> Response:
        repository = self._find(request, kind, name)
        header, *operations = (json.loads(line) for line in request.body.splitlines())
        with self._lock:
            last = repository.at(revision)
            if header["value"].get("parentCommit", last.oid) != repository.commits[-1].oid:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(last.files)
            for operation in operations:
                self._apply(operation["key"], operation["value"], files)
            commit = repository.add(header["value"]["summary"], files)
        return _json({"commitOid": commit.oid, "commitUrl": f"{self._url(repository)}/commit/{commit.oid}"})

    def _apply(self, key: str, value: Mapping[str, str], files: dict[str, StoredFile]) -> None:
        """Apply one operation of a commit to the files."""
        path = value["path"]
        if key == "file":
            files[path] = self._store(base64.b64decode(value["content"]), is_lfs=False)
        elif key == "lfsFile":
            if not self._blob(value["oid"]).exists():
                raise HubError(400, f"{path} was not uploaded")
            files[path] = self._stored(value["oid"], is_lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            for deleted in [name for name in files if name == path or name.startswith(path.rstrip("/") + "/")]:
                del files[deleted]
        else:
            raise HubError(400, f"The loopback Hub does not know the operation {key}")

    # Reading.

    def _tree(self, request: Request, kind: str, name: str, revision: str, path: str) -> Response:
        commit = self._find(request, kind, name).at(revision)
        folder = f"{path}/" if path else ""
        entries = {entry["path"]: entry for entry in _entries(commit) if entry["path"].startswith(folder)}
        if not entries:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        recursive = parse_qs(request.query).get("recursive", ["false"])[0].lower() in ("1", "true")
        return _json([entries[key] for key in entries if recursive or "/" not in key.removeprefix(folder)])

    def _paths_info(self, request: Request, kind: str, name: str, revision: str) -> Response:
        commit = self._find(request, kind, name).at(revision)
        requested = parse_qs(request.body.decode()).get("paths", [])
        return _json([entry for entry in _entries(commit) if entry["path"] in requested])

    def _resolve(self, request: Request, kind: str, name: str, revision: str, path: str) -> Response:
        """Return the content of a file, or the requested range of it."""
        commit = self._find(request, kind, name).at(revision)
        if path not in commit.files:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        file = commit.files[path]
        content = self._blob(file.sha256).read_bytes()
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if match is None:
            return Response(content, headers=headers)
        first, last = int(match[1]), min(int(match[2] or file.size), file.size - 1)
        if first > last:
            raise HubError(416, f"{path} has {file.size} bytes")
        headers["Content-Range"] = f"bytes {first}-{last}/{file.size}"
        return Response(content[first : last + 1], 206, headers)


def _json(response: object) -> Response:
    return Response(json.dumps(response).encode(), headers={"Content-Type": "application/json"})


def _entries(commit: Commit) -> Iterator[dict]:
    """List folders and files as the Hub does."""
    for folder in sorted({str(parent) for path in commit.files for parent in Path(path).parents} - {"."}):
        yield {"type": "directory", "path": folder, "oid": hashlib.sha1(folder.encode()).hexdigest(), "size": 0}
    last_commit = {"id": commit.oid, "title": commit.title, "date": DATE}
    for path, file in sorted(commit.files.items()):
        lfs = {"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 130}} if file.is_lfs else {}
        yield {"type": "file", "path": path, "oid": file.git_oid, "size": file.size, "lastCommit": last_commit, **lfs}


# Methods, pattern of the path, handler; the named groups of the pattern are the arguments.
ROUTES: tuple[tuple[tuple[str, ...], str, Callable[..., Response]], ...] = (
    (("GET",), "/api/whoami-v2", LoopbackHub._whoami),
    (("POST",), "/api/validate-yaml", LoopbackHub._validate_card),
    (("POST",), "/api/repos/create", LoopbackHub._create),
    (("GET",), rf"/api/{_KIND}/{_NAME}(?:/revision/{_REVISION})?", LoopbackHub._info),
    (("GET",), rf"/api/{_KIND}/{_NAME}/tree/{_REVISION}(?:/(?P<path>.+))?", LoopbackHub._tree),
    (("POST",), rf"/api/{_KIND}/{_NAME}/paths-info/{_REVISION}", LoopbackHub._paths_info),
    (("POST",), rf"/api/{_KIND}/{_NAME}/preupload/{_REVISION}", LoopbackHub._preupload),
    (("POST",), rf"/api/{_KIND}/{_NAME}/commit/{_REVISION}", LoopbackHub._commit),
    (("POST",), rf"/{_PREFIX}{_NAME}\.git/info/lfs/objects/batch", LoopbackHub._lfs_batch),
    (("PUT",), r"/lfs/(?P<oid>[0-9a-f]{64})", LoopbackHub._lfs_upload),
    (("GET", "HEAD"), rf"/{_PREFIX}{_NAME}/resolve/{_REVISION}/(?P<path>.+)", LoopbackHub._resolve),
)


class _Handler(BaseHTTPRequestHandler):
    """Translates between HTTP and `Request` and `Response`."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"  # connections stay open

    def respond(self) -> None:
        """Process one request of any method, or fail as requested by `failures`."""
        address = urlsplit(self.path)
        self.hub.requests.append((self.command, unquote(address.path)))
        failure = self.hub.next_failure(*self.hub.requests[-1])
        if failure and failure.error is None and not failure.served:
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self._cut()
            return
        request = Request(self.command, address.path, address.query, self.headers, self._read_body())
        response = self._response(request, failure.error if failure else None)
        if failure and failure.served:
            self._cut()
        else:
            self._send(response)

    def _response(self, request: Request, error: HubError | None) -> Response:
        """Return the response of the Hub, or the given error."""
        try:
            if error:
                raise error
            return self.hub.respond(request)
        except HubError as raised:
            headers = {"X-Error-Code": raised.code, "X-Error-Message": str(raised)}
            return Response(json.dumps({"error": str(raised)}).encode(), raised.status, headers)

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        for name, value in {**response.headers, "Content-Length": str(len(response.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    def _cut(self) -> None:
        """Close the connection without a response."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _read_body(self) -> bytes:
        """Read the body, sent with its length or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_arguments: object) -> None:
        """Log nothing; see `LoopbackHub.requests`."""
