"""Optimizers, the parameter groups they work on, and learning rate schedules as pure functions of progress.

`options` says what optimizers there are and what decides them, `groups` which parameters they treat alike, `build`
makes one; `lion`, `lamb`, `muon` and `schedule_free` are those that torch lacks, or has in part. `schedules` holds
the schedules with their options, `ema` the moving average of the weights.
"""

from swinexp.optim.build import averaged, build_optimizer, is_recordable, reading_lr, resume, set_lr
from swinexp.optim.ema import Ema
from swinexp.optim.groups import Group, decays, layer, parameter_groups
from swinexp.optim.options import OPTIMIZERS, SGD, Adam, AdamW, Lamb, Lion, Muon, Optimizer, ScheduleFree
from swinexp.optim.schedules import (
    SCHEDULES,
    WSD,
    Constant,
    Cosine,
    Linear,
    OneCycle,
    Restarts,
    Schedule,
    Step,
    lr_scale,
)

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "WSD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Ema",
    "Group",
    "Lamb",
    "Linear",
    "Lion",
    "Muon",
    "OneCycle",
    "Optimizer",
    "Restarts",
    "Schedule",
    "ScheduleFree",
    "Step",
    "averaged",
    "build_optimizer",
    "decays",
    "is_recordable",
    "layer",
    "lr_scale",
    "parameter_groups",
    "reading_lr",
    "resume",
    "set_lr",
]
