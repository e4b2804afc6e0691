"""swinexp: experiments with Swin Transformers on small images, configured by Hydra."""

import os
import signal
import sys
from pathlib import Path

__version__ = "0.1.0"


def nothing_begun(number: int, _: object) -> None:
    """A signal while a command is being imported: what an exception would become there is not foreseeable."""
    os.write(2, b"swinexp: interrupted\n")
    os._exit(128 + number)


# As `python -m` has it until it has found the module, or the command `swinexp`. Who ignores ctrl-C goes on doing so.
_program = os.path.basename(sys.argv[0]) if sys.argv else ""
_module = any(each.split(".")[0] == "swinexp" for each in sys.orig_argv)
_command = _program == "swinexp" or (_program == "-m" and _module)  # no package of somebody else's that imports this
if _command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, nothing_begun)

HERE = Path(__file__).resolve().parent


def _found(folder: str) -> Path:
    """Beside the package in a checkout, inside it in a wheel."""
    return next(path for path in (HERE / folder, HERE.parent / folder) if path.is_dir())


CONF = _found("conf")
SWEEPS = _found("sweeps")
