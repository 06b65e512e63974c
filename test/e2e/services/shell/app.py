"""A shell as process 1 and the server as its child: the whole tree must come back."""

import http.server
import json
import os


def report() -> dict:
    with open("/proc/1/comm") as file:
        return {"pid": os.getpid(), "parent": os.getppid(), "process_1": file.read().strip()}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"ok" if self.path == "/healthz" else json.dumps(report()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("", 8080), Handler)
print("ready", flush=True)
server.serve_forever()
