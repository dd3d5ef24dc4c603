"""MovieLens through a real HTTP server and through pip, with hand-made files in the published layouts."""

from __future__ import annotations

import hashlib
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest

from redis_recsys.data import movielens
from redis_recsys.data.download import download
from redis_recsys.dataset.schema import Schema
from redis_recsys.errors import ConfigError, DataError

NOWHERE = "http://127.0.0.1:9"  # the discard port: refused at once
FLAGS = {name: "|".join("1" if i in on else "0" for i in range(19)) for name, on in
         {"none": {0}, "drama_musical": {8, 12}, "animation": {3, 4}}.items()}  # fmt: skip
FLAG_FILES = {
    "u.data": "7\t2\t5\t881250949\n8\t1\t2\t881250950\n8\t3\t3\t881250951\n",
    "u.item": f"1|unknown||||{FLAGS['none']}\n"
    f"2|Café Society, The (1995)|01-Feb-1996||http://x|{FLAGS['drama_musical']}\n"
    f'3|Big "Trip", The (1998) (V)|01-Jan-1998||http://x|{FLAGS["animation"]}\n',
    "u.user": "7|24|M|technician|85711\n8|53|F|other|v3n4p\n",
}
DAT_FILES = {
    "ratings.dat": "7::2::5::881250949\n8::1::2::881250950\n",
    "movies.dat": "1::Alone: Part 2 (1995)::Drama\n2::Café Society (1961)::Children's|Comedy\n",
    "users.dat": "7::M::25::7::55117\n8::F::1::10::02460\n",
}
CSV_FILES = {
    "ratings.csv": "userId,movieId,rating,timestamp\n7,2,4.5,881250949\n8,1,0.5,881250950\n",
    "movies.csv": 'movieId,title,genres\n1,"Café, The (2006)",Drama|IMAX\n'
    '2,"Say ""Hi"" (2006–2007)",(no genres listed)\n',
}
RECBOLE_FILES = {
    "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + FLAG_FILES["u.data"],
    "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tunkonwn\tunkonwn\tunknown\n2\tCafé Society, The\t1995\tDrama Musical\n"
    '3\tBig "Trip", The (1998)\tV\tAnimation Children\'s\n',
    "ml-100k.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    "7\t24\tM\ttechnician\t85711\n8\t53\tF\tother\tv3n4p\n",
}


class Host:
    """A web server for zips; ``cut`` makes it hang up after so many bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: dict[str, bytes] = {}
        self.asked = 0
        self.cut: int | None = None
        self.together: threading.Barrier | None = None  # where requests meet when half is sent
        self._monkeypatch = monkeypatch
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked += 1
                content = host.files.get(self.path.lstrip("/"))
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if host.together is not None:
                    self.wfile.write(content[: len(content) // 2])
                    host.together.wait()
                    content = content[len(content) // 2 :]
                self.wfile.write(content[: host.cut])

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def publish(self, name: str, texts: dict[str, str], encoding: str = "utf-8") -> None:
        """Serve a zip and make its checksum the published one."""
        release = movielens.RELEASES[name]
        path = Path(f"ml-{name}.zip")
        with zipfile.ZipFile(path, "w") as archive:
            for file, text in texts.items():
                archive.writestr(f"{release.folder}/{file}", text.encode(encoding))
        self.files[path.name] = path.read_bytes()
        if release.md5:
            published = replace(release, md5=hashlib.md5(self.files[path.name]).hexdigest())
            self._monkeypatch.setitem(movielens.RELEASES, name, published)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    (tmp_path / "server").mkdir()
    monkeypatch.chdir(tmp_path / "server")
    host = Host(monkeypatch)
    thread = threading.Thread(target=host.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield host
    host.server.shutdown()
    host.server.server_close()
    thread.join()


@pytest.fixture
def fetched(host: Host, tmp_path: Path) -> Callable[..., Path]:
    def fetch(name: str, **options: object) -> Path:
        movielens.fetch(tmp_path / "raw", name, tmp_path / "cache", host=host.url, **options)  # type: ignore[arg-type]
        return tmp_path / "raw"

    return fetch


def tables(raw: Path) -> dict[str, list[tuple]]:
    return {file.stem: pl.read_parquet(file).rows() for file in sorted(raw.rglob("*.parquet"))}


def test_100k_has_people_and_movies_with_years_and_genres(host: Host, fetched: Callable[..., Path]) -> None:
    host.publish("100k", FLAG_FILES, "latin-1")
    raw = fetched("100k")
    assert tables(raw) == {
        "part-0": [(7, 2, 881250949), (8, 1, 881250950), (8, 3, 881250951)],
        "users": [(7, 24.0, "M", "technician", "8"), (8, 53.0, "F", "other", "V")],
        "items": [
            (1, "unknown", None, []),
            (2, "Café Society, The (1995)", 1995, ["Drama", "Musical"]),
            (3, 'Big "Trip", The (1998) (V)', 1998, ["Animation", "Children's"]),
        ],
    }
    schema = Schema.load(raw / "schema.yaml")
    assert schema.target is None
    assert schema.history is not None
    assert [c.name for c in schema.numeric("user")] == ["age"]


def test_the_packaged_copy_gives_the_same_tables_as_the_published_zip(
    host: Host, fetched: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.publish("100k", FLAG_FILES, "latin-1")
    packaged = tmp_path / "cache2" / "ml-100k-recbole"
    packaged.mkdir(parents=True)
    for name, text in RECBOLE_FILES.items():
        (packaged / name).write_text(text)
        monkeypatch.setitem(movielens.RECBOLE_FILES, name, hashlib.sha256(text.encode()).hexdigest())
    movielens.fetch(tmp_path / "raw2", "100k", tmp_path / "cache2", host=NOWHERE)
    assert tables(tmp_path / "raw2") == tables(fetched("100k"))


def test_ratings_from_a_threshold_on_become_the_clicks(host: Host, fetched: Callable[..., Path]) -> None:
    host.publish("100k", FLAG_FILES, "latin-1")
    raw = fetched("100k", positive_from=4.0)
    target = Schema.load(raw / "schema.yaml").target
    assert target is not None
    assert (target.name, target.positive_from) == ("rating", 4.0)
    assert pl.read_parquet(raw / "interactions")["rating"].to_list() == [5.0, 2.0, 3.0]


def test_1m_and_10m_are_split_at_double_colons(host: Host, fetched: Callable[..., Path]) -> None:
    movies = [(1, "Alone: Part 2 (1995)", 1995, ["Drama"]), (2, "Café Society (1961)", 1961, ["Children's", "Comedy"])]
    host.publish("1m", DAT_FILES, "latin-1")
    assert tables(fetched("1m")) == {
        "part-0": [(7, 2, 881250949), (8, 1, 881250950)],
        "users": [(7, 25.0, "M", "7", "5"), (8, 1.0, "F", "10", "0")],
        "items": movies,
    }
    host.publish("10m", {name: DAT_FILES[name] for name in ("ratings.dat", "movies.dat")})
    assert tables(fetched("10m")) == {"part-0": [(7, 2, 881250949), (8, 1, 881250950)], "items": movies}


@pytest.mark.parametrize("name", ["20m", "25m", "32m", "latest-small"])
def test_newer_releases_are_csv_without_people(name: str, host: Host, fetched: Callable[..., Path]) -> None:
    host.publish(name, CSV_FILES)
    raw = fetched(name)
    assert tables(raw) == {
        "part-0": [(7, 2, 881250949), (8, 1, 881250950)],
        "items": [(1, "Café, The (2006)", 2006, ["Drama", "IMAX"]), (2, 'Say "Hi" (2006–2007)', 2006, [])],
    }
    assert [c.name for c in Schema.load(raw / "schema.yaml").features("user")] == ["user_id", "recent_items"]


def test_a_download_is_kept_and_a_damaged_one_is_replaced(
    host: Host, fetched: Callable[..., Path], tmp_path: Path
) -> None:
    host.publish("25m", CSV_FILES)
    fetched("25m")
    fetched("25m")
    assert host.asked == 1
    (tmp_path / "cache" / "ml-25m.zip").write_bytes(b"damaged")
    fetched("25m")
    assert host.asked == 2


def test_a_cut_download_leaves_nothing_visible_and_starts_over(
    host: Host, fetched: Callable[..., Path], tmp_path: Path
) -> None:
    host.publish("latest-small", CSV_FILES)
    host.cut = 50
    with pytest.raises(DataError, match=r"cannot download .*ml-latest-small\.zip: .*\(50 bytes read, .*try again$"):
        fetched("latest-small")
    assert not (tmp_path / "raw").exists()
    assert not (tmp_path / "cache" / "ml-latest-small.zip").exists()
    host.cut = None
    assert len(tables(fetched("latest-small"))["items"]) == 2


def test_a_download_with_another_checksum_is_refused(host: Host, fetched: Callable[..., Path], tmp_path: Path) -> None:
    host.publish("25m", CSV_FILES)
    host.files["ml-25m.zip"] += b"altered"
    with pytest.raises(DataError, match="published checksum"):
        fetched("25m")
    assert list((tmp_path / "cache").iterdir()) == []
    assert not (tmp_path / "raw").exists()


def test_a_zip_that_is_not_movielens_is_named(host: Host, fetched: Callable[..., Path]) -> None:
    host.publish("latest-small", {"links.csv": "x\n"})
    with pytest.raises(DataError, match=r"ml-latest-small\.zip is damaged or not MovieLens"):
        fetched("latest-small")
    host.publish("latest-small", CSV_FILES | {"ratings.csv": "userId,movieId,rating,timestamp\nseven,2,5,881250949\n"})
    (Path("../cache") / "ml-latest-small.zip").unlink()
    with pytest.raises(DataError, match="not laid out as expected"):
        fetched("latest-small")


def test_a_damaged_packaged_copy_is_not_used(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = tmp_path / "cache" / "ml-100k-recbole"
    packaged.mkdir(parents=True)
    for name, text in RECBOLE_FILES.items():
        (packaged / name).write_text(text)  # not what the package holds
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataError, match="neither from GroupLens nor inside the Python package"):
        movielens.fetch(tmp_path / "raw", "100k", tmp_path / "cache", host=NOWHERE)
    assert not (tmp_path / "raw").exists()


def test_an_unknown_release_and_an_unreachable_host_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose one of 100k"):
        movielens.fetch(tmp_path / "raw", "5k", tmp_path / "cache")
    with pytest.raises(DataError, match=r"cannot download http://127.0.0.1:9/ml-1m\.zip"):
        movielens.fetch(tmp_path / "raw", "1m", tmp_path / "cache", host=NOWHERE)


def test_without_the_publisher_pip_brings_100k(tmp_path: Path) -> None:
    try:
        movielens.fetch(tmp_path / "raw", "100k", tmp_path / "cache", host=NOWHERE)
    except DataError as error:
        pytest.skip(f"no package index here: {error}")
    rows = tables(tmp_path / "raw")
    assert (len(rows["part-0"]), len(rows["users"]), len(rows["items"])) == (100_000, 943, 1_682)
    assert rows["items"][0] == (1, "Toy Story (1995)", 1995, ["Animation", "Children's", "Comedy"])
    assert (196, 242, 881250949) in rows["part-0"]


def test_a_server_that_refuses_or_hangs_is_told_in_one_line(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redis_recsys.data.download.TIMEOUT", 0.2)
    with pytest.raises(DataError, match=r"^cannot download http.*/nothing: 404 .*; check the network and try again$"):
        download(f"{host.url}/nothing", tmp_path / "file")
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        url = f"http://127.0.0.1:{hangs.getsockname()[1]}/file"
        with pytest.raises(DataError, match=rf"^cannot download {url}: timed out; check the network and try again$"):
            download(url, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_downloaded_file_is_readable_as_others_are_and_a_link_to_it_stays(host: Host, tmp_path: Path) -> None:
    host.files["file"] = b"content"
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    download(f"{host.url}/file", tmp_path / "link")
    (tmp_path / "like").touch()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"content"
    assert (tmp_path / "there" / "file").stat().st_mode == (tmp_path / "like").stat().st_mode


def test_two_that_fetch_the_same_at_once_both_get_it_whole(tmp_path: Path, host: Host) -> None:
    """Each download waits in the server until the other has begun, so that they overlap."""
    host.files["file"] = content = bytes(range(256)) * 20_000
    host.together = threading.Barrier(2, timeout=30)
    failed: list[BaseException] = []

    def fetch() -> None:
        try:
            download(f"{host.url}/file", tmp_path / "file", hashlib.md5(content).hexdigest())
        except BaseException as error:
            failed.append(error)

    for _ in range(3):
        (tmp_path / "file").unlink(missing_ok=True)
        threads = [threading.Thread(target=fetch) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert (tmp_path / "file").read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == {"file", "server"}
