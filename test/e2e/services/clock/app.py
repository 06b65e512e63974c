"""Tells what its clocks say, and how often a thread of it has slept for a tenth of a second."""

import http.server
import json
import threading
import time

started = time.clock_gettime(time.CLOCK_MONOTONIC)
latest = started
ticks = 0
backwards = 0


def tick() -> None:
    global ticks, latest, backwards
    while True:
        time.sleep(0.1)
        now = time.clock_gettime(time.CLOCK_MONOTONIC)
        backwards += now < latest
        latest = now
        ticks += 1


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        told = {
            "started": started,
            "monotonic": time.clock_gettime(time.CLOCK_MONOTONIC),
            "boottime": time.clock_gettime(time.CLOCK_BOOTTIME),
            "realtime": time.time(),
            "ticks": ticks,
            "backwards": backwards,
        }
        body = b"ok" if self.path == "/healthz" else json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


threading.Thread(target=tick, daemon=True).start()
server = http.server.ThreadingHTTPServer(("", 8080), Handler)
print("ready", flush=True)
server.serve_forever()
