"""tini as process 1 by ENTRYPOINT: `start_cmd` must replace CMD and keep ENTRYPOINT."""

import http.server
import json
import os
import sys


def report() -> dict:
    with open("/proc/1/comm") as file:
        return {"arguments": sys.argv[1:], "parent": os.getppid(), "process_1": file.read().strip()}


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
