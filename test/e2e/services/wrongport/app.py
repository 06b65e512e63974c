"""Listens on 9090, while config.yaml says 8080."""

import http.server


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"ok"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("", 9090), Handler)
print("ready", flush=True)
server.serve_forever()
