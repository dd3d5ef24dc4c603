"""Access to the tables' Redis: settings win over ``ps.json``, so that one file serves here and in the cloud."""

from __future__ import annotations

from pathlib import Path

from ..config import Settings
from ..errors import ConfigError
from .nodes import Access, Address
from .ps_json import VolatileDatabase

DEFAULT_PORT = 6379


def access_of(config: VolatileDatabase, settings: Settings) -> Access:
    """Addresses, login and TLS of the tables' Redis.

    Raises:
        ConfigError: neither settings nor file name an address, or one cannot be read.
    """
    redis = settings.redis
    if redis.host is not None:
        addresses: tuple[Address, ...] = ((redis.host, redis.port),)
    else:
        addresses = tuple(_address(text) for text in config.address.split(",") if text.strip())
    if not addresses:
        raise ConfigError(
            "ps.json has an empty volatile_db.address: set RECSYS_REDIS_HOST, or start with 'recsys dlrm'"
        )
    password = redis.password.get_secret_value() if redis.password is not None else config.password
    authority = f"{redis.tls_ca or config.tls_ca_certificate}"
    tls = None
    if redis.tls or config.enable_tls:
        files = {
            "ssl_ca_path" if Path(authority).is_dir() else "ssl_ca_certs": authority,
            "ssl_certfile": config.tls_client_certificate,
            "ssl_keyfile": config.tls_client_key,
        }
        tls = tuple((name, file) for name, file in files.items() if file)
        for _, file in tls:
            if not Path(file).exists():
                raise ConfigError(f"there is no {file}, which RECSYS_REDIS_TLS_CA or ps.json's volatile_db names")
    return Access(
        addresses,
        redis.username or config.user_name or None,
        password or None,
        tls,
        settings.lookup.timeout,
        settings.lookup.pause,
    )


def _address(text: str) -> Address:
    host, _, port = text.strip().partition(":")
    try:
        return (host, int(port) if port else DEFAULT_PORT)
    except ValueError:
        raise ConfigError(f"volatile_db.address holds {text!r}, which is not host:port") from None
