"""Archives from the net: resumed where a connection broke, checked, and unpacked without trusting them."""

from __future__ import annotations

import hashlib
import logging
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
    track,
)

from swinexp.folder import TEMPORARY

log = logging.getLogger(__name__)

CONSOLE = Console()
PATIENCE = 30.0  # seconds that a server may be silent


def download(url: str, path: Path, md5: str) -> None:
    """Have `path` be the file of that checksum, from `url` when it is not.

    What has arrived stays in `<path>.part` when the connection breaks, and is not asked for again, by this call or by
    the next. Raises OSError when the server does not answer, stops sending, or sends something else.
    """
    if path.exists():
        if checksum(path) == md5:
            return
        log.warning("%s is damaged: downloading it again", path)
    part = path.with_name(path.name + TEMPORARY)
    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("downloading %s to %s", url, path)
    before = -1
    while not _receive(url, part):
        if _size(part) <= before:
            raise OSError(f"the connection broke after {before:,} bytes, which the next attempt goes on from")
        before = _size(part)
    if (found := checksum(part)) != md5:
        part.unlink()
        raise OSError(f"what {url} sent has the MD5 sum {found}, and not {md5}")
    part.replace(path)


def _receive(url: str, part: Path) -> bool:
    """Append what is missing to `part`. False when the connection ended before that."""
    have = _size(part)
    headers = {"User-Agent": "swinexp"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # there is nothing after what we have
            return True
        raise
    except HTTPException as error:
        raise OSError(f"{url} answers what is not HTTP ({error!r})") from error
    columns = TextColumn(part.stem), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal)
    with response, open(part, "ab" if response.status == 206 else "wb") as file, bar:
        received = file.tell()  # 0 when the server sends all of it again
        total = None if response.length is None else received + response.length
        task = bar.add_task("", total=total, completed=received)
        for block in _blocks(response):
            if block is None:
                return False
            file.write(block)
            received += len(block)
            bar.update(task, completed=received)
    return total is None or received == total


def _blocks(response: HTTPResponse) -> Iterator[bytes | None]:
    """What a server sends until it ends; None at last where it breaks off or falls silent."""
    try:
        while block := response.read1(1 << 16):
            yield block
    except (OSError, HTTPException):
        yield None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def checksum(path: Path) -> str:
    """The MD5 sum, which is what data sets publish: against accidents, not against malice."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    """Have `folder` hold what is in a .zip or a tar archive; one folder around all of it in the archive is left out.

    `folder` appears whole or not at all, and takes the place of one that was there. Raises OSError when the archive is
    damaged, or has anything but files and folders that stay within it.
    """
    temporary = folder.with_name(f".{folder.name}{TEMPORARY}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir(parents=True)
    try:
        (_unzip if zipfile.is_zipfile(archive) else _untar)(archive, temporary)
        inside = list(temporary.iterdir())
        whole = inside[0] if len(inside) == 1 and inside[0].is_dir() else temporary
        if folder.exists():
            log.warning("%s is not complete: another takes its place", folder)
            shutil.rmtree(folder)
        whole.rename(folder)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise OSError(f"{archive} cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in track(tar, "unpacking", console=CONSOLE, disable=not CONSOLE.is_terminal):
            if not (member.isfile() or member.isdir()):
                raise tarfile.TarError(f"{member.name} is neither a file nor a folder")
            tar.extract(member, folder, filter="data")  # which refuses names that lead outside


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for member in track(file.infolist(), "unpacking", console=CONSOLE, disable=not CONSOLE.is_terminal):
            name = PurePosixPath(member.filename)
            if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
                raise zipfile.BadZipFile(f"{member.filename} leads outside")
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):  # Unix's mode
                raise zipfile.BadZipFile(f"{member.filename} is neither a file nor a folder")
            file.extract(member, folder)
