"""The training loop. All that changes during a run is in `State`; everything else is a function.

Every random draw is decided by (seed, epoch or step) alone, so a run that was interrupted and resumed is, on the
same CPU, equal to the last bit to one that was not.
"""

from swinexp.train.batches import augmented
from swinexp.train.compiling import compile_model
from swinexp.train.devices import autocast, derive, pick_device, settle
from swinexp.train.evaluation import evaluate, predictions
from swinexp.train.loop import summarise, train, train_epoch
from swinexp.train.options import EMA_OBJECTIVES, OBJECTIVES, TEST_OBJECTIVES, Trainer
from swinexp.train.processes import Left, followed
from swinexp.train.setup import as_the_network_sees, build_model, prepare, steps_per_epoch
from swinexp.train.signals import Asked, Interrupted
from swinexp.train.state import State, build_state

__all__ = [
    "EMA_OBJECTIVES",
    "OBJECTIVES",
    "TEST_OBJECTIVES",
    "Asked",
    "Interrupted",
    "Left",
    "State",
    "Trainer",
    "as_the_network_sees",
    "augmented",
    "autocast",
    "build_model",
    "build_state",
    "compile_model",
    "derive",
    "evaluate",
    "followed",
    "pick_device",
    "predictions",
    "prepare",
    "settle",
    "steps_per_epoch",
    "summarise",
    "train",
    "train_epoch",
]
