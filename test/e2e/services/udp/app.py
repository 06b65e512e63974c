"""A connected UDP socket, made before the dump: it has the container's address in it."""

import http.server
import json
import socket

# An address kept for documentation: nothing answers there, and connecting a UDP socket sends nothing.
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect(("192.0.2.1", 9))


def report() -> dict:
    return {"own": udp.getsockname(), "peer": udp.getpeername()}


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
