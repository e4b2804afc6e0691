"""A Slurm cluster of the tests' own: one node on loopback, in a temporary folder, for the time of a test module."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.postgres import free_port

SBIN = "/usr/sbin"  # not in everybody's PATH
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=100000,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=15
KillWait=20
MinJobAge=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=4
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2
"""


def binary(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}")


def missing() -> list[str]:
    """The programs of Slurm's and munge's that are not installed."""
    return [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol") if binary(name) is None]


class Cluster:
    """`variables` make it the one that Slurm's commands speak to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        for each in ("state", "spool"):
            (folder / each).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        values = {
            "folder": folder,
            "host": socket.gethostname().partition(".")[0],
            "user": pwd.getpwuid(os.getuid()).pw_name,
            "control": free_port(),
            "node": free_port(),
        }
        (folder / "slurm.conf").write_text(CONFIG.format(**values))
        self.variables = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        options = (("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"))
        files = [f"--{option}={self.folder}/munge.{name}" for option, name in (*options, ("seed-file", "seed"))]
        self._start("munged", "--foreground", "--force", *files)
        until(lambda: (self.folder / "munge.socket").exists())
        self._start("slurmctld", "-D")
        self.start_node()

    def start_node(self) -> None:
        self._start("slurmd", "-D")
        until(lambda: self.call("sinfo", "-h", "-o", "%T").strip() in ("idle", "mixed", "allocated"))

    def kill_node(self) -> None:
        """As when its power fails: slurmd and all that it has started are gone at once."""
        slurmd = self.daemons.pop("slurmd")
        for pid in [*descendants(slurmd.pid), *self._stepds()]:
            for each in (pid, *descendants(pid)):
                _kill(each)
        slurmd.kill()
        slurmd.wait()

    def _stepds(self) -> list[int]:
        """The processes that Slurm has put between slurmd and the jobs; they are nobody's children."""
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            try:
                words = (each / "cmdline").read_bytes()
                environment = (each / "environ").read_bytes()
            except OSError:
                continue
            if words.startswith(b"slurmstepd:") and str(self.folder).encode() in environment:
                found.append(int(each.name))
        return found

    def call(self, *command: str) -> str:
        done = subprocess.run(
            command, env=os.environ | self.variables, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout

    def stop(self) -> None:
        self.call("scancel", "--signal=KILL", "--full", f"--user={os.getuid()}")
        self.call("scancel", f"--user={os.getuid()}")
        if "slurmd" in self.daemons:
            self.kill_node()
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _start(self, name: str, *options: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [binary(name) or name, *options],
                env=os.environ | self.variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def descendants(pid: int) -> list[int]:
    try:
        own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*own, *(each for child in own for each in descendants(child))]


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def until(holds: Callable[[], object], seconds: float = 240, words: Callable[[], str] = str) -> None:
    """Wait until something holds; `words` say why it may not."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, words()
        time.sleep(0.2)


@contextmanager
def clustered() -> Iterator[Cluster]:
    """A cluster that runs while the block lasts."""
    folder = Path(tempfile.mkdtemp(prefix="swinexp-slurm-"))
    folder.chmod(0o755)
    try:
        cluster = Cluster(folder)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
