"""The way from a `State` to the next one, epoch by epoch, to the end of a run."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator

from swinexp.data import Dataset
from swinexp.folder import candidates
from swinexp.optim import lr_scale, set_lr
from swinexp.ranks import rank, size
from swinexp.swin import Swin
from swinexp.train.batches import batches
from swinexp.train.checkpoint import Saving
from swinexp.train.compiling import compile_model
from swinexp.train.devices import derive
from swinexp.train.evaluation import Stopped, judge
from swinexp.train.processes import joined
from swinexp.train.setup import steps_per_epoch
from swinexp.train.signals import SAVING, Asked, Interrupted
from swinexp.train.state import Metrics, State, best_epoch, build_state
from swinexp.train.step import train_step

if TYPE_CHECKING:
    from swinexp.config import Run

log = logging.getLogger(__name__)

SPEEDS = ("train/images_per_second", "val/images_per_second")

Watch = Callable[[int, Metrics], object]
Tick = Callable[[int, float], object]


def train(
    run: Run, model: Swin, dataset: Dataset, checkpoint: Path, watch: Watch, tick: Tick | None = None
) -> dict[str, float]:
    """Train until `run.trainer.epochs` epochs are done, from `checkpoint` on, or one beside it, where there is any.

    `watch` receives each epoch, from 1, and its metrics while its checkpoint is being written; on resuming, first those
    of the epochs that a checkpoint holds. `tick` receives the number of finished steps after each, and its lr.
    Returns the figures of the whole run.
    Raises `Interrupted` after SIGINT or SIGTERM, with a checkpoint of the last finished step; SIGUSR1 only writes one.
    Raises `Diverged` and `OutOfMemory`; the last checkpoint is then of before.
    """
    device = dataset.mean.device
    with joined(device), Asked() as asked, Saving() as saving:
        state = build_state(run, model, steps_per_epoch(run, dataset))
        if candidates(checkpoint):
            state.restore(checkpoint)
            log.info("resuming after epoch %d (step %d)", len(state.history), state.step)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        compile_seconds = compile_model(run, state, dataset)
        for epoch, metrics in enumerate(state.history, start=1):
            watch(epoch, metrics)
        if run.schedule.warmup_epochs >= run.trainer.epochs:
            log.warning(
                "schedule.warmup_epochs=%g is at least trainer.epochs=%d: the lr only rises, to %.0f %% of its peak",
                run.schedule.warmup_epochs,
                run.trainer.epochs,
                100 * lr_scale(run.schedule, run.trainer.epochs, run.trainer.epochs),
            )
        steps = steps_per_epoch(run, dataset) * run.trainer.epochs
        if not any(
            lr_scale(run.schedule, run.trainer.epochs * step / steps, run.trainer.epochs)
            for step in range(1, steps + 1)
        ):
            log.warning("the lr is 0 in each of the %d steps, and nothing is learnt. Type schedule=constant", steps)
        while not done(run, state.history):
            number = train_epoch(run, state, dataset, tick, asked)
            finished = not number and _close_epoch(run, state, dataset, asked)
            if not finished:
                state.gathered(run)  # what has diverged is not kept
            if rank() == 0:
                state.save(checkpoint, run.trainer.keep, saving)
            if finished:
                watch(len(state.history), state.history[-1])
            number = number or (0 if size() > 1 else asked.now())
            asked.forget(SAVING)
            if number:
                saving.wait()  # who asks for a checkpoint may end this process next
            if number and number != SAVING and not done(run, state.history):
                raise Interrupted(number, checkpoint)
        if len(state.history) < run.trainer.epochs:
            log.info("no better val/accuracy in %d epochs (trainer.patience): the run ends", run.trainer.patience)
        figures = summarise(state.history, run.trainer.small_epochs)
        if compile_seconds is not None:
            figures["compile_seconds"] = compile_seconds
        if device.type == "cuda":
            figures["gpu_memory"] = torch.cuda.max_memory_allocated(device)
        if dataset.test is not None:
            figures |= judge(run, state, dataset.test.to(device), dataset, "test")
    return figures


def done(run: Run, history: Sequence[Metrics]) -> bool:
    """All epochs are trained, or as many as `trainer.patience` went by without a better val/accuracy, those of smaller
    images aside."""
    waited = len(history) - max(best_epoch(history), run.trainer.small_epochs) if history else 0
    return len(history) >= run.trainer.epochs or 0 < run.trainer.patience <= waited


def train_epoch(run: Run, state: State, dataset: Dataset, tick: Tick | None = None, asked: Asked | None = None) -> int:
    """Train from where `state` is to the end of its epoch, and return 0; or until a signal, and return that.

    Nothing in a step waits for the device, unless `trainer.on_nan=skip`, or `trainer.precision=fp16` with an optimizer
    that is not fused.
    """
    device, batch_size, steps, epoch = dataset.mean.device, run.trainer.batch_size, state.steps, len(state.history)
    generator = Generator(device)
    for way in state.ways.values():
        way.forward.train()
    number, began = 0, time.perf_counter()
    for images, labels in batches(run, state, dataset):
        # Reseeded for every step, so that a resumed step is the same step.
        generator.manual_seed(derive(run.seed, "drop path", state.step))
        factors = state.model.draw_drop_path(batch_size, generator)
        # The lr belongs to the end of the step: the first step moves, the last one is at the schedule's end.
        scale = lr_scale(run.schedule, (state.step + 1) / steps, run.trainer.epochs)
        set_lr(state.optimizer, scale)
        train_step(run, state, images, labels, factors, state.step - epoch * steps)
        state.step += 1
        if tick is not None:
            tick(state.step, run.optimizer.lr * scale)
        if asked is not None and (number := asked.now()):
            break
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    state.seconds += time.perf_counter() - began
    return number


def _close_epoch(run: Run, state: State, dataset: Dataset, asked: Asked) -> bool:
    """Judge the epoch and write it into the history; False when a signal came before that was done."""
    losses, norms = state.gathered(run)  # first: a network that has diverged need not be judged
    began = time.perf_counter()
    try:
        evaluation = judge(run, state, dataset.val, dataset, "val", asked if size() == 1 else None)
    except Stopped:
        return False
    evaluation["val/seconds"] = time.perf_counter() - began  # its figures have waited for the device
    judged = len(dataset.val) * (1 if state.ema is None else 2)
    evaluation["val/images_per_second"] = judged / evaluation["val/seconds"]
    state.close_epoch(run, evaluation, losses, norms)
    return True


def summarise(history: Sequence[Metrics], small: int = 0) -> dict[str, float]:
    """The figures of a run: the last epoch's, and the best epoch's under a name of their own.

    Throughput is the median of the epochs after the first, which also warms up, and after those of `small` images; of
    all where there is no other.
    """
    best = best_epoch(history)
    last = history[-1]
    ema = {key: value for key, value in last.items() if key.startswith("ema/")}
    return {
        "val/accuracy": last["val/accuracy"],
        "val/loss": last["val/loss"],
        **ema,
        "train/loss": last["train/loss"],
        **{key: statistics.median(m[key] for m in history[max(1, small) :] or history) for key in SPEEDS},
        "best/epoch": best,
        "best/val/accuracy": history[best - 1]["val/accuracy"],
        "best/val/loss": history[best - 1]["val/loss"],
        "epochs": len(history),
        "seconds": sum(m["train/seconds"] + m["val/seconds"] for m in history),
    }
