"""A user's mistakes: found early, told in one line that says what to type instead.

Nothing heavy is imported here, so that a typo is answered at once.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Sequence
from typing import Any

RAISES = "SWINEXP_RAISES"  # in the environment: HYDRA_FULL_ERROR is there for us, and not the user's
TOLD = {"told": True}  # a log record's `extra`: standard error has the line, the console needs no second one


class Mistake(Exception):
    """What was asked for cannot be. The message is one line; `swinexp.run` prints it and exits with 2."""

    told = False  # printed already


class Ended(Exception):
    """A run came to an end that is nobody's mistake and no bug. The message is one line; the exit code is 1."""

    told = False


class Diverged(Ended):
    """The loss is no longer finite."""


class OutOfMemory(Ended):
    """The device has not enough memory for a part of a batch."""


# Signals that asked a run to stop which had come to its end: who would begin another one follows them.
too_late: list[int] = []


def interrupt(number: int) -> KeyboardInterrupt:
    """What a signal raises; its `exit_code` is the shell's for it."""
    error = KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")
    error.exit_code = 128 + number  # type: ignore[attr-defined]
    return error


def let_go(error: BaseException | None) -> None:
    """Have an error, and those before it, forget where it was: the frames keep all that a run had in memory."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__ or error.__cause__


def check(condition: bool, key: str, value: object, problem: str, instead: str) -> None:
    """Raise `Mistake` naming the key, its value, what is allowed and what to type, unless `condition` holds."""
    if not condition:
        raise Mistake(f"{key}={shown(value)}: {problem}. Type {instead}")


def one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    """Raise `Mistake` unless `value` is one of `allowed`; the nearest, or else the first, is what to type instead."""
    check(value in allowed, key, value, f"one of {', '.join(allowed)}", f"{key}={nearest(value, allowed)}")


def shown(value: object) -> str:
    """A value as one types it: `null`, `true`, and lists and mappings without spaces."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{shown(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(shown(item) for item in value)}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def one_line(error: BaseException, longest: int = 300) -> str:
    """All of an error's message on one line, cut where it is very long; the error's kind where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[:longest]}…"


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says anything; the error's kind where none does."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def closest(word: str, words: Sequence[str]) -> str | None:
    """Of several words the one that was probably meant: that it begins, has the letters of, or is spelt most like."""
    lower = {each.lower(): each for each in reversed(words)}
    begun = [each for each in lower if len(word) > 1 and each.startswith(word.lower())]
    swapped = [each for each in lower if sorted(each) == sorted(word.lower())]
    alike = begun[-1:] or swapped[-1:] or difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return lower[alike[0]] if alike else None


def nearest(option: str, options: Sequence[str]) -> str:
    return closest(option, options) or options[0] if options else "OPTION"


def flag_meant(typed: str, flags: Sequence[str], keys: Sequence[str] = (), value: str = "") -> str | None:
    """What to type for a flag that a command lacks: one of its `flags`, such as --out=FILE, or a key, without dashes.

    None where it is like neither. `value` is what the flag was given, where that stands apart.
    """
    name, _, given = typed.lstrip("-").partition("=")
    names = {flag.lstrip("-").partition("=")[0]: flag for flag in flags}
    meant = closest(name, [*names, *keys])
    if meant is None:
        return None
    flag, takes, example = names.get(meant, f"{meant}=VALUE").partition("=")
    return f"{flag}={given or value or example}" if takes else flag


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """{"trainer.epochs": 30, …} of nested mappings."""
    if not isinstance(tree, dict):
        return {path: tree}
    below = (leaves(child, f"{path}.{name}" if path else str(name)) for name, child in tree.items())
    return {key: value for part in below for key, value in part.items()}
