"""One moto and one deployment in it for all tests that ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from archive import pack_playbooks
from aws import TERRAFORM, Terraform, inventory, moto, variables
from cloud import IMAGE, Keys, make_keys
from xdist.scheduler import LoadScopeScheduling


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
    """What takes longest comes first, beside it what computes while Terraform waits for AWS, and whoever destroys a
    shared deployment last."""
    items.sort(
        key=lambda item: (
            item.path.stem != "test_deployment",
            item.path.stem != "test_redis_enterprise",
            item.name == "test_destroy_leaves_nothing",
        )
    )


class ByDeployment(LoadScopeScheduling):
    """Workers of pytest-xdist take whole files; those that share Terraform's deployment go together."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return file.replace("test_policy", "test_terraform")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByDeployment:
    return ByDeployment(config, log)
