"""Tells what the network looks like from inside an instance.

GET /connect?to=ADDRESS:PORT  tries a TCP connection for a second: "connected", or what kept it from being one
GET /network                  nameservers, own addresses, and where the default route leads
GET /ask?server=ADDRESS       sends a DNS question there; "answered", or what kept it from being so
"""

import http.server
import json
import pathlib
import socket
import struct
import urllib.parse

SECONDS = 1


def connect(to: str) -> str:
    address, port = to.rsplit(":", 1)
    try:
        socket.create_connection((address, int(port)), SECONDS).close()
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return "connected"


def ask(server: str) -> str:
    question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + b"\x07invalid\x00" + b"\x00\x01\x00\x01"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(SECONDS)
        try:
            udp.sendto(question, (server, 53))
            udp.recvfrom(512)
        except OSError as error:
            return f"{type(error).__name__}: {error}"
    return "answered"


def default_gateway() -> str:
    for line in pathlib.Path("/proc/net/route").read_text().splitlines()[1:]:
        _, destination, gateway, *_ = line.split()
        if destination == "00000000":
            return socket.inet_ntoa(struct.pack("<L", int(gateway, 16)))
    return ""


def network() -> dict:
    lines = pathlib.Path("/etc/resolv.conf").read_text().splitlines()
    return {
        "nameservers": [line.split()[1] for line in lines if line.startswith("nameserver")],
        "own": socket.gethostbyname(socket.gethostname()),
        "gateway": default_gateway(),
    }


def report(path: str) -> object:
    url = urllib.parse.urlsplit(path)
    query = dict(urllib.parse.parse_qsl(url.query))
    if url.path == "/connect":
        return {"result": connect(query["to"])}
    if url.path == "/ask":
        return {"result": ask(query["server"])}
    return network()


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
