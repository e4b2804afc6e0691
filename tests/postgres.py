"""A PostgreSQL server of the tests' own, on loopback, for the time of a test module."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PASSWORD = "correct-horse-battery"
USER = "swin"


def binaries() -> Path | None:
    """The folder of the newest server's binaries."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: float(place.parent.name))
    found = shutil.which("pg_ctl")
    return next((place for place in [*places[::-1], *([Path(found).parent] if found else [])] if runs(place)), None)


def runs(place: Path) -> bool:
    return all((place / name).exists() for name in ("initdb", "pg_ctl", "postgres"))


class Server:
    def __init__(self, place: Path, folder: Path) -> None:
        self.place, self.folder = place, folder
        self.port = free_port()
        self.account: dict[str, Any] = {}
        if os.getuid() == 0:  # as whom PostgreSQL does not run
            names = [each.pw_name for each in pwd.getpwall()]
            one = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            os.chown(folder, one.pw_uid, one.pw_gid)
            self.account = {"user": one.pw_uid, "group": one.pw_gid, "extra_groups": []}
        secret = folder / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._call("initdb", "-D", "data", "-U", USER, "-A", "scram-sha-256", "--pwfile=secret", "-N", "-E", "UTF8")

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c fsync=off"
        self._call("pg_ctl", "-D", "data", "-w", "-t", "60", "-l", "log", "-o", options, "start")

    def stop(self) -> None:
        self._call("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def _call(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.place / name, *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=(out := (self.folder / "said").open("a")),
            stderr=out,
            check=False,
            timeout=120,
            **self.account,
        )
        out.close()
        assert done.returncode == 0, (self.folder / "said").read_text()[-2000:]


@contextmanager
def serving(place: Path) -> Iterator[Server]:
    """A server that runs while the block lasts. Its folder is directly in /tmp: a socket's path has to be short."""
    folder = Path(tempfile.mkdtemp(prefix="swinexp-pg-"))
    try:
        server = Server(place, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
