"""The other side: an HTTP service with a ledger of its own that counts what it was asked to do.

`/pay` knows idempotency keys; `/mail` does not, but can be looked up; `/seal` can do neither. Requests are served one
after the other, so that looking something up waits for what was sent before. Prints its port.
"""

import json
import random
import sqlite3
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import unquote


class Handler(BaseHTTPRequestHandler):
    ledger: sqlite3.Connection

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind, key = self.path.strip("/"), body["key"]
        time.sleep(random.uniform(0, 0.01))
        known = self.ledger.execute("SELECT id FROM done WHERE kind = ? AND key = ?", (kind, key)).fetchone()
        self.ledger.execute("INSERT INTO asked VALUES (?, ?)", (kind, key))
        if kind != "pay" or known is None:
            known = self.ledger.execute(
                "INSERT INTO done (kind, key) VALUES (?, ?) RETURNING id", (kind, key)
            ).fetchone()
        self.ledger.commit()
        time.sleep(random.uniform(0, 0.01))
        self.answer({"id": known[0]})

    def do_GET(self):
        kind, key = self.path.strip("/").split("/", 1)
        done = self.ledger.execute("SELECT id FROM done WHERE kind = ? AND key = ?", (kind, unquote(key))).fetchone()
        self.answer(None if done is None else {"id": done[0]})

    def answer(self, body):
        data = json.dumps(body).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # the caller was killed

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    Handler.ledger = sqlite3.connect(sys.argv[1])
    Handler.ledger.execute("PRAGMA journal_mode=WAL")
    Handler.ledger.execute("CREATE TABLE IF NOT EXISTS done (id INTEGER PRIMARY KEY, kind TEXT, key TEXT)")
    Handler.ledger.execute("CREATE TABLE IF NOT EXISTS asked (kind TEXT, key TEXT)")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.request_queue_size = 64
    print(server.server_port, flush=True)
    server.serve_forever()
