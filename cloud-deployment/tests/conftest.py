"""One moto and one deployment in it for all tests that ask for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from archive import pack_playbooks
from aws import TERRAFORM, Terraform, inventory, moto, variables
from cloud import IMAGE, Keys, make_keys


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture(scope="session")
def untouched(endpoint: str) -> set[str]:
    """What exists before anything is deployed."""
    return inventory(endpoint)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Of whoever deploys."""
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def deployed(
    endpoint: str, untouched: set[str], keys: Keys, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Terraform]:
    """The deployment in moto, with two of Triton's machines."""
    folder = tmp_path_factory.mktemp("deployed")
    playbooks = folder / "ansible.tar.gz"
    pack_playbooks(playbooks)
    given = variables(
        folder,
        playbooks=str(playbooks),
        ssh_public_key=keys.ssh_public,
        vpn_peers=[{"name": "laptop", "public_key": keys.wireguard_public, "address": "10.99.0.2"}],
        triton_image=IMAGE,
        triton_start_size=2,
        triton_max_size=2,
    )
    with Terraform(TERRAFORM, endpoint, given) as terraform:
        terraform.apply()
        yield terraform


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The deployment is shared: whoever destroys it comes last."""
    items.sort(key=lambda item: item.name == "test_destroy_leaves_nothing")
