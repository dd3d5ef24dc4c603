"""Documents that agree with the project, and rules for its files."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import redis
import typer.main
from redis.cluster import RedisCluster

from redis_recsys.cli.main import app
from redis_recsys.config import DeploySettings, OnlineSettings, RedisSettings, Settings
from redis_recsys.embedded.redis_binary import find_redis_server
from redis_recsys.embedded.redis_cluster import PORTS
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.errors import StoreError
from redis_recsys.online.deploy import deploy
from redis_recsys.online.partition import stages_of
from redis_recsys.online.runner import Runner
from redis_recsys.store import vectors
from redis_recsys.store.connection import connect
from redis_recsys.store.events import publish
from redis_recsys.store.recommendations import RecommendationsWriter, get_many
from tests.support import composed
from tests.support.paths import ROOT
from tests.support.planted import Trained

PAGES = ROOT / "docs"
SECURITY = PAGES / "operations" / "security.md"
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *PAGES.rglob("*.md")]
NOTEBOOKS = sorted(ROOT.glob("*/*.ipynb"))
COMPOSE = sorted(ROOT.glob("*/docker-compose*.yml"))
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def shell_lines(text: str) -> list[str]:
    """Commands in the ```bash blocks of a document."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def command_line() -> Any:
    return typer.main.get_command(app)


@pytest.mark.parametrize("document", sorted(set(DOCUMENTS)), ids=name_of)
def test_every_recsys_command_in_the_documents_exists_with_its_options(document: Path, command_line: Any) -> None:
    for line in shell_lines(document.read_text()):
        words = shlex.split(line)
        if "recsys" not in words:
            continue
        command = command_line
        words = words[words.index("recsys") + 1 :]
        while hasattr(command, "commands"):
            assert words, line
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        if command.context_settings.get("ignore_unknown_options"):  # it hands them on
            continue
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert used <= known, line


@pytest.mark.parametrize("document", sorted(set(DOCUMENTS)), ids=name_of)
def test_every_make_target_in_the_documents_exists(document: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = document.read_text()
    used = re.findall(r"(?:^|`)make ([a-z-]+)", "\n".join(shell_lines(text)) + text, re.MULTILINE)
    assert set(used) <= set(targets)


@pytest.mark.parametrize("document", [*sorted(set(DOCUMENTS)), *NOTEBOOKS], ids=name_of)
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    text = document.read_text()
    if document.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for link in LINK.findall(text):
        if "://" not in link and "../actions/" not in link:  # a page beside the repository's files
            assert (document.parent / link).exists(), link


def headings(document: Path) -> set[str]:
    """Anchors of a document, as they are made where the repository is shown and on the site."""
    lines = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("document", sorted(set(DOCUMENTS)), ids=name_of)
def test_every_link_into_a_document_leads_to_one_of_its_headings(document: Path) -> None:
    for path, anchor in re.findall(r"\]\(([^)\s:]*)#([^)\s]+)\)", document.read_text()):
        target = document.parent / path if path else document
        if target.suffix == ".md" and target.name != "settings.md":  # whose headings are generated
            assert anchor in headings(target), f"{path}#{anchor}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name_of)
def test_no_function_in_a_notebook_is_longer_than_ten_lines(notebook: Path) -> None:
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    assert (node.end_lineno or 0) - node.lineno < 10, node.name


@pytest.mark.parametrize("path", COMPOSE, ids=name_of)
def test_containers_have_no_privileges_and_listen_on_this_machine_only(path: Path) -> None:
    for name, service in composed.services(path).items():
        assert not service.get("privileged"), name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service.get("network_mode") != "host", name
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name


@pytest.mark.parametrize("path", COMPOSE, ids=name_of)
def test_no_password_is_written_into_a_compose_file(path: Path) -> None:
    for service in composed.services(path).values():
        for name, value in service.get("environment", {}).items():
            if name == "GF_SECURITY_ADMIN_PASSWORD":  # needed only in a profile: its container refuses to start without
                assert value == "${GRAFANA_PASSWORD:-}"
            elif name.endswith("PASSWORD") or name == "REDISCLI_AUTH":
                assert value.startswith("${REDIS_PASSWORD:?"), name


@pytest.mark.parametrize("path", COMPOSE, ids=name_of)
def test_every_variable_of_a_compose_file_is_explained_on_the_page_of_its_example(path: Path) -> None:
    services = composed.services(path)  # other services of the shared file do not belong to this example
    used = set(re.findall(r"\$\{([A-Z_]+)", path.read_text() + json.dumps(services)))
    built = {name for each in services.values() for name in each.get("build", {}).get("args", {}) if "PIP" in name}
    assert used
    assert used | built <= set(re.findall(r"`([A-Z_]+)`", (PAGES / "examples" / f"{path.parent.name}.md").read_text()))


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/docker-compose-cloud.yml")), ids=name_of)
def test_the_example_of_an_env_file_has_everything_that_the_cloud_compose_file_requires(path: Path) -> None:
    required = set(re.findall(r"\$\{([A-Z_]+):\?", path.read_text()))
    offered = re.findall(r"^([A-Z_]+)=", (path.parent / ".env.example").read_text(), re.MULTILINE)
    assert required == {"REDIS_HOST", "REDIS_PASSWORD", "TRITON_TOKEN"}
    assert required <= set(offered)


REDIS_CLI = f"""#!{sys.executable} -IS
import os, socket, sys
_, _, _, host, _, port, *command = sys.argv
lines = ["AUTH " + os.environ["REDISCLI_AUTH"], " ".join(command), "QUIT", ""]
with socket.create_connection((host, int(port))) as server:
    server.sendall("\\r\\n".join(lines).encode())
    print(*server.makefile().read().splitlines()[1:-1], sep="\\n")
"""


def test_the_redis_nodes_of_the_large_scale_example_differ_in_their_port_alone_and_hold_no_secret() -> None:
    texts = [path.read_text() for path in sorted(ROOT.glob("large-scale-recsys/redis-confs/redis-*.conf"))]
    ports = [re.findall(r"^port (\d+)$", text, re.MULTILINE) for text in texts]
    assert ports == [["6373"], ["6374"], ["6375"]]
    assert len({re.sub(r"637\d|Node \d", "", text) for text in texts}) == 1
    assert not re.search(r"requirepass|masterauth|protected-mode no|nopass", texts[0])
    assert {"cluster-enabled yes", "appendonly yes", "protected-mode yes"} <= set(texts[0].splitlines())


def test_the_redis_nodes_of_the_large_scale_example_become_a_cluster_and_stay_one(tmp_path: Path) -> None:
    confs = ROOT / "large-scale-recsys" / "redis-confs"
    ports = random.sample(PORTS, 3)
    (tmp_path / "password.conf").write_text('requirepass "secret"\nmasterauth "secret"\n')
    (tmp_path / "redis-cli").write_text(REDIS_CLI)
    (tmp_path / "redis-cli").chmod(0o755)
    nodes = [f"127.0.0.1:{port}" for port in ports]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "REDISCLI_AUTH": "secret"}
    with contextlib.ExitStack() as stack:
        for number, port in enumerate(ports, start=1):
            folder = tmp_path / str(number)
            folder.mkdir()
            text = (confs / f"redis-{number}.conf").read_text().replace("/usr/local/etc/redis", str(tmp_path))
            text = text.replace(f"port {6372 + number}", f"bind 127.0.0.1\nport {port}").replace("/data", str(folder))
            (folder / "redis.conf").write_text(text)
            server = subprocess.Popen([find_redis_server(), folder / "redis.conf"], stdout=subprocess.DEVNULL)
            stack.callback(server.wait)
            stack.callback(server.kill)
        for value in (b"first", b"second"):
            form = ["sh", str(confs / "form-cluster.sh"), *nodes]
            formed = subprocess.run(form, env=environment, capture_output=True, text=True, timeout=60)
            assert formed.stdout == "3 nodes form a cluster\n", formed.stderr
            with RedisCluster("127.0.0.1", ports[0], password="secret") as client:
                assert client.get("key") == (None if value == b"first" else b"first")
                client.set("key", value)


def stages() -> dict[str, str]:
    """Target of the Dockerfile -> its lines."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", (ROOT / "docker" / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    return {name: f"FROM {base}{text}" for base, name, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


@pytest.mark.parametrize("target", ["jupyter", "merlin", "serving"])
def test_images_run_as_a_user_other_than_root(target: str) -> None:
    text = stages()[target]
    if target == "merlin":
        assert text.startswith("FROM jupyter")
        text = stages()["jupyter"] + text
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "recsys"


def test_images_install_pinned_versions_alone() -> None:
    installs = re.findall(r"pip install (?:-q )?(.*)", (ROOT / "docker" / "Dockerfile").read_text())
    assert len(installs) == 6
    assert all(re.match(r"-c constraints(-serving)?\.txt |--no-deps ", each) for each in installs)


@pytest.mark.parametrize("path", COMPOSE, ids=name_of)
def test_every_target_that_a_compose_file_builds_exists(path: Path) -> None:
    built = {each["build"]["target"] for each in composed.services(path).values() if "build" in each}
    assert built
    assert built <= set(stages())


@pytest.mark.parametrize("path", COMPOSE, ids=name_of)
def test_every_service_builds_its_image_so_that_each_can_be_started_alone(path: Path) -> None:
    own = {name: each for name, each in composed.services(path).items() if each["image"].startswith("redis-recsys/")}
    assert {"check", "jupyter"} <= set(own)
    assert all("build" in each for each in own.values())


def test_every_installed_version_is_pinned_and_comes_from_the_package_index() -> None:
    texts = [(ROOT / name).read_text() for name in ("constraints.txt", "src/redis_recsys/triton/requirements.txt")]
    lines = [line for text in texts for line in text.splitlines() if not line.startswith("#")]
    merlin = (ROOT / "src" / "redis_recsys" / "trainers" / "merlin" / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines + merlin)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    project = (ROOT / "pyproject.toml").read_text()
    lists = project.split("[project.scripts]")[0].split("dependencies = [", 1)[1]
    wanted = {name.lower() for name in re.findall(r'"([A-Za-z0-9-]+)(?:\[[^]]*\])?(?:[><=]|")', lists)}
    assert wanted - {"redis-recsys"} <= pinned


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text().splitlines()


def proposed_users() -> dict[str, list[str]]:
    """User -> words of the command that makes it."""
    lines = SECURITY.read_text().splitlines()
    return {line.split()[2]: line.split() for line in lines if line.startswith("ACL SETUSER")}


def login(server: EmbeddedRedis, name: str) -> RedisSettings:
    """Connection settings of a proposed user."""
    return RedisSettings.model_validate(
        {"host": server.host, "port": server.port, "username": name, "password": "CHANGE_ME"}
    )


def test_the_redis_users_proposed_for_batches_may_do_what_they_need_and_no_more(tmp_path: Path) -> None:
    ids, scores = np.array([[1, 2]]), np.array([[0.9, 0.8]], np.float32)
    with EmbeddedRedis(tmp_path) as server:
        with redis.Redis(port=server.port, password=server.password) as owner:
            for words in proposed_users().values():
                owner.execute_command(*words)
        for run in ("first", "second"):
            with (
                connect(login(server, "batch")) as client,
                RecommendationsWriter.begin(client, run, grace=60) as writer,
            ):
                writer.write(np.array([7]), ids, scores, np.array([2]))
                writer.publish(np.array([1, 2]), np.array([5, 4]))
        with connect(login(server, "reader")) as client:
            assert [found.source for found in get_many(client, [7, 8])] == ["model", "popular"]
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.delete("recs:live")
            with pytest.raises(StoreError, match="widen its ACL"):
                RecommendationsWriter.begin(client, "third", grace=60)


def test_the_redis_users_proposed_for_serving_and_for_events_may_do_that_and_no_more(
    tmp_path: Path, trained: Trained
) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server:
        settings = Settings(
            data=tmp_path,
            redis=login(server, "server"),
            deploy=DeploySettings(models=tmp_path / "deployed", feast=False),
            online=OnlineSettings(retrieval="redis", items="packed", timeout=5.0),
        )
        with redis.Redis(port=server.port, password=server.password) as owner:
            for words in proposed_users().values():
                owner.execute_command(*words)
            generation = deploy(trained.bundle, owner, settings).generation
            vectors.put(owner, generation, 1, trained.bundle.item_embeddings[1], b"{}")
        for retrieval in ("redis", "local"):
            online = settings.online.model_copy(update={"retrieval": retrieval})
            runner = Runner(tuple(stages_of(online)), settings.model_copy(update={"online": online}))
            try:
                runner.follower.look()
                answer = runner({"user_id": next(trained.bundle.users())[0].raw_ids[:3, None]})
            finally:
                runner.close()
            assert not answer["degraded"].any()
            assert (answer["scores"][:, 0] > 0).all()
        with connect(login(server, "sender")) as sender:
            publish(sender, 1, 2, "click")
            with pytest.raises(redis.exceptions.NoPermissionError):
                sender.get("deploy:live")
        with connect(login(server, "server")) as reader:
            with pytest.raises(StoreError, match="widen its ACL"):
                publish(reader, 1, 2, "click")
            with pytest.raises(StoreError, match="widen its ACL"):
                vectors.remove(reader, generation, 1)
