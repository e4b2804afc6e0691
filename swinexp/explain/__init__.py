"""What was typed, or written in a file, and cannot be read, composed or found: in one line, with what to type instead.

`check_…` look before Hydra does, `explain` is asked for what it then raises. Nothing heavy is imported here either.
"""

from swinexp.explain.conf import NAMED, file_of, settings
from swinexp.explain.errors import NO_SLURM, NO_SUBMITIT, NO_SUCH_FOLDER, OF_A_SWEEP, explain
from swinexp.explain.files import check_best, check_files, slip
from swinexp.explain.line import check_flags, check_options, check_single
from swinexp.explain.override import no_option
from swinexp.explain.shapes import SWEEPER, misshapen, no_constraint, to_vary

__all__ = [
    "NAMED",
    "NO_SLURM",
    "NO_SUBMITIT",
    "NO_SUCH_FOLDER",
    "OF_A_SWEEP",
    "SWEEPER",
    "check_best",
    "check_files",
    "check_flags",
    "check_options",
    "check_single",
    "explain",
    "file_of",
    "misshapen",
    "no_constraint",
    "no_option",
    "settings",
    "slip",
    "to_vary",
]
