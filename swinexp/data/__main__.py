"""What a run's data are: sizes, classes, mean and std, and a contact sheet of what training sees.

    python -m swinexp.data data=digits augmentation=trivial

takes the same overrides as swinexp.run; the sheet is drawn to outputs/data/, or to --out=FILE.png.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from swinexp.folder import folder_name
from swinexp.run import compose, reported


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        print(__doc__)
        return
    overrides = [argument for argument in given if not argument.startswith("--out=")]
    places = [argument.removeprefix("--out=") for argument in given if argument not in overrides]
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # what decoding has to say
    with reported(overrides):
        from swinexp.config import typed
        from swinexp.sheet import report

        run = typed(compose(overrides, "--out=FILE"))
        default = f"outputs/data/{folder_name(run.name)}.png"
        report(run, places[-1] if places else default)


if __name__ == "__main__":
    main()
