"""A connection to a model in Triton, over gRPC, with its errors in one line."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ..config import TritonSettings
from ..errors import ServingError, one_line
from .protocol import STATE, TOKEN_HEADER

# A server that was away for long is found again within a second or two, not within gRPC's two minutes.
CHANNEL = [("grpc.max_reconnect_backoff_ms", 1000), ("grpc.max_receive_message_length", -1)]
READY_SECONDS, LOOK_SECONDS = 600.0, 0.2
Self = TypeVar("Self", bound="Connection")


class Connection:
    """A connection to one model; may be used by several threads.

    Attributes:
        model: its name.
        serves: command that serves it.
    """

    model: str
    serves: str

    def __init__(self, settings: TritonSettings) -> None:
        """Find the server: the configured one, else the one started on this machine.

        Raises:
            ServingError: the certificate authority's file cannot be read, or gRPC rejects the address.
        """
        self.address = address(settings)
        self._timeout = settings.timeout
        token = settings.token
        self._headers = {TOKEN_HEADER: token.get_secret_value()} if token is not None else {}
        self._config: Mapping[str, Any] | None = None
        try:
            certificate = settings.tls_ca.read_bytes() if settings.tls and settings.tls_ca is not None else None
        except OSError as error:
            raise ServingError(f"RECSYS_TRITON_TLS_CA names {settings.tls_ca}: {error.strerror}") from error
        credentials = grpc.ssl_channel_credentials(certificate) if settings.tls else None
        self._client = triton.InferenceServerClient(self.address, creds=credentials, channel_args=CHANNEL)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def ready(self) -> bool:
        """Whether the server answers and has the model.

        Raises:
            ServingError: the server refuses the token.
        """
        try:
            return bool(self._client.is_model_ready(self.model, headers=self._headers, client_timeout=self._timeout))
        except InferenceServerException as error:
            if "UNAVAILABLE" in f"{error.status()}" or "DEADLINE" in f"{error.status()}":
                return False
            raise self._explained(error) from error

    def wait(self, seconds: float = READY_SECONDS) -> None:
        """Wait until the server answers and has the model.

        Raises:
            ServingError: this takes longer, or the server refuses the token.
        """
        deadline = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > deadline:
                raise ServingError(f"Triton at {self.address} is not ready after {seconds:.0f} s: see its log")
            time.sleep(LOOK_SECONDS)

    def model_config(self) -> Mapping[str, Any]:
        """Configuration of the model, read only once."""
        if self._config is None:
            try:
                answer = self._client.get_model_config(
                    self.model, headers=self._headers, as_json=True, client_timeout=self._timeout
                )
            except InferenceServerException as error:
                raise self._explained(error) from error
            self._config = answer["config"]
        return self._config

    def infer(self, inputs: Mapping[str, np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """Send one request.

        Args:
            inputs: input tensors by name.
            wanted: names of outputs.

        Raises:
            ServingError: the server cannot be reached, refuses, or answers too late.
        """
        tensors = []
        for name, value in inputs.items():
            tensors.append(triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype)))
            tensors[-1].set_data_from_numpy(value)
        try:
            answer = self._client.infer(
                self.model,
                tensors,
                outputs=[triton.InferRequestedOutput(name) for name in wanted],
                headers=self._headers,
                client_timeout=self._timeout,
            )
        except InferenceServerException as error:
            raise self._explained(error) from error
        return {name: answer.as_numpy(name) for name in wanted}

    def _explained(self, error: InferenceServerException) -> ServingError:
        status, reason = f"{error.status()}", one_line(error.message())
        where = f"Triton at {self.address}"
        if "DEADLINE_EXCEEDED" in status:
            return ServingError(
                f"{where} did not answer within {self._timeout} s: check its load and RECSYS_TRITON_TIMEOUT"
            )
        if "SSL" in reason or "certificate" in reason.lower() or "handshake" in reason.lower():
            return ServingError(
                f"{where} fails the TLS handshake ({reason[:200]}): check RECSYS_TRITON_TLS and RECSYS_TRITON_TLS_CA"
            )
        if "restricted" in reason:
            return ServingError(f"{where} refuses the call: set RECSYS_TRITON_TOKEN to the server's token")
        if "Request for unknown model" in reason:
            return ServingError(f"{where} has no model {self.model!r}: start it with '{self.serves}'")
        if "UNAVAILABLE" in status and "connect" in reason.lower():
            return ServingError(
                f"cannot reach {where}: is '{self.serves}' running? Check RECSYS_TRITON_HOST, _GRPC_PORT and _TLS"
            )
        if "UNAVAILABLE" in status:
            return ServingError(f"{where} is overloaded, starting or stopping ({reason}): try again in a moment")
        return ServingError(f"{where} answered: {reason}")


def ports(settings: TritonSettings) -> tuple[str, int]:
    """Host and port of the server's metrics, found like gRPC's by :func:`address`."""
    if settings.host is None and not ("metrics_port" in settings.model_fields_set and settings.metrics_port):
        state = _state(settings)
        if state is not None:
            return state["host"], state["metrics_port"]
    return settings.host or "127.0.0.1", settings.metrics_port


def _state(settings: TritonSettings) -> dict[str, Any] | None:
    """State file of our own server, if it can be read."""
    try:
        state = json.loads((Path(settings.repository) / STATE).read_text())
        return state if {"host", "grpc_port", "metrics_port"} <= state.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def address(settings: TritonSettings) -> str:
    """``host:port`` of the server's gRPC: the configured one, else our own server's, else this machine."""
    if settings.host is not None or ("grpc_port" in settings.model_fields_set and settings.grpc_port):
        return f"{settings.host or '127.0.0.1'}:{settings.grpc_port}"
    state = _state(settings)
    return f"{state['host']}:{state['grpc_port']}" if state is not None else f"127.0.0.1:{settings.grpc_port}"
