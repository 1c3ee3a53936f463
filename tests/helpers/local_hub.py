"""
A Hub in memory, for tests: `huggingface_hub` can create repositories on it, upload to them and download from them.

`with LocalHub() as hub:` serves it on a free local port; `hub.environment` makes a process use it.
"""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

import yaml
from local_server import LocalServer


# The Hub's tasks for vision models.
PIPELINE_TAGS = {
    *("image-classification", "image-segmentation", "object-detection", "keypoint-detection"),
    *("image-feature-extraction", "depth-estimation", "mask-generation", "zero-shot-image-classification"),
}
LICENSES = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0", "bsd-3-clause", "openrail", "other"}


def card_errors(text: str) -> list[str]:
    """Errors for which the Hub would reject the metadata of a model card."""
    match = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
    if match is None:
        return ["no metadata"]
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [str(error)]
    errors = []
    if data.get("pipeline_tag") not in {None, *PIPELINE_TAGS}:
        errors.append(f"pipeline_tag {data.get('pipeline_tag')}")
    if data.get("license") not in {None, *LICENSES}:
        errors.append(f"license {data.get('license')}")
    for key in ("tags", "datasets", "metrics"):
        values = data.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            errors.append(f"{key} {values}")
    if not all(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) for name in data.get("datasets", [])):
        errors.append(f"datasets {data['datasets']}")
    for example in data.get("widget", []):
        if not isinstance(example.get("src"), str) or not isinstance(example.get("example_title"), str):
            errors.append(f"widget {example}")
    return errors + [error for model in data.get("model-index", []) for error in _index_errors(model)]


def _index_errors(model: dict) -> list[str]:
    errors = [] if isinstance(model.get("name"), str) and model["name"] else ["model-index without a name"]
    for result in model.get("results", []):
        parts = [result.get("task", {}).get("type"), *(result.get("dataset", {}).get(key) for key in ("type", "name"))]
        if not all(isinstance(part, str) and part for part in parts):
            errors.append(f"model-index result {result}")
        for metric in result.get("metrics") or [{}]:
            if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), (int, float)):
                errors.append(f"model-index metric {metric}")
    return errors


def full_name(request: dict) -> str:
    """Full name of the repository to create or delete; Spaces have the prefix `spaces/`."""
    place = "spaces/" if request.get("type") == "space" else ""
    return f"{place}{request.get('organization') or 'me'}/{request['name']}"


class LocalHub(LocalServer):
    """
    `repositories` maps ids to lists of commits (revision, {path: bytes}); the last commit is `main`. The actions in
    `refused` (`create`, `upload` of weights, `commit`) are answered with 403.
    """

    def __init__(self):
        super().__init__(RequestHandler, hub=self)
        self.refused = set()
        self.repositories = {}
        self.large_files = {}

    @property
    def environment(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}

    def create(self, name: str) -> str:
        if name in self.repositories:
            return "exists"
        self.repositories[name] = [(hashlib.sha1(name.encode()).hexdigest(), {})]
        return "created"

    def commit(self, name: str, lines: list[dict]) -> str:
        revision, files = self.repositories[name][-1]
        files = dict(files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large_files[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        revision = hashlib.sha1(f"{revision}{lines}".encode()).hexdigest()
        self.repositories[name].append((revision, files))
        return revision

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repositories.get(name, [])
        if revision == "main":
            return commits[-1] if commits else None
        return next((commit for commit in commits if commit[0] == revision), None)


class RequestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *arguments):
        pass

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, code: int, content=b"", **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def not_found(self, what: str):
        self.answer(404, {"error": what}, X_Error_Code=what)

    def handle_request(self):
        path, body = unquote(urlsplit(self.path).path), self.read_body()
        if path == "/api/whoami-v2":
            return self.answer(200, {"name": "me", "type": "user", "orgs": []})
        if path == "/api/repos/delete":
            request = json.loads(body)
            self.hub.repositories.pop(full_name(request))
            return self.answer(200)
        if path == "/api/repos/create":
            request = json.loads(body)
            if "create" in self.hub.refused:
                return self.answer(403, {"error": "no more repositories"})
            name = full_name(request)
            code = 409 if self.hub.create(name) == "exists" else 200
            return self.answer(code, {"url": f"{self.hub.url}/{name}"})
        if path == "/api/validate-yaml":
            errors = [{"message": error} for error in card_errors(json.loads(body)["content"])]
            return self.answer(400 if errors else 200, {"errors": errors, "warnings": []})
        if path.startswith("/upload/") and "upload" in self.hub.refused:
            return self.answer(403, {"error": "no uploads"})
        if path.startswith("/upload/"):
            self.hub.large_files[path.removeprefix("/upload/")] = body
            return self.answer(200)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.answer_large_files(json.loads(body)["objects"])
        if path.startswith("/api/models/"):
            return self.answer_repository(path.removeprefix("/api/models/").split("/"), body)
        if path.startswith("/api/spaces/"):
            first, *others = path.removeprefix("/api/spaces/").split("/")
            return self.answer_repository([f"spaces/{first}", *others], body)
        return self.answer_file(path.strip("/").split("/"))

    def answer_large_files(self, objects: list[dict]):
        for item in objects:
            if item["oid"] not in self.hub.large_files:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/upload/{item['oid']}"}}
        self.answer(200, {"transfer": "basic", "objects": objects})

    def answer_repository(self, parts: list[str], body: bytes):
        name, action = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "revision"
        if name not in self.hub.repositories:
            return self.not_found("RepoNotFound")
        if action == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if action == "commit":
            parent = json.loads(body.splitlines()[0])["value"].get("parentCommit")
            if parent not in (None, self.hub.repositories[name][-1][0]):
                return self.answer(412, {"error": "A commit has happened since."})
        if action == "commit" and "commit" in self.hub.refused:
            return self.answer(403, {"error": "no commits"})
        if action == "commit":
            revision = self.hub.commit(name, [json.loads(line) for line in body.splitlines()])
            url = f"{self.hub.url}/{name}/commit/{revision}"
            return self.answer(200, {"commitUrl": url, "commitOid": revision, "success": True})
        found = self.hub.find(name, parts[3] if len(parts) > 3 else "main")
        if found is None:
            return self.not_found("RevisionNotFound")
        revision, files = found
        if action == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files.items()
            ]
            return self.answer(200, entries)
        siblings = [{"rfilename": path} for path in files]
        self.answer(200, {"id": name, "modelId": name, "sha": revision, "private": False, "siblings": siblings})

    def answer_file(self, parts: list[str]):
        if len(parts) < 5 or parts[2] != "resolve":
            return self.not_found("RepoNotFound")
        name, wanted, path = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        found = self.hub.find(name, wanted)
        if found is None:
            return self.not_found("RevisionNotFound" if name in self.hub.repositories else "RepoNotFound")
        revision, files = found
        if path not in files:
            return self.answer(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=revision)
        etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
        self.answer(200, files[path], ETag=etag, X_Repo_Commit=revision)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request
