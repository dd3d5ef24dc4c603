"""One-line explanations of redis-py's errors."""

from __future__ import annotations

import redis

from ..errors import one_line


def explain_redis(error: redis.RedisError, where: str, timeout: float | None) -> str:
    """Explain an error in one line: the address, the reason, and the remedy.

    Args:
        error: error from redis-py.
        where: the server, such as ``Redis at localhost:6379``.
        timeout: seconds that a command may take.
    """
    message = one_line(error)
    # A long message is cut to its end: that of a failed pipeline begins with the command.
    reason = message if len(message) <= 200 else f"... {message[-200:].partition(' ')[2]}"
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return f"{where} is still reading its data from disk: try again in a moment"
    if isinstance(error, redis.exceptions.NoPermissionError):
        return f"{where} does not allow this user to do that ({reason}): widen its ACL"
    if isinstance(error, redis.AuthenticationError):
        return f"{where} refuses the login ({reason}): set RECSYS_REDIS_USERNAME and RECSYS_REDIS_PASSWORD"
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return f"{where} is out of memory: raise its maxmemory (of the embedded Redis: RECSYS_REDIS_MAX_MEMORY)"
    if isinstance(error, redis.ReadOnlyError):
        return f"{where} is a read-only replica: set RECSYS_REDIS_HOST to the primary"
    if isinstance(error, redis.TimeoutError):
        return f"{where} did not answer within {timeout} s: check its load, RECSYS_REDIS_TIMEOUT and RECSYS_REDIS_TLS"
    if isinstance(error, redis.ConnectionError) and ("SSL" in reason or "certificate" in reason):
        return f"{where} fails the TLS handshake ({reason}): check RECSYS_REDIS_TLS and RECSYS_REDIS_TLS_CA"
    if isinstance(error, redis.ConnectionError):
        return f"cannot reach {where} ({reason}): is it running? Check RECSYS_REDIS_HOST, _PORT and _TLS"
    if "MISCONF" in reason:
        return f"{where} cannot write to its disk ({reason}): free some space there"
    return f"{where} answered: {reason}"
