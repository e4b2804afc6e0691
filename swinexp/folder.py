"""A run's folder: its name, one run at a time in it, and files that appear whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import yaml

from swinexp.explain import NAMED
from swinexp.mistake import Mistake, check, leaves, one_line, shown

# What does not change a run's figures, and so neither its name nor what may go on in its folder.
INCIDENTAL = ("name", "wandb", "data.cache", "data.placement")
LONGEST = 100
MOST = 10  # checkpoints that can be kept
# Keys that came later, and what all runs did before: for a run, a study or a file of one's own that lacks them.
LATER: dict[str, str | int | None] = {
    "attention.init": "normal",
    "attention.lepe": False,
    "augmentation.crop_padding": "zeros",
    "model.init": "normal",
    "patch.init": "normal",
    "trainer.small_epochs": 0,
    "trainer.small_size": None,
}
TEMPORARY = ".part"  # how files end that are not yet whole


def run_name(overrides: Sequence[str]) -> str:
    """A folder name that says what a command overrides: the same for the same overrides in any order.

    `["model=tiny", "experiment=quickstart"]` gives `quickstart,model=tiny`. Characters that do not belong in a file
    name, and what is too long, are replaced by a hash of the whole.
    """
    pairs = [override.lstrip("+").partition("=")[::2] for override in overrides]
    explicit = [value for key, value in pairs if key == "name"]
    if explicit:
        return explicit[-1]
    telling = [(key, value.rstrip("/") or value) for key, value in pairs if not incidental(key)]
    telling.sort(key=lambda pair: (NAMED.index(pair[0]) if pair[0] in NAMED else len(NAMED), pair))
    whole = ",".join(value if key in NAMED else f"{key}={value}" for key, value in telling)
    short = re.sub(r"=[^=,]*/", "=", whole)  # of a path, the last part
    name = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", re.sub(r"[\[\]'\" ]", "", short)).strip("-")
    if name != whole or len(name) > LONGEST:
        name = f"{name[: LONGEST - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return name or "default"


def incidental(key: str) -> bool:
    """Whether a key, or the group that it is in, leaves a run's figures as they are."""
    return any(key == each or key.startswith(f"{each}.") for each in INCIDENTAL)


def published(values: Mapping[str, Any]) -> bool:
    """Whether a config, as its `leaves`, has the same images wherever `data.root` is: no folder of one's own."""
    return values.get("data.name") != "image_folder"


def folder_name(name: object, key: str = "name") -> str:
    """`name`, which must be good for one folder. Raises `Mistake`."""
    told = "a word is needed, and this is read as none; in quotes of Hydra's own it is one"
    check(isinstance(name, str), key, name, told, f"\"{key}='{shown(name)}'\"")
    good = re.fullmatch(r"[^\W_.-][^/\\\0]{0,119}", str(name)) is not None
    check(good, key, name, "1 to 120 characters without a slash, the first a letter or digit", f"{key}=ANOTHER_NAME")
    return str(name)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Give `write` a file that takes the name `path` only when all of it is on the disk. Raises OSError.

    What is no file, such as /dev/stdout, is written to as it is; a link is followed.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            write(file)
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            # torch makes an error of its own, about a position, from the system's
            raise error.__context__ from None
        raise


def write_text(path: Path, text: str) -> None:
    """Write all of a text file or none of it."""
    write_atomically(path, lambda file: file.write(text.encode()))


def kept(path: Path) -> Any:
    """What a JSON or YAML file of a run or sweep holds. Raises `Mistake` where it cannot be read."""
    try:
        text = path.read_text()
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise Mistake(f"{path} cannot be read ({reason}). Bring it back, or remove {path.parent}") from None


def as_now(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's or a study's config, its keys with dots, with those that came later."""
    return {**config, **{key: value for key, value in LATER.items() if key not in config}}


def remove_unfinished(folder: Path, seconds: float = 0) -> None:
    """Remove what a process that was killed left half written in a folder, if nobody has written it for so long."""
    for leftover in folder.glob(f".*{TEMPORARY}"):
        with suppress(FileNotFoundError):  # it may just have become whole
            if time.time() - leftover.stat().st_mtime >= seconds:
                leftover.unlink()


def check_archive(path: Path) -> None:
    """Compare the checksums that `torch.save` writes, for torch does not. Raises almost anything for a damaged file."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong")


def earlier(checkpoint: Path, by: int) -> Path:
    """last.pt, last-1.pt, last-2.pt …: the checkpoint so many before the newest."""
    return checkpoint.with_stem(f"{checkpoint.stem}-{by}") if by else checkpoint


def best(checkpoint: Path) -> Path:
    """Where the checkpoint of the best epoch lies."""
    return checkpoint.with_stem("best")


def candidates(checkpoint: Path) -> list[Path]:
    """The checkpoints that are there, in the order in which a run goes on from them; it can when there is any."""
    names = (*(earlier(checkpoint, by) for by in range(MOST)), best(checkpoint))
    return [path for path in names if path.exists()]


class Folder:
    """A run's folder, held by this process alone while the `with` block lasts.

    What ends before the run began leaves nothing behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoints" / "last.pt"

    def __enter__(self) -> Folder:
        self.path.mkdir(parents=True, exist_ok=True)  # where a refused twin has just removed it
        self._handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it even after kill -9
        except BlockingIOError:
            os.close(self._handle)
            raise Mistake(
                f"{self.path} is where another process is running this very command. "
                "Wait for it, or type name=ANOTHER_NAME"
            ) from None
        for place in (self.path, self.checkpoint.parent):
            remove_unfinished(place)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self.began:
            (self.path / "run.log").unlink(missing_ok=True)
            remove_empty(self.path)
        os.close(self._handle)

    @property
    def began(self) -> bool:
        """A run has begun here, now or earlier."""
        return (self.path / "config.yaml").exists()

    @property
    def summary(self) -> dict[str, Any] | None:
        """The figures of a finished run. Raises `Mistake` for a damaged file."""
        path = self.path / "summary.json"
        try:
            found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        except ValueError:
            raise Mistake(f"{path} is damaged. Remove it, and the same command writes it again: rm '{path}'") from None
        return found

    def check(self, config: dict[str, Any]) -> None:
        """Raise `Mistake` when a run with another config has begun here."""
        if not self.began:
            check(
                not candidates(self.checkpoint),
                "name",
                self.path.name,
                f"{self.path} has checkpoints of a run whose config.yaml is gone",
                f"{self._another(config)}, or remove that folder",
            )
            return
        there = as_now(leaves(kept(self.path / "config.yaml") or {}))
        here = as_now(leaves(config))
        keys = [key for key in sorted({*there, *here}) if not incidental(key) and there.get(key) != here.get(key)]
        if published(here) and "data.root" in keys:
            keys.remove("data.root")
        if keys:
            differences = ", ".join(f"{key} is {there.get(key)} there and {here.get(key)} now" for key in keys[:3])
            more = f", and {len(keys) - 3} more keys" if len(keys) > 3 else ""
            raise Mistake(
                f"{self.path} holds a run with another config ({differences}{more}). "
                f"Type {self._another(config)}, or remove that folder"
            )

    def _another(self, config: dict[str, Any]) -> str:
        """What makes a command's run lie elsewhere."""
        typed = config.get("name", self.path.name) != self.path.name
        return "hydra.run.dir=ANOTHER_FOLDER" if typed else "name=ANOTHER_NAME"

    def begin(self, config: dict[str, Any], overrides: Sequence[str]) -> None:
        """Write down what runs here."""
        write_text(self.path / "overrides.yaml", yaml.safe_dump(list(overrides)))
        write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def held(path: Path) -> bool:
    """Whether a process of this machine runs in a folder. Trying its lock would tell too, but could turn a run away."""
    try:
        locks, number = Path("/proc/locks").read_text(), path.stat().st_ino
    except OSError:
        return False
    return re.search(rf"FLOCK +ADVISORY +WRITE +\d+ +\S+:{number} ", locks) is not None


def remove_empty(path: Path) -> None:
    """Remove a folder and then the folders above it within `outputs`, as far as they are empty."""
    for folder in (path, *path.parents):
        try:
            folder.rmdir()
        except OSError:
            return
        if folder.name == "outputs":
            return
