"""
An Inference Endpoint on a local port, for tests: serves a `handler.py` as Hugging Face's inference toolkit does.

`with EndpointServer(folder) as server:` imports `handler.py` from the folder by its path, as the toolkit does, and
answers `POST /`: image bodies are decoded by PIL, JSON is passed to the handler unchanged, and an exception of the
handler is answered with status 400 and its message. The handler restricts the formats that PIL opens in the whole
process; the restriction is lifted on exit.
"""

import contextlib
import importlib.util
import io
import json
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from local_server import LocalServer
from PIL import Image


@contextlib.contextmanager
def restored_pil():
    """A context that restores PIL's formats and its pixel limit on exit."""
    Image.init()
    formats, names, most = dict(Image.OPEN), list(Image.ID), Image.MAX_IMAGE_PIXELS
    try:
        yield
    finally:
        Image.OPEN.clear()
        Image.OPEN.update(formats)
        Image.ID[:] = names
        Image.MAX_IMAGE_PIXELS = most


class EndpointServer(LocalServer):
    def __init__(self, folder: Path):
        self.pil = contextlib.ExitStack()
        self.pil.enter_context(restored_pil())
        spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder / "handler.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        super().__init__(RequestHandler, answer_with=staticmethod(module.EndpointHandler(str(folder))))

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self.pil.close()

    def post(self, body: bytes, content_type: str = "application/json") -> tuple[int, object]:
        """Status and answer of a request; raises the error of the connection if there is no answer."""
        request = urllib.request.Request(f"{self.url}/", data=body, headers={"Content-Type": content_type})
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


class RequestHandler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            kind = self.headers["Content-Type"]
            if kind.startswith("image/"):
                data = {"inputs": Image.open(io.BytesIO(body)).convert("RGB")}
            else:
                data = json.loads(body)
                if "inputs" not in data:
                    raise ValueError(f"Body needs to provide a inputs key, received: {json.dumps(data)}")
            code, answer = 200, self.answer_with(data)
            content = json.dumps(answer, allow_nan=False).encode()
        except Exception as error:
            code, content = 400, json.dumps({"error": str(error)}).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
