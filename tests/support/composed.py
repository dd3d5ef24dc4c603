"""The services of a compose file with the services they extend, as `docker compose config` would show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def services(path: Path) -> dict[str, dict[str, Any]]:
    """Service -> its definition.

    Args:
        path: path of the compose file.
    """
    return {name: _extended(service, path) for name, service in yaml.safe_load(path.read_text())["services"].items()}


def _extended(service: dict[str, Any], path: Path) -> dict[str, Any]:
    if "extends" not in service:
        return service
    own = {name: value for name, value in service.items() if name != "extends"}
    file = path.parent / service["extends"]["file"]
    return _merged(services(file)[service["extends"]["service"]], own)


def _merged(base: Any, own: Any) -> Any:
    if isinstance(base, dict) and isinstance(own, dict):
        return base | {name: _merged(base[name], value) if name in base else value for name, value in own.items()}
    return base + own if isinstance(base, list) and isinstance(own, list) else own
