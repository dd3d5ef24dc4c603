"""A stand-in for EC2's instance metadata service, of which it has the credentials of an instance's role alone.

Like the real one with IMDSv2 enforced, it answers nobody without a token of its own.
"""

from __future__ import annotations

import json
import secrets
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

ADDRESS = "169.254.169.254"
ROLE = "instance"
CREDENTIALS = {
    "Code": "Success",
    "Type": "AWS-HMAC",
    "AccessKeyId": "ASIAINSTANCE",
    "SecretAccessKey": "of the instance",
    "Token": "of the instance",
    "LastUpdated": "2026-01-01T00:00:00Z",
    "Expiration": "2099-01-01T00:00:00Z",
}


class Metadata(BaseHTTPRequestHandler):
    """Answers one request."""

    tokens: ClassVar[set[str]] = set()

    def do_PUT(self) -> None:
        """Give out a token."""
        if self.path != "/latest/api/token" or "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
            self.send_error(400)
            return
        token = secrets.token_hex()
        self.tokens.add(token)
        self._answer(token)

    def do_GET(self) -> None:
        """Tell the role's name, or its credentials."""
        place = "/latest/meta-data/iam/security-credentials/"
        if self.headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            self.send_error(401)
        elif self.path in (place, place.rstrip("/")):
            self._answer(ROLE)
        elif self.path == f"{place}{ROLE}":
            self._answer(json.dumps(CREDENTIALS))
        else:
            self.send_error(404)

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        if self.command == "PUT":
            self.send_header("X-aws-ec2-metadata-token-ttl-seconds", "21600")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer((sys.argv[1], 80), Metadata).serve_forever()
