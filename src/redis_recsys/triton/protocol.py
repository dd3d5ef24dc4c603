"""Names that a Triton of ours and its clients agree on."""

from __future__ import annotations

STATE = "server.json"  # file in the server's folder, with the ports where clients find it
TOKEN = "token"  # name of the header, which gRPC clients send with the prefix below
TOKEN_HEADER = f"triton-grpc-protocol-{TOKEN}"
