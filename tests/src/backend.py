# A server to have behind load balancers: says what it was asked, slowly, wrongly, or as something else than HTTP.
import base64, hashlib, http.server, os, socketserver, sys, time
from urllib.parse import urlparse, parse_qs

TASK = os.environ.get("STEADY_TASK", "?")

class Backend(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, text, headers=()):
        body = text.encode()
        self.send_response(code)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        url = urlparse(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        if url.path == "/health":
            sick = os.path.exists(os.path.join(query.get("sick", "/nowhere"), TASK))
            return self.answer(503 if sick else 200, "sick" if sick else "ok")
        if url.path == "/slow":
            time.sleep(float(query["seconds"]))
            return self.answer(200, "slowly " + TASK)
        if url.path == "/stream":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number in range(int(query["count"])):
                piece = ("%d\n" % number).encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
                time.sleep(0.05)
            self.wfile.write(b"0\r\n\r\n")
            return
        if url.path == "/echo" and self.headers.get("Upgrade"):
            self.send_response(101)
            self.send_header("Connection", "upgrade")
            self.send_header("Upgrade", self.headers["Upgrade"])
            key = self.headers.get("Sec-WebSocket-Key", "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            self.wfile.flush()
            while True:
                data = self.connection.recv(1024)
                if not data:
                    break
                self.connection.sendall(data.upper())
            self.close_connection = True
            return
        if url.path == "/session":
            return self.answer(200, TASK, [("Set-Cookie", "session=1; Path=/")])
        if url.path == "/die":
            os._exit(9)
        lines = ["%s %s" % (self.command, self.path), "task " + TASK, "body %d" % len(body)]
        lines += ["%s: %s" % pair for pair in self.headers.items()]
        self.answer(int(query.get("code", 200)), "\n".join(lines) + "\n", [("Connection", "keep-alive"), ("X-Own", "kept")])

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET

class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 256

Server(("0.0.0.0", int(os.environ["PORT"])), Backend).serve_forever()
