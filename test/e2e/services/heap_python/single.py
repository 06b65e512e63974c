"""One process that answers for its heap: a list of one."""

import http.server
import json
import os
import threading

from heap import Heap

heap = Heap(int(os.environ.get("HEAP_MB", "64")))
one_at_a_time = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/healthz":
            body = b"ok"
        else:
            with one_at_a_time:
                body = json.dumps([heap.answer(self.path)]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("", 8080), Handler)
print("ready", flush=True)
server.serve_forever()
