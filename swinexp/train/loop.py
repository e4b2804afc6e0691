"""The way from a `State` to the next one: a step, an epoch, a run."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from swinexp.augment import augment, mirrored_in_turn, normalise
from swinexp.data import Dataset, Split
from swinexp.folder import candidates
from swinexp.mistake import Mistake, OutOfMemory, first_line
from swinexp.optim import averaged, lr_scale, set_lr
from swinexp.ranks import rank, size
from swinexp.swin import Swin, by_threads
from swinexp.train.checkpoint import Saving
from swinexp.train.devices import autocast, captures, compiles, derive
from swinexp.train.graph import Captured, Gradients
from swinexp.train.processes import joined, shared, summed, unshared
from swinexp.train.setup import steps_per_epoch
from swinexp.train.signals import SAVING, Asked, Interrupted
from swinexp.train.state import Metrics, State, best_epoch, build_state

if TYPE_CHECKING:
    from swinexp.config import Run

log = logging.getLogger(__name__)

EVALUATION_BATCH = {"cpu": 128, "cuda": 1024}  # 128 fits a CPU's cache: 1.3 times as fast as 512
AT_ONCE = {"cpu": 5 * 2**18, "cuda": 2**24}  # values of images to augment together: a cache, and what fills a GPU
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
        figures = summarise(state.history) | ({} if compile_seconds is None else {"compile_seconds": compile_seconds})
        if device.type == "cuda":
            figures["gpu_memory"] = torch.cuda.max_memory_allocated(device)
        if dataset.test is not None:
            figures |= _judge(run, state, dataset.test.to(device), dataset, "test")
    return figures


def done(run: Run, history: Sequence[Metrics]) -> bool:
    """All epochs are trained, or as many as `trainer.patience` went by without a better val/accuracy."""
    waited = len(history) - best_epoch(history) if history else 0
    return len(history) >= run.trainer.epochs or 0 < run.trainer.patience <= waited


def train_epoch(run: Run, state: State, dataset: Dataset, tick: Tick | None = None, asked: Asked | None = None) -> int:
    """Train from where `state` is to the end of its epoch, and return 0; or until a signal, and return that.

    Nothing in a step waits for the device, unless `trainer.on_nan=skip`, or `trainer.precision=fp16` with an optimizer
    that is not fused.
    """
    device, batch_size, steps, epoch = dataset.mean.device, run.trainer.batch_size, state.steps, len(state.history)
    generator = Generator(device)
    state.forward.train()
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


def batches_at_once(batch_size: int, values: int, device: torch.device) -> int:
    """How many batches of images with so many values each are augmented together."""
    return max(1, AT_ONCE[device.type] // (batch_size * values))


def batches(run: Run, state: State, dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches from where `state` is to the end of its epoch, as the network is trained on them; see `augmented`.

    Small batches are augmented several at a time, which are the same ones wherever an epoch goes on: one batch is
    too little work for the number of operations.
    """
    device, train_set = dataset.mean.device, dataset.train
    batch_size, repeats = run.trainer.batch_size, run.augmentation.repeats
    steps, epoch = state.steps, len(state.history)
    generator = Generator(device)
    generator.manual_seed(derive(run.seed, "order", epoch))
    order = torch.randperm(len(train_set), generator=generator, device=device)
    views = steps * batch_size  # of the epoch; the last image may have fewer
    order = order[: math.ceil(views / repeats)].repeat_interleave(repeats)[:views]
    start = state.step - epoch * steps
    together = min(steps, batches_at_once(batch_size, train_set.images[0].numel(), device))
    firsts = range(start - start % together, steps, together)
    parts = [slice(first * batch_size, (first + together) * batch_size) for first in firsts]
    mirrored: Sequence[Tensor | None] = [None] * len(parts)
    if run.augmentation.flip_in_turn:
        generator.manual_seed(derive(run.seed, "flip"))
        turns = mirrored_in_turn(len(train_set), epoch, generator)[order]
        mirrored = [turns[part] for part in parts]
    lying = order.to(train_set.labels.device)  # where the images lie
    several = train_set.each(lying[part] for part in parts)
    for first, split, flips in zip(firsts, several, mirrored, strict=True):
        seed = derive(run.seed, "augmentation", epoch * steps + first)
        images, labels = augmented(run, dataset, split, seed, flips, batch_size)
        trained = max(0, start - first)
        yield from zip(images.split(batch_size)[trained:], labels.split(batch_size)[trained:], strict=True)


def augmented(
    run: Run, dataset: Dataset, split: Split, seed: int, mirrored: Tensor | None = None, batch: int | None = None
) -> tuple[Tensor, Tensor]:
    """Images as the network is trained on them, (B, 3, S, S), and label weights (B, K); see `augment`."""
    mean, std, classes = dataset.mean, dataset.std, len(dataset.classes)
    generator = Generator(mean.device).manual_seed(seed)
    host = generator if mean.device.type == "cpu" else Generator().manual_seed(seed)
    return augment(run.augmentation, split.images, split.labels, classes, mean, std, generator, mirrored, batch, host)


def restoring(tensors: Mapping[str, Tensor]) -> Callable[[], None]:
    """What gives tensors the values again that they have now."""
    before = {name: value.clone() for name, value in tensors.items()}

    def restore() -> None:
        for name, value in before.items():
            tensors[name].copy_(value)

    return restore


def train_step(run: Run, state: State, images: Tensor, labels: Tensor, factors: Tensor | None, index: int) -> None:
    """One optimizer step over a batch, whose loss and gradient norm become those of step `index` of the epoch."""
    skips = run.trainer.on_nan == "skip"
    restore = restoring(state.running if skips else {})
    loss, norm = (state.captured or clipped(run, state))(images, labels, factors)
    state.losses[index].copy_(loss)
    state.norms[index].copy_(norm)
    if skips and not norm.isfinite():  # waits for the device
        state.losses[index].fill_(math.nan)
        restore()
        if state.scaler is not None:
            state.scaler.update()
        return
    if state.scaler is not None:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        state.optimizer.step()
    if state.ema is not None:
        state.ema.update(state.step + 1)


def clipped(run: Run, state: State) -> Gradients:
    """What leaves the gradients of a batch in the parameters, clipped; it returns the loss and their norm before."""

    def step(images: Tensor, labels: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor]:
        loss = gradients(run, state, images, labels, factors)
        if state.scaler is not None:
            state.scaler.unscale_(state.optimizer)
        return loss, clip(run, state.parameters())

    return step


def gradients(run: Run, state: State, images: Tensor, labels: Tensor, factors: Tensor | None) -> Tensor:
    """Leave the gradient of a batch's mean loss in the parameters; returns this process's share of that loss.

    Raises `OutOfMemory`.
    """
    restore = restoring(state.running if run.trainer.fit_memory else {})
    while True:
        try:
            return _gradients(run, state, images, labels, factors)
        except torch.OutOfMemoryError:
            largest = math.ceil(len(images) / (size() * state.parts))
            smaller = math.ceil(len(images) / (size() * 2 * state.parts))
            if not run.trainer.fit_memory or size() > 1 or largest == 1:
                instead = f"Type trainer.accumulate={2 * state.parts}"
                instead += " or trainer.fit_memory=true" if size() == 1 else ""
                raise OutOfMemory(
                    f"{images.device} has not enough memory for {largest} images of trainer.batch_size="
                    f"{run.trainer.batch_size} at once. {instead if largest > 1 else 'Type a smaller model'}"
                ) from None
        # Not within the handler, where the error would keep what was computed.
        state.optimizer.zero_grad(set_to_none=True)
        restore()  # what a part counted that is computed again
        torch.cuda.empty_cache()
        state.parts *= 2
        log.warning("%d images at once are too many for the memory: going on with %d", largest, smaller)


def _gradients(run: Run, state: State, images: Tensor, labels: Tensor, factors: Tensor | None) -> Tensor:
    state.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=images.device)
    parts = shared(len(images), state.parts)
    for part in parts:
        with nullcontext() if part is parts[-1] else unshared(state.forward):
            with autocast(run.trainer, images.device):
                logits = by_threads(state.forward, images[part], None if factors is None else factors[:, :, part])
            loss = F.cross_entropy(
                logits.float(), labels[part], label_smoothing=run.trainer.label_smoothing, reduction="sum"
            ) / len(images)
            total += loss.detach()
            loss = loss * size()  # for the mean over all processes is taken of their gradients
            (loss if state.scaler is None else state.scaler.scale(loss)).backward()
    return total


def clip(run: Run, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Scale the gradients down to `trainer.clip_norm`, all together or each; returns their norm before, of all."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    most = run.trainer.clip_norm
    norms = torch.stack(torch._foreach_norm(gradients))
    norm = torch.linalg.vector_norm(norms)
    if most and run.trainer.clip_per_tensor:
        torch._foreach_mul_(gradients, list((most / (norms + 1e-6)).clamp(max=1).unbind()))
    elif most:
        torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1))
    return norm


def _close_epoch(run: Run, state: State, dataset: Dataset, asked: Asked) -> bool:
    """Judge the epoch and write it into the history; False when a signal came before that was done."""
    losses, norms = state.gathered(run)  # first: a network that has diverged need not be judged
    began = time.perf_counter()
    try:
        evaluation = _judge(run, state, dataset.val, dataset, "val", asked if size() == 1 else None)
    except _Stopped:
        return False
    evaluation["val/seconds"] = time.perf_counter() - began  # its figures have waited for the device
    judged = len(dataset.val) * (1 if state.ema is None else 2)
    evaluation["val/images_per_second"] = judged / evaluation["val/seconds"]
    state.close_epoch(run, evaluation, losses, norms)
    return True


class _Stopped(Exception):
    """A signal came while a split was being judged."""


def _judge(
    run: Run, state: State, split: Split, dataset: Dataset, name: str, asked: Asked | None = None
) -> dict[str, float]:
    """The figures of a split with the weights, and with their moving average under names of its own."""
    with averaged(state.optimizer):
        figures = evaluate(run, state.model, split, dataset, name, asked)
    if state.ema is not None:
        with state.ema.applied():
            figures |= evaluate(run, state.model, split, dataset, f"ema/{name}", asked)
    return figures


@torch.no_grad()
def evaluate(
    run: Run, model: nn.Module, split: Split, dataset: Dataset, name: str, asked: Asked | None = None
) -> dict[str, float]:
    """{"<name>/loss", "<name>/accuracy"} over every image of a split, once, without augmentation or label smoothing."""
    device = dataset.mean.device
    loss, correct = torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.int64)
    for logits, labels in predictions(run, model, split, dataset):
        loss += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(dim=1) == labels).sum()
        if asked is not None and asked.received:
            raise _Stopped
    summed(loss, correct)
    return {f"{name}/loss": loss.item() / len(split), f"{name}/accuracy": correct.item() / len(split)}


@torch.no_grad()
def predictions(
    run: Run, model: nn.Module, split: Split, dataset: Dataset, alone: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (B, classes) in fp32 and labels (B,), batch by batch, of every image of a split once, in order.

    Several processes take turns with the batches, unless this one is `alone`.
    """
    device = dataset.mean.device
    batch_size = EVALUATION_BATCH[device.type]
    model.eval()
    first, each = (0, 1) if alone else (rank(), size())
    starts = range(first * batch_size, len(split), each * batch_size)
    for batch in split.each(slice(start, start + batch_size) for start in starts):
        # A last batch of another size is not worth compiling for.
        forward = model if len(batch) == batch_size else model.forward
        with autocast(run.trainer, device):
            logits = by_threads(forward, normalise(batch.images, dataset.mean, dataset.std))
        yield logits.float(), batch.labels


def compile_model(run: Run, state: State, dataset: Dataset) -> float | None:
    """Make ready for the first step: compile the network for training and for evaluation, and capture a step as a CUDA
    graph, each if the run is to; returns the seconds that it took, or None where there is nothing to do.

    Both train on a batch of their own, which leaves no trace in the weights. Where the network cannot be compiled,
    `trainer.compile=auto` goes on without, and says so. Raises `Mistake` where it was asked for.
    """
    device, trainer = dataset.mean.device, run.trainer
    images = (trainer.epochs - len(state.history)) * state.steps * trainer.batch_size
    compiled, captured = compiles(trainer, device, images), captures(trainer, device)
    if not images or not (compiled or captured):
        return None
    began = time.perf_counter()
    if compiled and not state.model.compiled:  # else it is the network of the run before
        state.model.compile()
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
    if compiled or state.captured is not None:
        log.info("%s in %.1f s", "compiled" if compiled else "captured a step as a CUDA graph", seconds)
    return seconds


def _first_calls(run: Run, state: State, dataset: Dataset, captured: bool) -> None:
    """A step and an evaluation, which have a compiled network compiled; weights and statistics stay as they are."""
    device, batch_size = dataset.mean.device, run.trainer.batch_size
    restore = restoring(dict(state.model.named_buffers()))  # of a BatchNorm
    batch = next(iter(dataset.train.each([torch.arange(batch_size, device=dataset.train.labels.device)])))
    mirrored = torch.zeros(batch_size, dtype=torch.bool, device=device)
    pixels, labels = augmented(run, dataset, batch, 0, mirrored)
    factors = state.model.draw_drop_path(batch_size, Generator(device).manual_seed(0))
    state.forward.train()
    try:
        if captured:
            state.captured = Captured(clipped(run, state), state.parameters(), pixels, labels, factors)
        else:
            gradients(run, state, pixels, labels, factors)
    except RuntimeError as error:
        if not captured or _compiler_failed(state, error):
            raise
        reason = first_line(error)
        log.warning("a step cannot be captured as a CUDA graph, so that small batches are slower: %s", reason)
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        restore()
    next(predictions(run, state.model, dataset.val, dataset), None)  # of several processes one may have no batch


def _compiler_failed(state: State, error: RuntimeError) -> bool:
    # Asked of a compiled network alone: torch imports its compiler at the first mention.
    return state.model.compiled and isinstance(error, torch._dynamo.exc.TorchDynamoException)


def summarise(history: Sequence[Metrics]) -> dict[str, float]:
    """The figures of a run: the last epoch's, and the best epoch's under a name of their own.

    Throughput is the median of the epochs after the first, which also warms up; of the first if it is the only one.
    """
    best = best_epoch(history)
    last = history[-1]
    ema = {key: value for key, value in last.items() if key.startswith("ema/")}
    return {
        "val/accuracy": last["val/accuracy"],
        "val/loss": last["val/loss"],
        **ema,
        "train/loss": last["train/loss"],
        **{key: statistics.median(m[key] for m in history[1:] or history) for key in SPEEDS},
        "best/epoch": best,
        "best/val/accuracy": history[best - 1]["val/accuracy"],
        "best/val/loss": history[best - 1]["val/loss"],
        "epochs": len(history),
        "seconds": sum(m["train/seconds"] + m["val/seconds"] for m in history),
    }
