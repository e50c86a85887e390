"""The cache directory: whatever is in it or becomes of it, no exception and nothing wrong read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from softxent import _cache

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0,
                          reason="only root can give files away")
KEY, BODY = b"what decides", bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache directory, which does not exist yet."""
    path = tmp_path / "deep" / "cache"
    monkeypatch.setenv("SOFTXENT_CACHE_DIR", str(path))
    return path


@pytest.fixture
def file(folder):
    """A file in it, as it should be."""
    _cache.write("one", KEY, BODY)
    assert _cache.read("one", KEY) == BODY
    return _cache._path(folder, "one", KEY)


def test_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTXENT_CACHE_DIR", "there")
    assert _cache.directory() == Path("there")
    monkeypatch.setenv("SOFTXENT_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if os.name == "posix":
        assert _cache.directory() == tmp_path / "softxent"


def test_no_home(monkeypatch):
    monkeypatch.delenv("SOFTXENT_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(_cache.sys, "platform", "linux")

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(_cache.Path, "home", nobody)
    assert _cache.directory() is None
    assert _cache.read("one", KEY) is None
    _cache.write("one", KEY, BODY)


def test_only_the_same_key_reads(file):
    assert _cache.read("one", KEY + b"!") is None
    assert _cache.read("other", KEY) is None


def test_versions_side_by_side_and_the_oldest_go(folder):
    keys = [bytes([i]) for i in range(_cache.KEPT + 3)]
    for i, key in enumerate(keys):
        _cache.write("one", key, BODY)
        os.utime(_cache._path(folder, "one", key), (i, i))
    assert [_cache.read("one", key) is None for key in keys] == [True] * 3 + [False] * _cache.KEPT


@posix
def test_what_is_made_is_closed_to_others(file, folder):
    assert file.stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0
    assert os.listdir(folder) == [_cache._path(folder, "one", KEY).name]


def test_any_flipped_byte_is_seen(file):
    whole = file.read_bytes()
    for at in [*range(120), *range(120, len(whole), 97), len(whole) - 1]:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1:])
        assert _cache.read("one", KEY) is None, at
    file.write_bytes(whole)
    assert _cache.read("one", KEY) == BODY


def test_any_truncation_is_seen(file):
    whole = file.read_bytes()
    for length in [*range(120), *range(120, len(whole), 97), len(whole) - 1]:
        file.write_bytes(whole[:length])
        assert _cache.read("one", KEY) is None, length
    file.write_bytes(whole + b"x")
    assert _cache.read("one", KEY) is None


@posix
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o777])
def test_a_file_that_others_can_write_is_not_trusted(file, mode):
    file.chmod(mode)
    assert _cache.read("one", KEY) is None


@root
def test_a_file_of_another_user_is_not_trusted(file):
    os.chown(file, 65534, -1)
    assert _cache.read("one", KEY) is None
    _cache.write("one", KEY, BODY)  # takes its place
    assert _cache.read("one", KEY) == BODY


@posix
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")],
                         ids=["folder", "pipe", "dangling link"])
def test_what_is_no_file(folder, make):
    folder.mkdir(parents=True)
    make(_cache._path(folder, "one", KEY))
    assert _cache.read("one", KEY) is None
    _cache.write("one", KEY, BODY)
    assert len(os.listdir(folder)) == 1


@pytest.mark.parametrize("place", ["file/below", "null\0byte", "n" * 300])
def test_where_nothing_can_be_written(tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(_cache, "directory", lambda: tmp_path / place)
    _cache.write("one", KEY, BODY)
    assert _cache.read("one", KEY) is None


def child(script, *arguments, **options):
    """Start a script that finds `_cache`, KEY and BODY."""
    head = f"from softxent import _cache\nKEY, BODY = {KEY!r}, bytes(range(256)) * 40\n"
    return subprocess.Popen([sys.executable, "-c", head + textwrap.dedent(script), *arguments],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@posix
def test_a_full_disk(folder):
    """A limit on the size of files stands for it: writes fail half way."""
    done = child("""
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        _cache.write("one", KEY, BODY)
        assert _cache.read("one", KEY) is None
    """)
    assert done.communicate(timeout=60) == ("", "")
    assert os.listdir(folder) == []


@root
def test_a_folder_that_may_not_be_written(folder):
    """As a user for whom the folder is closed."""
    folder.mkdir(parents=True, mode=0o755)
    for path in (folder, *list(folder.parents)[:3]):
        path.chmod(0o755)
    done = child("""
        import os
        os.setuid(65534)
        _cache.write("one", KEY, BODY)
        assert _cache.read("one", KEY) is None
    """)
    assert done.communicate(timeout=60) == ("", "")
    assert os.listdir(folder) == []


def test_many_writers_and_readers_at_once(folder):
    """A reader finds nothing or the whole, never a part."""
    script = """
        import sys
        for i in range(400):
            if sys.argv[1] == "write":
                _cache.write("one", KEY, BODY)
            found = _cache.read("one", KEY)
            assert found in (None, BODY)
        assert found == BODY
    """
    _cache.write("one", KEY, BODY)
    running = [child(script, part) for part in ("write", "read") * 3]
    assert [one.communicate(timeout=120) for one in running] == [("", "")] * 6
    assert os.listdir(folder) == [_cache._path(folder, "one", KEY).name]


@posix
def test_writers_that_are_killed(folder):
    for delay in range(12):
        writer = child("""
            print("ready", flush=True)
            while True:
                _cache.write("one", KEY, BODY)
        """)
        writer.stdout.readline()
        time.sleep(delay * 0.002)
        writer.send_signal(signal.SIGKILL)
        writer.communicate(timeout=60)
        assert _cache.read("one", KEY) in (None, BODY)
    _cache.write("one", KEY, BODY)
    assert _cache.read("one", KEY) == BODY
