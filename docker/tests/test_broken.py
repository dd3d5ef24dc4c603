"""What is wrong is said in one line, by Docker or by the container that looks first, and `up` ends with an error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine import CommandError, Engine
from stack import Stack, container

MORE_MEMORY = "services: {check: {command: recsys check --memory 100000}}"  # than there is
OTHER_IMAGE = "services: {jupyter-gpu: {image: redis-recsys/jupyter}}"  # than the large one with CUDA
OTHER_REDIS = "172.17.0.1"  # as containers see this machine


@pytest.fixture
def stack(engine: Engine) -> Iterator[Stack]:
    with Stack(engine, "offline-batch-recsys") as stack:
        yield stack


def complaint(stack: Stack, command: str) -> str:
    with pytest.raises(CommandError) as failed:
        stack.compose(command)
    return str(failed.value)


@pytest.mark.parametrize("port", [6379, 8888])
def test_a_port_is_taken(stack: Stack, port: int) -> None:
    with container(stack.engine, f"-p 127.0.0.1:{port}:{port}", "sleep 600"):
        said = complaint(stack, "up --detach")
    assert f"127.0.0.1:{port}" in said
    assert "already" in said


def test_there_is_no_gpu(stack: Stack) -> None:
    if "nvidia" in stack.engine.run("docker info"):
        pytest.skip("there is a GPU")
    stack.engine.run(f"echo '{OTHER_IMAGE}' > {stack.folder}/more.yml")
    said = complaint(stack, "-f more.yml --profile gpu up --detach")
    assert 'could not select device driver "nvidia"' in said


def test_there_is_too_little_memory(stack: Stack) -> None:
    stack.engine.run(f"echo '{MORE_MEMORY}' > {stack.folder}/more.yml")
    said = complaint(stack, "-f more.yml up")
    assert "100000 GiB are needed" in said
    assert 'service "check" didn\'t complete successfully' in said
    assert stack.services()["jupyter"]["State"] == "created"  # and not started


def test_the_password_of_a_redis_elsewhere_is_wrong(engine: Engine) -> None:
    settings = {"REDIS_HOST": OTHER_REDIS, "REDIS_PORT": "6390", "REDIS_TLS": "false", "TRITON_TOKEN": "token"}
    with (
        Stack(engine, "multi-stage", "docker-compose-cloud.yml", **settings) as stack,
        container(engine, f"-p {OTHER_REDIS}:6390:6379", "redis-server --requirepass another"),
    ):
        said = complaint(stack, "up")
    assert f"Redis at {OTHER_REDIS}:6390 refuses the login" in said
    assert 'service "check" didn\'t complete successfully' in said


def test_there_is_no_password(stack: Stack) -> None:
    stack.engine.run(f"rm {stack.folder}/.env")
    try:
        assert "set it in .env, see README.md" in complaint(stack, "up --detach")
    finally:
        stack.__enter__()
