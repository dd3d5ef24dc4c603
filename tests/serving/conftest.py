"""One real Triton for all tests that do not harm it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tritons import WHOLE, settings_in, triton_of

from redis_recsys.config import TritonSettings
from redis_recsys.triton.server import EmbeddedTriton


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedTriton, TritonSettings]]:
    """One model with two instances; and the settings with which a client finds it."""
    settings = settings_in(tmp_path_factory.mktemp("triton"), instances=2)
    with triton_of(settings, WHOLE) as server:
        yield server, settings
