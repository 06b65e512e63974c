"""What a service has of its host: volumes, limits, variables.

GET /             what it sees of all of them
GET /note?text=T  adds a line to the named volume
GET /write?path=P tries to write to a file: "written", or the name of the error
GET /eat?mb=N     takes N megabytes of memory and keeps them
"""

import errno
import http.server
import json
import os
import pathlib
import urllib.parse

DATA = pathlib.Path("/data")
# With cgroup version 1 runc shows a restored process its own group here, not the instance's.
CGROUPS = pathlib.Path("/sys/fs/cgroup")
# Before the dump: the volume is there already, and what is written then stays.
with open(DATA / "starts", "a") as starts:
    starts.write("start\n")
eaten = []


def first(*paths):
    """The content of the first of these files of cgroup version 2 and 1 that is there."""
    for path in paths:
        if (CGROUPS / path).exists():
            return (CGROUPS / path).read_text().split()
    return None


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def write(path):
    try:
        with open(path, "a") as file:
            file.write("x")
        return "written"
    except OSError as error:
        return errno.errorcode[error.errno]


def answer(path):
    url = urllib.parse.urlsplit(path)
    query = dict(urllib.parse.parse_qsl(url.query))
    if url.path == "/note":
        with open(DATA / "notes", "a") as notes:
            notes.write(query["text"] + "\n")
    if url.path == "/write":
        return {"write": write(query["path"])}
    if url.path == "/eat":
        eaten.append(bytearray(os.urandom(1 << 20) * int(query["mb"])))
    return {
        "seed": (DATA / "seed").read_text().strip(),
        "starts": len(lines(DATA / "starts")),
        "notes": lines(DATA / "notes"),
        "host": pathlib.Path("/host/debian_version").read_text().strip(),
        "memory": first("memory.max", "memory/memory.limit_in_bytes"),
        "swap": first("memory.swap.max", "memory/memory.memsw.limit_in_bytes"),
        "cpu": first("cpu.max") or [first("cpu/cpu.cfs_quota_us")[0], first("cpu/cpu.cfs_period_us")[0]],
        "greeting": os.environ.get("GREETING"),
    }


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"ok" if self.path == "/healthz" else json.dumps(answer(self.path)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("", 8080), Handler)
print("ready", flush=True)
server.serve_forever()
