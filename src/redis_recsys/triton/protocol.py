"""Names that our own Triton and its clients agree on."""

from __future__ import annotations

STATE = "server.json"  # file in the server's folder, with the ports for clients
TOKEN = "token"  # name of the header, which gRPC clients send with the prefix below
TOKEN_HEADER = f"triton-grpc-protocol-{TOKEN}"
