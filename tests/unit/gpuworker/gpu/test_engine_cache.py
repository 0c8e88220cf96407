"""The folder of built engines: whose it is, what is found in it again, and what goes when it is full."""

import fcntl
import os
import threading

import pytest

from gateway.errors import InvalidModel
from gpuworker.gpu import engine_cache
from gpuworker.gpu.engine_cache import DamagedEngine, EngineCache, Plan, make_key, write_plan

KEY = "k" * 40


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "engines"


@pytest.fixture
def cache(folder):
    return EngineCache(folder, 0)


def keep(cache, key, content=b"engine"):
    fd = cache.part(key)
    write_plan(fd, content)
    os.close(fd)
    cache.publish(key)


def used_at(folder, key, second):
    os.utime(folder / f"{key}.plan", (second, second))


def test_an_engine_is_found_again_whole(cache, folder):
    assert cache.find(KEY) is None
    keep(cache, KEY, bytes(range(256)) * 1000)
    plan = cache.find(KEY)
    assert bytes(plan.content) == bytes(range(256)) * 1000
    plan.close()
    plan.close()
    assert [path.name for path in folder.iterdir()] == [f"{KEY}.plan"]
    assert (folder / f"{KEY}.plan").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_half_an_engine_is_never_found(cache, folder):
    fd = cache.part(KEY)
    write_plan(fd, b"engine")
    os.close(fd)
    assert cache.find(KEY) is None
    # The next builder starts with an empty one, though the last one was killed.
    fd = cache.part(KEY)
    assert os.fstat(fd).st_size == 0
    os.close(fd)


@pytest.mark.parametrize("place", [0, 17, 20, 30, 70, -1])
def test_a_flipped_bit_is_seen_and_the_engine_thrown_away(cache, folder, capfd, place):
    keep(cache, KEY, b"e" * 100)
    path = folder / f"{KEY}.plan"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    path.chmod(0o600)
    assert cache.find(KEY) is None
    assert not path.exists()
    assert '"event":"engine_damaged"' in capfd.readouterr().err


@pytest.mark.parametrize("size", [0, 63, 100])
def test_a_torn_engine_is_seen(cache, folder, size):
    keep(cache, KEY, b"e" * 100)
    os.truncate(folder / f"{KEY}.plan", size)
    assert cache.find(KEY) is None
    assert not (folder / f"{KEY}.plan").exists()


def test_a_damaged_engine_leaves_no_descriptor_open():
    fd = os.memfd_create("test")
    with pytest.raises(DamagedEngine, match="0 bytes"):
        Plan(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o770, 0o777])
def test_a_folder_that_others_can_enter_is_refused(folder, mode):
    folder.mkdir(parents=True)
    folder.chmod(mode)
    with pytest.raises(InvalidModel, match=r"engine_dir is open to others.*native code.*chmod 700"):
        EngineCache(folder, 0)


def test_a_folder_of_somebody_else_is_refused(cache, folder, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(InvalidModel, match="engine_dir belongs to somebody else"):
        EngineCache(folder, 0)


def test_a_link_is_no_folder(cache, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(InvalidModel, match="engine_dir is not a folder"):
        EngineCache(tmp_path / "link", 0)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidModel, match=r"engine_dir cannot be made \(Not a directory\)"):
        EngineCache(tmp_path / "file" / "engines", 0)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_an_engine_that_others_can_write_is_refused(cache, folder, mode):
    keep(cache, KEY)
    (folder / f"{KEY}.plan").chmod(mode)
    with pytest.raises(InvalidModel, match="a file in engine_dir can be written by others"):
        cache.find(KEY)
    assert (folder / f"{KEY}.plan").exists()


def test_an_engine_of_somebody_else_is_refused(cache, folder, monkeypatch):
    keep(cache, KEY)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(InvalidModel, match="a file in engine_dir belongs to somebody else"):
        cache.find(KEY)


def test_a_link_and_a_pipe_are_no_engines(cache, folder, tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"x")
    (folder / f"{KEY}.plan").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidModel, match=r"cannot be read \(Too many levels of symbolic links\)"):
        cache.find(KEY)
    (folder / f"{KEY}.plan").unlink()
    os.mkfifo(folder / f"{KEY}.plan")
    with pytest.raises(InvalidModel, match="is not a file"):
        cache.find(KEY)


def test_what_was_used_longest_ago_goes_first(cache, folder):
    full = EngineCache(folder, 700)
    for second, key in enumerate("abc"):
        keep(full, key, b"e" * 136)
        used_at(folder, key, 1000 + second)
    full.find("a").close()  # used again: b is the oldest now
    keep(full, "d", b"e" * 136)
    assert {path.stem for path in folder.glob("*.plan")} == {"a", "c", "d"}


def test_an_engine_in_use_and_the_newest_stay_however_large(cache, folder):
    full = EngineCache(folder, 300)
    keep(full, "a", b"e" * 136)
    plan = full.find("a")
    used_at(folder, "a", 1000)
    keep(full, "b", b"e" * 1000)
    assert {path.stem for path in folder.glob("*.plan")} == {"a", "b"}
    plan.close()
    used_at(folder, "b", 1001)
    keep(full, "c", b"e" * 136)
    assert {path.stem for path in folder.glob("*.plan")} == {"c"}


def test_an_engine_that_is_being_built_again_stays(cache, folder):
    full = EngineCache(folder, 300)
    keep(full, "a", b"e" * 136)
    used_at(folder, "a", 1000)
    with full.building("a", pytest.fail):
        keep(full, "b", b"e" * 200)
        assert (folder / "a.plan").exists()
    keep(full, "c", b"e" * 200)
    assert {path.name for path in folder.iterdir()} == {"c.plan"}


def test_what_killed_builders_left_goes_with_the_next_build(cache, folder):
    for key in ("a", "b"):
        fd = cache.part(key)
        os.close(fd)
        (folder / f"{key}.lock").touch()
    (folder / "timing-t.1.part").touch()
    os.utime(folder / "timing-t.1.part", (1000, 1000))
    (folder / "timing-t.2.part").touch()
    with cache.building("b", pytest.fail):
        keep(cache, KEY)
        assert {path.name for path in folder.iterdir()} == {f"{KEY}.plan", "b.lock", "b.part", "timing-t.2.part"}


def test_a_settled_engine_is_in_use_and_not_in_memory(cache, folder):
    full = EngineCache(folder, 1)
    keep(full, KEY)
    plan = full.find(KEY)
    plan.settle()
    with pytest.raises(ValueError, match="released"):
        bytes(plan.content)
    keep(full, "other")
    assert (folder / f"{KEY}.plan").exists()
    plan.close()
    keep(full, "third")
    assert not (folder / f"{KEY}.plan").exists()


def test_an_engine_without_a_file_is_given_back_when_it_is_settled():
    fd = os.memfd_create("test")
    write_plan(fd, b"engine")
    plan = Plan(fd)
    assert bytes(plan.content) == b"engine"
    plan.settle()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    plan.close()


def test_one_builds_and_the_others_wait(cache, folder):
    seen, waits = [], threading.Event()

    def second():
        with EngineCache(folder, 0).building(KEY, waits.set):
            plan = cache.find(KEY)
            seen.append(bytes(plan.content))
            plan.close()

    other = threading.Thread(target=second)
    with cache.building(KEY, pytest.fail):
        other.start()
        assert waits.wait(30)
        keep(cache, KEY)
    other.join(30)
    assert seen == [b"engine"]


def test_a_lock_that_was_evicted_meanwhile_is_taken_again(cache, folder, monkeypatch):
    # Between opening the lock and locking it, somebody removed the file: a third one would lock another file.
    real, calls = engine_cache._try_lock, []

    def evicted_first(fd):
        calls.append(fd)
        if len(calls) == 1:
            (folder / f"{KEY}.lock").unlink()
        return real(fd)

    monkeypatch.setattr(engine_cache, "_try_lock", evicted_first)
    with cache.building(KEY, pytest.fail), (folder / f"{KEY}.lock").open() as file:
        assert len(calls) == 2
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_key_changes_with_every_part(tmp_path):
    (tmp_path / "weights").write_bytes(b"w")
    parts = [b"machine", b"order", b"graph", tmp_path / "weights"]
    keys = {make_key(parts), make_key([b"machineorder", b"", *parts[2:]])}
    for place in range(3):
        keys.add(make_key([*parts[:place], b"other", *parts[place + 1 :]]))
    keys.add(make_key(parts[:3]))
    first = make_key(parts)
    (tmp_path / "weights").write_bytes(b"v")
    keys.add(make_key(parts))
    assert len(keys) == 7
    (tmp_path / "weights").write_bytes(b"w")
    assert make_key(parts) == first


def test_a_key_changes_with_the_format(monkeypatch):
    before = make_key([b"x"])
    monkeypatch.setattr(engine_cache, "FORMAT", engine_cache.FORMAT + 1)
    assert make_key([b"x"]) != before


def test_timings_are_kept_and_bounded(cache, folder, monkeypatch):
    assert cache.read_timing("t") == b""
    cache.write_timing("t", b"timings")
    assert cache.read_timing("t") == b"timings"
    assert [path.name for path in folder.iterdir()] == ["timing-t"]
    monkeypatch.setattr(engine_cache, "TIMING_SIZE_MAX", 6)
    assert cache.read_timing("t") == b""
    (folder / "timing-t").chmod(0o666)
    with pytest.raises(InvalidModel, match="a file in engine_dir can be written by others"):
        cache.read_timing("t")
