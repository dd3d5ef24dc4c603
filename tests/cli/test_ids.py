"""Ids that begin with a minus sign, on the command line as people type it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.support.commands import Outcome

RECSYS = Path(sys.executable).with_name("recsys")
SCHEMA = """
name: negative
columns:
- {name: user, side: user, kind: categorical, role: id}
- {name: item, side: item, kind: categorical, role: id}
- {name: time, side: time, kind: numeric}
"""
TINY = ("--epochs", "1", "--embedding-dim", "4", "--device", "cpu", "--no-refit")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the installed command as a process of its own."""

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([RECSYS, *args], cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture
def published(
    tmp_path: Path, use_server: redis.Redis, recsys: Callable[..., Outcome], request: pytest.FixtureRequest
) -> str:
    """Recommendations of users and items whose ids begin with a minus sign; the name of the first."""
    before = request.param
    rows = [f"{before}{row % 60 + 1},{before}{row * 7 % 40 + 1},{row}" for row in range(2000)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    for verb in (("data", "tabular", "log.csv", "--schema", "schema.yaml"), ("train", *TINY), ("batch",)):
        ended = recsys(*verb)
        assert ended.code == 0, ended
    return f"{before}1"


@pytest.mark.parametrize("published", ["-"], indirect=True)
def test_numbers_below_zero_are_taken_as_they_are(run: Run, published: str) -> None:
    for args in (("-1", "--json"), ("--json", "-1"), ("--json", "--", "-1")):
        ended = run("get", *args)
        assert ended.returncode == 0, ended
        found = json.loads(ended.stdout)
        assert (str(found["user"]), found["source"]) == ("-1", "model")
        assert len(found["items"]) == 20
        assert set(found["items"]) <= set(range(-40, 0))
    found = json.loads(run("get", "-1", "7", "-2", "--json").stdout)
    assert [(str(each["user"]), each["source"]) for each in found] == [
        ("-1", "model"),
        ("7", "popular"),
        ("-2", "model"),
    ]


@pytest.mark.parametrize("published", ["-anna"], indirect=True)
def test_texts_with_a_minus_sign_go_behind_two_of_them(run: Run, published: str) -> None:
    found = json.loads(run("get", "--json", "--", published, "-anna2").stdout)
    assert [(each["user"], each["source"]) for each in found] == [("-anna1", "model"), ("-anna2", "model")]
    refused = run("get", published)
    assert refused.returncode == 2
    said = " ".join(refused.stderr.replace("│", " ").split())
    assert "No such option: -anna1 (an id that begins so goes behind --)" in said


def test_an_event_takes_them_too(run: Run, use_server: redis.Redis) -> None:
    ended = run("event", "-5", "-17", "click")
    assert ended.returncode == 0, ended
    ((name, fields),) = use_server.xrange("events")
    assert name.decode() == ended.stdout.strip()
    assert (fields[b"user"], fields[b"item"], fields[b"type"]) == (b"-5", b"-17", b"click")
    assert run("event", "--", "-me", "-it", "view").returncode == 0
    assert use_server.xrevrange("events", count=1)[0][1][b"item"] == b"-it"


def test_recommend_asks_triton_for_them(run: Run) -> None:
    for args in (("-5", "3"), ("--grpc-port", "1", "-5"), ("--", "-anna")):
        ended = run("recommend", *args, "--host", "127.0.0.1") if args[0] != "--" else run("recommend", *args)
        assert ended.returncode == 1, ended
        assert "cannot reach Triton" in ended.stderr


@pytest.mark.parametrize("verb", [("get",), ("event", "1", "2", "click"), ("recommend",)])
def test_options_stay_options(run: Run, verb: tuple[str, ...]) -> None:
    helped = run(*verb[:1], "--help")
    assert helped.returncode == 0
    assert "goes behind --" in " ".join(helped.stdout.replace("│", " ").split())
    for wrong, close in (("--jsno", "; did you mean --json?"), ("-h", ""), ("-x", "")):
        refused = run(verb[0], wrong, *(verb[1:] or ("1",)))
        assert refused.returncode == 2, refused
        said = " ".join(refused.stderr.replace("│", " ").split())
        assert f"No such option: {wrong}{close}" in said
    assert "Missing argument" in run(verb[0]).stderr
    port = "--grpc-port" if verb == ("recommend",) else "--port"
    assert "error: setting" in run(verb[0], *(verb[1:] or ("1",)), port, "-5").stderr
