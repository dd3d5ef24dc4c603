"""The cache of hot rows on every available device: its rows, its evictions, and that no reader sees an old row."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from redis_recsys.parameter_server.tiers.host_cache import PIECE, WAYS, Cache, HostCache, mixed, set_of

torch = pytest.importorskip("torch")

from redis_recsys.parameter_server.tiers.device_cache import DeviceCache  # noqa: E402

DIM = 5
Make = Callable[[int], Cache]


def _on(device: str) -> Make:
    return lambda capacity: DeviceCache(capacity, DIM, device)


@pytest.fixture(
    params=[
        pytest.param(lambda capacity: HostCache(capacity, DIM), id="host"),
        pytest.param(_on("cpu"), id="torch-cpu"),
        pytest.param(
            _on("cuda"), id="cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
        ),
    ]
)
def make(request: pytest.FixtureRequest) -> Make:
    return request.param


def rows_of(keys: np.ndarray, version: int = 0) -> np.ndarray:
    """Rows in which every number identifies the key and version."""
    numbers = (mixed(np.asarray(keys, np.int64)) >> np.uint64(48)).astype(np.float32)
    return numbers[:, None] + np.arange(DIM, dtype=np.float32) * 100_000 + np.float32(version * 1_000_000)


def put(cache: Cache, keys: list[int] | np.ndarray, version: int = 0) -> None:
    keys = np.asarray(keys, np.int64)
    cache.insert(keys, rows_of(keys, version), cache.versions(keys))


def held(cache: Cache, keys: list[int] | np.ndarray, version: int = 0) -> list[bool]:
    """Whether keys are held; also checks their rows and those of the missing ones."""
    keys = np.asarray(keys, np.int64)
    out = np.full((len(keys), DIM), -7, np.float32)
    hits = cache.find(keys, out)
    assert np.array_equal(out[hits], rows_of(keys, version)[hits])
    assert (out[~hits] == -7).all()
    return hits.tolist()


def of_one_set(cache: Cache, count: int, number: int = 0) -> np.ndarray:
    """Keys that all belong to the same set."""
    keys = np.arange(-20_000, 20_000)
    return keys[set_of(mixed(keys), cache.capacity // WAYS) == number][:count]


def test_an_empty_cache_holds_no_key(make: Make):
    cache = make(32)
    assert not any(held(cache, np.arange(-100, 100)))
    assert len(cache) == 0


def test_rows_that_were_put_in_are_found(make: Make):
    cache = make(1000)
    put(cache, [3, 1, 2])
    assert held(cache, [1, 2, 3, 4]) == [True, True, True, False]
    assert len(cache) == 3


@pytest.mark.parametrize("capacity", [1, 16, 17, 1000])
def test_there_is_room_for_at_least_the_rows_that_were_asked_for(make: Make, capacity: int):
    cache = make(capacity)
    assert capacity <= cache.capacity <= capacity + 2 * WAYS
    put(cache, np.arange(50 * capacity + 500))
    assert len(cache) == cache.capacity


def test_memory_does_not_grow_with_the_rows_held(make: Make):
    cache = make(1000)
    before = cache.nbytes
    assert before >= 1000 * DIM * 4
    put(cache, np.arange(5000))
    assert cache.nbytes == before


def test_any_int64_is_a_key(make: Make):
    cache = make(4096)
    least, most = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    keys = [0, 1, -1, least, least + 1, most, most - 1, 1 << 32, -(1 << 32)]
    assert not any(held(cache, keys))
    put(cache, keys)
    assert all(held(cache, keys))
    assert len(cache) == len(keys)


def test_neighbouring_keys_are_spread_over_the_sets(make: Make):
    cache = make(8192)
    for step in (1, 8, 1024, 1 << 33):
        cache.clear()
        put(cache, np.arange(4096) * step)
        assert len(cache) > 0.95 * 4096


def test_a_key_looked_up_repeatedly_is_found_each_time(make: Make):
    cache = make(64)
    put(cache, [5, 6])
    assert held(cache, [5, 7, 5, 6, 5, 7]) == [True, False, True, True, True, False]


def test_looking_up_nothing_finds_nothing(make: Make):
    cache = make(64)
    put(cache, [])
    assert held(cache, []) == []
    assert len(cache) == 0


def test_keys_of_one_set_in_one_batch_take_all_its_ways(make: Make):
    cache = make(64)
    keys = of_one_set(cache, WAYS)
    put(cache, keys)
    assert all(held(cache, keys))


def test_what_finds_no_way_in_its_set_is_left_out(make: Make):
    cache = make(64)
    keys = of_one_set(cache, WAYS + 3)
    put(cache, keys)
    assert sum(held(cache, keys)) == WAYS


def test_the_least_recently_used_row_makes_room(make: Make):
    cache = make(64)
    keys = of_one_set(cache, WAYS + 2)
    for key in keys[:WAYS]:
        put(cache, [key])
    held(cache, [keys[0]])
    put(cache, [keys[WAYS]])
    put(cache, [keys[WAYS + 1]])
    assert held(cache, keys) == [True, False, False] + [True] * (WAYS - 1)


def test_a_batch_displaces_the_least_recently_used_rows_in_their_order(make: Make):
    cache = make(64)
    keys = of_one_set(cache, WAYS + 3)
    for key in keys[WAYS - 1 :: -1]:
        put(cache, [key])
    put(cache, keys[WAYS:])
    assert held(cache, keys) == [True] * (WAYS - 3) + [False] * 3 + [True] * 3


def test_rows_of_other_sets_stay(make: Make):
    cache = make(64)
    others = of_one_set(cache, WAYS, number=1)
    put(cache, others)
    put(cache, of_one_set(cache, 500))
    assert all(held(cache, others))


def test_a_row_put_in_again_is_overwritten_where_it_is(make: Make):
    cache = make(64)
    keys = of_one_set(cache, WAYS)
    put(cache, keys)
    put(cache, keys[2:4], version=1)
    assert all(held(cache, keys[2:4], version=1))
    assert all(held(cache, np.delete(keys, [2, 3])))


def test_a_row_put_in_again_counts_as_used(make: Make):
    cache = make(64)
    keys = of_one_set(cache, WAYS + 1)
    for key in keys[:WAYS]:
        put(cache, [key])
    put(cache, [keys[0]])
    put(cache, [keys[WAYS]])
    assert held(cache, keys[:2]) == [True, False]


def test_a_batch_does_not_displace_what_it_overwrites(make: Make):
    cache = make(64)
    keys = of_one_set(cache, 2 * WAYS)
    put(cache, keys[:1])
    put(cache, keys)
    assert held(cache, keys[:1]) == [True]
    assert sum(held(cache, keys)) == WAYS


def test_of_a_key_given_twice_the_last_row_counts(make: Make):
    cache = make(64)
    keys = np.array([4, 9, 4])
    rows = rows_of(keys)
    rows[2] = rows_of(keys[2:], version=1)
    cache.insert(keys, rows, cache.versions(keys))
    assert len(cache) == 2
    assert held(cache, [4], version=1) == [True]
    rows[2] = rows_of(keys[2:], version=2)
    cache.update(keys, rows)
    assert held(cache, [4], version=2) == [True]


def test_a_batch_larger_than_the_cache_fills_it(make: Make):
    cache = make(256)
    keys = np.random.default_rng(0).permutation(3 * PIECE)
    put(cache, keys)
    assert len(cache) == cache.capacity
    assert sum(held(cache, keys)) == cache.capacity


def test_a_batch_of_many_pieces_is_handled_whole(make: Make):
    cache = make(40 * PIECE)
    keys = np.random.default_rng(0).permutation(3 * PIECE)
    put(cache, keys)
    assert all(held(cache, keys))
    cache.update(keys, rows_of(keys, 1))
    assert all(held(cache, keys, version=1))
    cache.evict(keys)
    assert len(cache) == 0


def test_an_update_overwrites_what_is_held_and_puts_nothing_in(make: Make):
    cache = make(64)
    put(cache, [1, 2])
    keys = np.array([2, 3])
    cache.update(keys, rows_of(keys, 1))
    assert held(cache, [2, 3], version=1) == [True, False]
    assert held(cache, [1]) == [True]
    assert len(cache) == 2


def test_an_evicted_key_is_gone_and_its_way_is_taken_first(make: Make):
    cache = make(64)
    keys = of_one_set(cache, WAYS + 1)
    put(cache, keys[:WAYS])
    cache.evict(np.array([keys[3], 123_456_789]))
    assert len(cache) == WAYS - 1
    put(cache, keys[WAYS:])
    assert held(cache, keys) == [True] * 3 + [False] + [True] * (WAYS - 3)


def test_clearing_forgets_everything(make: Make):
    cache = make(64)
    put(cache, np.arange(40))
    cache.clear()
    assert len(cache) == 0
    assert not any(held(cache, np.arange(40)))
    put(cache, [7])
    assert held(cache, [7]) == [True]


@pytest.mark.parametrize("change", ["update", "evict", "clear"])
def test_a_row_read_before_a_change_does_not_come_in_after_it(make: Make, change: str):
    cache = make(1024)
    keys = np.array([1, 2])
    versions = cache.versions(keys)
    if change == "update":
        cache.update(keys[:1], rows_of(keys[:1], 1))
    elif change == "evict":
        cache.evict(keys[:1])
    else:
        cache.clear()
    cache.insert(keys, rows_of(keys), versions)
    assert held(cache, keys) == [False, change != "clear"]
    put(cache, keys, version=1)
    assert held(cache, keys, version=1) == [True, True]


def test_a_late_row_does_not_overwrite_an_updated_one(make: Make):
    cache = make(1024)
    keys = np.array([1])
    put(cache, keys)
    versions = cache.versions(keys)
    cache.update(keys, rows_of(keys, 1))
    cache.insert(keys, rows_of(keys), versions)
    assert held(cache, keys, version=1) == [True]


def test_single_operations_do_what_a_plain_least_recently_used_dictionary_does(make: Make):
    random = np.random.default_rng(3)
    cache = make(16)
    sets: list[dict[int, int]] = [{}, {}]  # key: version, least recently used first
    for step in range(1500):
        key = int(random.integers(-20, 20))
        rows = sets[int(set_of(mixed(np.array([key])), 2)[0])]
        match random.choice(["find", "find", "insert", "update", "evict"]):
            case "find":
                assert held(cache, [key], rows.get(key, 0)) == [key in rows]
                if key in rows:
                    rows[key] = rows.pop(key)
            case "insert":
                put(cache, [key], step % 10)
                rows.pop(key, None)
                if len(rows) == WAYS:
                    del rows[next(iter(rows))]
                rows[key] = step % 10
            case "update":
                cache.update(np.array([key]), rows_of(np.array([key]), step % 10))
                if key in rows:
                    rows[key] = step % 10
            case "evict":
                cache.evict(np.array([key]))
                rows.pop(key, None)
        assert len(cache) == len(sets[0]) + len(sets[1])


def test_batches_give_the_newest_rows_only(make: Make):
    random = np.random.default_rng(4)
    cache = make(200)
    newest: dict[int, int] = {}
    pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    found = 0
    for step in range(200):
        keys = random.choice(np.arange(-300, 300), random.integers(0, 120), replace=False)
        now = np.array([newest.get(int(key), 0) for key in keys], np.int64)
        rows = np.concatenate([rows_of(keys[i : i + 1], int(v)) for i, v in enumerate(now)] or [rows_of(keys)])
        out = np.full((len(keys), DIM), -7, np.float32)
        hits = cache.find(keys, out)
        found += hits.sum()
        assert np.array_equal(out[hits], rows[hits])
        assert (out[~hits] == -7).all()
        pending.append((keys[~hits], rows[~hits], cache.versions(keys[~hits])))
        changed = random.choice(np.arange(-300, 300), 5, replace=False)
        newest |= {int(key): step % 10 for key in changed}
        cache.update(changed, rows_of(changed, step % 10))
        if len(pending) > 3:
            cache.insert(*pending.pop(0))
        if step % 20 == 19:
            cache.evict(keys[:10])
            assert not any(held(cache, keys[:10]))
    assert found > 1000


def test_readers_never_see_a_torn_row_or_one_older_than_acknowledged(make: Make):
    count, readers, seconds = 300, 3, 1.0
    cache = make(150)
    below = np.zeros(count, np.int64)  # the versions in the tier below
    acknowledged = np.zeros(count, np.int64)
    stop = threading.Event()
    hits_seen, faults = [0] * readers, []

    def row(keys: np.ndarray, versions: np.ndarray) -> np.ndarray:
        return np.stack([keys, versions, keys, versions, versions], axis=1).astype(np.float32)

    def update() -> None:
        random = np.random.default_rng(0)
        end = time.monotonic() + seconds
        for number in itertools.count(1):
            keys = random.choice(count, 20, replace=False)
            below[keys] = number
            cache.update(keys, row(keys, below[keys]))
            acknowledged[keys] = number
            if time.monotonic() > end:
                break
        stop.set()

    def read(reader: int) -> None:
        random = np.random.default_rng(reader + 1)
        while not stop.is_set():
            keys = random.integers(0, count, 64)
            expected = acknowledged[keys]
            out = np.empty((len(keys), DIM), np.float32)
            hits = cache.find(keys, out)
            got = out[hits]
            hits_seen[reader] += len(got)
            if not np.array_equal(got, row(keys[hits], got[:, 1])):
                faults.append("torn")
            if (got[:, 1] < expected[hits]).any():
                faults.append("old")
            missing = np.unique(keys[~hits])
            versions = cache.versions(missing)
            rows = row(missing, below[missing])
            stop.wait(0.0005)
            cache.insert(missing, rows, versions)

    def run(work: Callable[..., None], *arguments: int) -> None:
        try:
            work(*arguments)
        except Exception as error:
            faults.append(repr(error))
            stop.set()

    threads = [threading.Thread(target=run, args=(read, reader)) for reader in range(readers)]
    threads.append(threading.Thread(target=run, args=(update,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert all(hits > 100 for hits in hits_seen)


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [1, 5, 128, 200])
@pytest.mark.parametrize("count", [0, 1, 33, 5000])
def test_keys_on_the_device_are_answered_there(device: str, dim: int, count: int):
    random = np.random.default_rng(dim)
    default = random.standard_normal(dim, np.float32)
    cache = DeviceCache(20_000, dim, device, default)
    keys = np.unique(random.integers(-(2**63), 2**63 - 1, count))
    rows = random.standard_normal((len(keys), dim), np.float32)
    cache.insert(keys[::2], rows[::2], cache.versions(keys[::2]))
    got, hits = cache.gather(torch.from_numpy(keys).to(device))
    assert got.device.type == hits.device.type == device
    assert hits.cpu().numpy().tolist() == [i % 2 == 0 for i in range(len(keys))]
    expected = np.where(np.arange(len(keys))[:, None] % 2 == 0, rows, default)
    assert np.array_equal(got.cpu().numpy(), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_found_on_the_device_count_as_used(device: str):
    cache = DeviceCache(64, DIM, device)
    keys = of_one_set(cache, WAYS + 1)
    for key in keys[:WAYS]:
        put(cache, [key])
    cache.gather(torch.tensor([int(keys[0])], device=device))
    put(cache, keys[WAYS:])
    assert held(cache, keys[:2]) == [True, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_work_of_several_streams_is_done_in_the_order_in_which_it_was_asked_for():
    cache = DeviceCache(100_000, 128)
    keys = np.arange(50_000)
    on_device = torch.from_numpy(keys).cuda()
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    results = []
    for number in range(30):
        rows = np.full((len(keys), 128), number, np.float32)
        with torch.cuda.stream(streams[number % 3]):
            if number:
                cache.update(keys, rows)
            else:
                cache.insert(keys, rows, cache.versions(keys))
        with torch.cuda.stream(streams[(number + 1) % 3]):
            got, hits = cache.gather(on_device)
            results.append((got[hits].min(), got[hits].max()))
    torch.cuda.synchronize()
    assert [(float(least), float(most)) for least, most in results] == [(n, n) for n in range(30)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_without_the_kernel_the_answers_are_the_same():
    pytest.importorskip("triton")
    cache = DeviceCache(4096, 128, default=np.full(128, 0.5, np.float32))
    assert cache.kernel is not None
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 3000)
    rows = np.random.default_rng(1).standard_normal((3000, 128), np.float32)
    cache.insert(keys, rows, cache.versions(keys))
    asked = torch.from_numpy(np.concatenate([keys, keys + 1])).cuda()
    fused = cache.gather(asked)
    cache.kernel = None
    plain = cache.gather(asked)
    assert torch.equal(fused[0], plain[0])
    assert torch.equal(fused[1], plain[1])
