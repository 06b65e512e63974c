"""A VOLUME: each instance must have its own copy, as it was at the dump, and with a file open in it.

GET /?ms=N answers after N milliseconds.
"""

import http.server
import json
import pathlib
import secrets
import time
import urllib.parse

DATA = pathlib.Path("/data")
(DATA / "started").write_text(secrets.token_hex(8))
log = open(DATA / "requests", "a")


def report(path: str) -> dict:
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(path).query))
    time.sleep(int(query.get("ms", "0")) / 1000)
    print("request", file=log, flush=True)
    return {
        "image": (DATA / "image").read_text().strip(),
        "started": (DATA / "started").read_text(),
        "requests": len((DATA / "requests").read_text().splitlines()),
    }


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"ok" if self.path == "/healthz" else json.dumps(report(self.path)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("", 8080), Handler)
print("ready", flush=True)
server.serve_forever()
