"""Tells instances apart: a token older than the dump, a counter and notes in memory and on disk.

GET /            counts the request and tells of it on both outputs; ?note=TEXT also writes a note below /notes
                 the environment variable RELEASE, if set, is in the answer
GET /slow?ms=N   the same, after N milliseconds
GET /echo?text=T the text, after 20 ms
GET /exit?code=N ends the process at once
GET /hang        stops all of it for ten minutes: nothing answers any more, and nothing ends

DELETE and POST do the same as GET.
"""

import ctypes
import http.server
import itertools
import json
import os
import pathlib
import secrets
import sys
import time
import urllib.parse

NOTES = pathlib.Path("/notes")
NOTES.mkdir()
token = secrets.token_hex(16)
requests = itertools.count(1)


def report(path: str) -> dict:
    url = urllib.parse.urlsplit(path)
    query = dict(urllib.parse.parse_qsl(url.query))
    if url.path == "/exit":
        os._exit(int(query.get("code", "1")))
    if url.path == "/hang":
        # A PyDLL call keeps the interpreter's lock.
        ctypes.PyDLL(None).sleep(600)
    if url.path == "/echo":
        time.sleep(0.02)
        return {"echo": query.get("text")}
    if url.path == "/slow":
        time.sleep(int(query.get("ms", "1000")) / 1000)
    number = next(requests)
    print(f"request {number}", flush=True)
    print(f"noted: {query.get('note', '')}", file=sys.stderr, flush=True)
    (NOTES / f"{number}").write_text(query.get("note", ""))
    notes = sorted(NOTES.iterdir(), key=lambda file: int(file.name))
    told = {"token": token, "pid": os.getpid(), "requests": number, "notes": [file.read_text() for file in notes]}
    release = os.environ.get("RELEASE")
    return told | {"release": release} if release else told


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"ok" if self.path == "/healthz" else json.dumps(report(self.path)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_DELETE = do_POST = do_GET

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024


server = Server(("", 8080), Handler)
print("ready", flush=True)
server.serve_forever()
