"""A listener bound to the container's own address, not to all of them."""

import http.server
import json
import socket

own = socket.gethostbyname(socket.gethostname())


def report() -> dict:
    return {"listens_on": server.socket.getsockname()[0], "host_name": socket.gethostname()}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"ok" if self.path == "/healthz" else json.dumps(report()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer((own, 8080), Handler)
print("ready", flush=True)
server.serve_forever()
