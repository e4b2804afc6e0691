"""What a run does before its first step: compile the network, capture a step as a CUDA graph."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator

from swinexp.data import Dataset
from swinexp.mistake import Mistake, first_line
from swinexp.optim import is_recordable
from swinexp.swin import operators
from swinexp.train.batches import augmented, scaled
from swinexp.train.devices import captures, compiles
from swinexp.train.evaluation import predictions
from swinexp.train.graph import Captured, CapturedUpdate
from swinexp.train.options import Trainer
from swinexp.train.state import State, Way
from swinexp.train.step import clipped, gradients, restoring

if TYPE_CHECKING:
    from swinexp.config import Run

log = logging.getLogger(__name__)


def compile_model(run: Run, state: State, dataset: Dataset) -> float | None:
    """Make ready for the first step: compile the network for training and, where that pays, for evaluation, and capture
    a step as a CUDA graph, each if the run is to; returns the seconds that it took, or None where there is nothing to
    do.

    Both train on a batch of their own, which leaves no trace in the weights. Where the network cannot be compiled,
    `trainer.compile=auto` goes on without, and says so. Raises `Mistake` where it was asked for.
    """
    device, trainer = dataset.mean.device, run.trainer
    images = (trainer.epochs - len(state.history)) * state.steps * trainer.batch_size
    compiled, captured = compiles(trainer, device, images), captures(trainer, device)
    if not images or not (compiled or captured):
        return None
    began = time.perf_counter()
    fresh = [way.network for _, way in _ahead(run, state) if not way.network.compiled]  # others: of the run before
    if compiled and fresh:
        _keep_what_is_compiled(trainer)
        for network in fresh:
            network.compile()
    again = False
    try:
        _first_calls(run, state, dataset, captured)
    except RuntimeError as error:
        if not _compiler_failed(state, error):
            raise
        reason = first_line(error).rstrip(".")
        if trainer.compile != "auto":
            raise Mistake(
                f"trainer.compile={trainer.compile}: the network cannot be compiled ({reason}). "
                "Type trainer.compile=false, unless you can install what is missing"
            ) from error
        log.warning("the network cannot be compiled, so that training is slower: %s", reason)
        state.model.uncompile()
        if not captured:
            return None
        compiled, again = False, True
    if again:  # not within the handler, where the error would keep a graph of the parameters
        _first_calls(run, state, dataset, captured)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    if compiled or any(way.captured is not None for way in state.ways.values()):
        log.info("%s in %.1f s", "compiled" if compiled else "captured a step as a CUDA graph", seconds)
    return seconds


def _keep_what_is_compiled(trainer: Trainer) -> None:
    """Have torch find a network again that was compiled before, although it has autograd functions of our own.

    What those do is in the graph that is looked for, so that others are compiled anew. Of an operator there is its name
    alone, and torch 2.11 does not look for the type that autocast chooses: what is kept has both in its tag.
    """
    from torch._functorch import config

    with suppress(AttributeError):  # of a torch that knows no such option
        config.autograd_cache_allow_custom_autograd_functions = True
    given = os.environ.get("TORCH_COMPILE_CACHE_KEY_TAG", "")
    known = hashlib.sha256(Path(operators.__file__).read_bytes()).hexdigest()
    torch.compiler.config.cache_key_tag = f"{given}-{trainer.precision}-{known}"


def _first_calls(run: Run, state: State, dataset: Dataset, captured: bool) -> None:
    """A step and an evaluation, which have a compiled network compiled; weights and statistics stay as they are."""
    device, batch_size = dataset.mean.device, run.trainer.batch_size
    restore = restoring(dict(state.model.named_buffers()))  # of a BatchNorm
    batch = next(iter(dataset.train.each([torch.arange(batch_size, device=dataset.train.labels.device)])))
    mirrored = torch.zeros(batch_size, dtype=torch.bool, device=device)
    pixels, labels = augmented(run, dataset, batch, 0, mirrored)
    factors = state.model.draw_drop_path(batch_size, Generator(device).manual_seed(0))
    state.forget_graphs()
    if captured:
        gc.collect()  # graphs of runs before, whose end takes memory of cuBLAS's from all that were recorded by then
    try:
        for side, way in _ahead(run, state):
            way.forward.train()
            images = scaled(pixels, side)
            if captured:
                way.captured = Captured(clipped(run, state), state.parameters(), images, labels, factors)
                if is_recordable(state.optimizer):
                    way.update = CapturedUpdate(state.optimizer)
            else:
                gradients(run, state, images, labels, factors)
    except RuntimeError as error:
        if not captured or _compiler_failed(state, error):
            raise
        reason = first_line(error)
        log.warning("a step cannot be captured as a CUDA graph, so that small batches are slower: %s", reason)
        state.forget_graphs()  # those that were, too, for the same reason
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        restore()
    next(predictions(run, state.model, dataset.val, dataset), None)  # of several processes one may have no batch


def _ahead(run: Run, state: State) -> list[tuple[int, Way]]:
    """The ways that what is left of the run will go, by the side of their images."""
    left = range(len(state.history), run.trainer.epochs)
    sides = dict.fromkeys(run.trainer.side(epoch, run.data.image_size) for epoch in left)
    return [(side, state.ways[side]) for side in sides]


def _compiler_failed(state: State, error: RuntimeError) -> bool:
    # Asked of a compiled network alone: torch imports its compiler at the first mention.
    return state.model.compiled and isinstance(error, torch._dynamo.exc.TorchDynamoException)
