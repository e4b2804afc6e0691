"""The Optuna sweeper: `options` (what decides it), `space` (what is varied), `search` (samplers and pruners),
`plan` (all that, checked), `storage`, `patience` (with a server that is away), `study` (who may take which trial),
`trials` (what they say of themselves), `budget` (when there is enough), `liveness` (of workers), `worker` (takes
trials), `workers` (several of those), `jobs` (on a Slurm cluster), `trial` (what a run sees of its), `ranking`, `board`
(the terminal), `report` (what is left behind), `sweeper` (the way through).

Only what a run needs is imported here, which is not Optuna.
"""

from swinexp.sweep.trial import Forbidden, Pruned, current_trial

__all__ = ["Forbidden", "Pruned", "current_trial"]
