"""Holds HEAP_MB of memory whose every page is known, so that whoever asks sees an answer that a missing page was in.

GET /page?n=N  the digest of page N, of which each 8 bytes are N + 1
GET /pages     the number of pages
GET /heap      the digest of all of it

POST does the same as GET.
"""

import hashlib
import http.server
import mmap
import os
import struct
import urllib.parse

PAGE = 4096
pages = int(os.environ.get("HEAP_MB", "512")) * 256
heap = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for number in range(pages):
    heap[number * PAGE : (number + 1) * PAGE] = struct.pack("<Q", number + 1) * (PAGE // 8)
view = memoryview(heap)


def answer(path: str) -> str:
    url = urllib.parse.urlsplit(path)
    if url.path == "/healthz":
        return "ok"
    if url.path == "/pages":
        return str(pages)
    if url.path == "/heap":
        return hashlib.sha256(view).hexdigest()
    number = int(dict(urllib.parse.parse_qsl(url.query))["n"])
    return hashlib.sha256(view[number * PAGE : (number + 1) * PAGE]).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = answer(self.path).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024


server = Server(("", 8080), Handler)
print("ready", flush=True)
server.serve_forever()
