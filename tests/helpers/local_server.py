"""A server on a free local port, for tests: `with LocalServer(RequestHandlerClass, name=value) as server:`."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LocalServer:
    """Serves requests with a handler class, whose attributes are the keyword arguments; `url` has no final slash."""

    def __init__(self, request_handler: type[BaseHTTPRequestHandler], **attributes):
        handler = type("Handler", (request_handler,), attributes)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()
