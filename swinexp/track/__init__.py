"""What a run leaves behind: W&B, metrics.jsonl, summary.json, curves.png, and what the console shows meanwhile."""

from swinexp.track.about import chip, git_diff, git_revision
from swinexp.track.console import ConsoleHandler, print_summary
from swinexp.track.history import draw_curves, finite, read_history
from swinexp.track.options import Wandb
from swinexp.track.tracker import Tracker
from swinexp.track.wandb import key_is_configured, read_id

__all__ = [
    "ConsoleHandler",
    "Tracker",
    "Wandb",
    "chip",
    "draw_curves",
    "finite",
    "git_diff",
    "git_revision",
    "key_is_configured",
    "print_summary",
    "read_history",
    "read_id",
]
