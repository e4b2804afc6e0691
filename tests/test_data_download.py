from __future__ import annotations

import hashlib
import io
import re
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from swinexp.data import download as module
from swinexp.data.download import checksum, download, unpack

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Sends CONTENT, from where it is asked to. `breaks` says after how many bytes each answer in turn ends early."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/archive.tar.gz"
        self.breaks: list[int] = []
        self.asked: list[str | None] = []
        self.ranges = self.silent = self.chunked = False


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    close_connection = True
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.headers["Range"])
        if not server.url.endswith(self.path):
            self.send_error(404)
            return
        start = int(re.findall(r"\d+", self.headers["Range"])[0]) if self.headers["Range"] and server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        end = start + server.breaks.pop(0) if server.breaks else len(CONTENT)
        if server.chunked:  # which does not say how much there is
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n" % (end - start, CONTENT[start:end]))
            self.wfile.write(b"0\r\n\r\n" if end == len(CONTENT) else b"ffff\r\n")
            return
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:end])
        if server.silent:
            self.wfile.flush()
            self.rfile.read(1)  # until the other side has had enough

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        server.ranges = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_file_arrives_whole(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "archive.tar.gz"
    download(server.url, path, MD5)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert "".join(capsys.readouterr()) == ""  # no bar where there is no terminal
    download(server.url, path, MD5)
    assert server.asked == [None]  # it was there


def test_a_connection_that_breaks_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.breaks = [100_000, 50_000]
    download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_one_that_breaks_without_having_said_how_much_there_is_too(server: Server, tmp_path: Path) -> None:
    server.chunked, server.breaks = True, [100_000, 50_000]
    download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_the_next_attempt_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.breaks = [100_000, 0]
    with pytest.raises(OSError, match="the connection broke after 100,000 bytes"):
        download(server.url, tmp_path / "file", MD5)
    assert [path.name for path in tmp_path.iterdir()] == ["file.part"]
    download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=100000-"


@pytest.mark.slow
def test_a_killed_download_goes_on(server: Server, tmp_path: Path) -> None:
    server.breaks, server.silent = [100_000], True
    code = f"from swinexp.data.download import *; download({server.url!r}, Path({str(tmp_path / 'file')!r}), {MD5!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    part = tmp_path / "file.part"
    while not part.exists() or part.stat().st_size < 50_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    server.silent = False
    have = part.stat().st_size
    download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={have}-"


def test_a_server_without_ranges_sends_all_of_it_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.breaks = False, [100_000]
    download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_what_was_there_already_is_not_asked_for(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"", b"from another file", CONTENT + b"and more"])
def test_a_wrong_checksum_is_refused_and_not_gone_on_with(part: bytes, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(part)
    wrong = MD5 if part else "0" * 32
    with pytest.raises(OSError, match=rf"has the MD5 sum \w+, and not {wrong}"):
        download(server.url, tmp_path / "file", wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"half of")
    download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_silent_server_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    server.breaks, server.silent = [1000, 0], True
    with pytest.raises(OSError, match="the connection broke after 1,000 bytes"):
        download(server.url, tmp_path / "file", MD5)


def test_errors_of_the_server_are_told(server: Server, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="HTTP Error 404"):
        download(server.url + "/nowhere", tmp_path / "file", MD5)
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="refused"):
        download(server.url, tmp_path / "file", MD5)
    assert list(tmp_path.iterdir()) == []


def tar(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            member.size = 0 if member.type != tarfile.REGTYPE else 4
            archive.addfile(member, io.BytesIO(b"data"))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_a_tar_archive_takes_the_place_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "old").mkdir(parents=True)
    unpack(tar(tmp_path / "a.tar.gz", member("train/ant/1.png"), member("test/ant/2.png"), member("README")), folder)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "train/ant/1.png",
        "test/ant/2.png",
        "README",
    }
    assert not (folder / "old").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar.gz", "set"}


def test_one_folder_around_everything_is_left_out(tmp_path: Path) -> None:
    unpack(tar(tmp_path / "a.tar.gz", member("cifar/1"), member("cifar/2")), tmp_path / "set")
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    "hostile",
    [
        member("../outside"),
        member("a/../../outside"),
        member("link", tarfile.SYMTYPE, "../outside"),
        member("link", tarfile.SYMTYPE, "/etc"),
        member("link", tarfile.SYMTYPE, "harmless"),
        member("link", tarfile.LNKTYPE, "../outside"),
        member("device", tarfile.CHRTYPE),
        member("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}>{info.linkname}",
)
def test_a_hostile_tar_archive_leaves_nothing(hostile: tarfile.TarInfo, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    archive = tar(tmp_path / "a.tar.gz", member("harmless"), hostile, member("link/written"))
    with pytest.raises(OSError, match=r"a.tar.gz cannot be unpacked: .*(outside|neither a file nor a folder)"):
        unpack(archive, tmp_path / "set")
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar.gz", "set"}
    assert not list((tmp_path / "set").iterdir())
    assert not (tmp_path.parent / "outside").exists()


def test_an_absolute_name_in_a_tar_archive_stays_inside(tmp_path: Path) -> None:
    unpack(tar(tmp_path / "a.tar.gz", member(f"{tmp_path}/outside"), member("b")), tmp_path / "set")
    assert not (tmp_path / "outside").exists()


def zipped(path: Path, names: dict[str, int]) -> Path:
    """A zip archive with these names and Unix modes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, mode in names.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, "../outside")
    return path


def test_a_zip_archive_is_unpacked(tmp_path: Path) -> None:
    names = {"tiny/wnids.txt": stat.S_IFREG | 0o644, "tiny/train/": stat.S_IFDIR | 0o755, "tiny/train/1.JPEG": 0}
    unpack(zipped(tmp_path / "a.zip", names), tmp_path / "tiny")
    assert sorted(path.name for path in (tmp_path / "tiny").rglob("*")) == ["1.JPEG", "train", "wnids.txt"]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("../outside", 0),
        ("a/../../outside", 0),
        ("/outside", 0),
        ("..\\outside", 0),
        ("link", stat.S_IFLNK | 0o777),
        ("pipe", stat.S_IFIFO | 0o644),
    ],
)
def test_a_hostile_zip_archive_leaves_nothing(name: str, mode: int, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"a.zip cannot be unpacked: .*(outside|neither a file nor a folder)"):
        unpack(zipped(tmp_path / "a.zip", {"harmless": 0, name: mode}), tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_damaged_archive_leaves_nothing(content: bytes | None, tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", *(member(str(i)) for i in range(100)))
    archive.write_bytes(archive.read_bytes()[:-200] if content is None else content)
    with pytest.raises(OSError, match="a.tar.gz cannot be unpacked"):
        unpack(archive, tmp_path / "set")
    assert list(tmp_path.iterdir()) == [archive]


def test_the_checksum_is_md5(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    assert checksum(tmp_path / "file") == MD5
