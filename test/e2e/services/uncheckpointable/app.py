"""Holds a POSIX message queue, which any container may open and CRIU cannot dump. It must be served cold."""

import ctypes
import http.server
import os

libc = ctypes.CDLL(None, use_errno=True)
if libc.mq_open(b"/jobs", os.O_RDWR | os.O_CREAT, 0o600, None) < 0:
    raise OSError(ctypes.get_errno(), "mq_open")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"ok"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("", 8080), Handler)
print("ready", flush=True)
server.serve_forever()
