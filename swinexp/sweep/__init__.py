"""The Optuna sweeper: `options` (what decides it), `space` (what is varied), `search` (samplers and pruners),
`storage`, `study` (who may take which trial), `worker` (takes them), `workers` (several of those), `trial` (what a run
sees of it), `board` (the terminal), `report` (what is left behind), `sweeper` (the way through them).

Only what a run needs is imported here, which is not Optuna.
"""

from swinexp.sweep.trial import Forbidden, Pruned, current_trial

__all__ = ["Forbidden", "Pruned", "current_trial"]
