"""An image with USER: ids and groups must be those of the dump, and its own folder must stay writable."""

import http.server
import json
import os


def report() -> dict:
    with open("/owned/file", "w") as file:
        file.write("x")
    return {
        "uid": os.getresuid(),
        "gid": os.getresgid(),
        "groups": os.getgroups(),
        "owner": os.stat("/owned/file").st_uid,
        "may_write_root": os.access("/", os.W_OK),
    }


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
