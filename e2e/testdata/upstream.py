"""An upstream as Python programs are: it knows Content-Length alone.

Usage: upstream.py server|wsgi
"""
import http.server
import socketserver
import sys
import wsgiref.simple_server


def respond(method, path, host, body):
    if path == "/moved":
        return 302, [("Location", "http://%s/end" % host)], b""
    if path == "/login":
        return 302, [("Location", "/end")], b""
    if path == "/end":
        return 200, [("Content-Type", "text/plain")], b"the end"
    return 200, [("Content-Type", "application/octet-stream")], body


class Handler(http.server.BaseHTTPRequestHandler):
    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/hints":
            self.send_response_only(103, "Early Hints")
            self.send_header("Link", "</style.css>; rel=preload")
            self.end_headers()
            self.send_response_only(102, "Processing")
            self.end_headers()
            body = b"hinted"
        status, headers, answer = respond(self.command, self.path, self.headers["Host"], body)
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = handle_any

    def log_message(self, *args):
        pass


def app(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    if environ["PATH_INFO"] == "/who":
        body = environ.get("HTTP_X_FORWARDED_FOR", "").encode()
    status, headers, answer = respond(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["HTTP_HOST"], body)
    start_response("%d Status" % status, headers)
    return [answer]


class ThreadingServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *args):
        pass


if sys.argv[1] == "wsgi":
    server = wsgiref.simple_server.make_server("127.0.0.1", 0, app, handler_class=Quiet)
else:
    server = ThreadingServer(("127.0.0.1", 0), Handler)
print("listening on 127.0.0.1:%d" % server.server_port, flush=True)
server.serve_forever()
