"""The training loop. All that changes during a run is in `State`; everything else is a function.

Every random draw is decided by (seed, epoch or step) alone, so a run that was interrupted and resumed is, on the
same CPU, equal to the last bit to one that was not.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from swinexp.augment import augment, mirrored_in_turn, normalise
from swinexp.data import Dataset, Split, load
from swinexp.folder import write_atomically
from swinexp.mistake import Mistake, check, first_line, one_of
from swinexp.optim import build_optimizer, lr_scale, set_lr
from swinexp.swin import Swin, fit, freeze, read

if TYPE_CHECKING:
    from swinexp.config import Run

log = logging.getLogger(__name__)

CHECKPOINT_VERSION = 2
EVALUATION_BATCH = {"cpu": 128, "cuda": 1024}  # 128 fits a CPU's cache: 1.3 times as fast as 512
OBJECTIVES = (
    "val/accuracy",
    "val/loss",
    "best/val/accuracy",
    "best/val/loss",
    "train/loss",
    "train/images_per_second",
    "val/images_per_second",
    "parameters",
    "flops",
    "activations",
)
SPEEDS = ("train/images_per_second", "val/images_per_second")
TEST_OBJECTIVES = ("test/accuracy", "test/loss")
PRECISIONS = ("auto", "fp32", "bf16")

Metrics = Mapping[str, float]
Watch = Callable[[int, Metrics], object]
Tick = Callable[[int], object]


@dataclass
class Trainer:
    """How long, how large, and on what. `clip_norm` is over all gradients together; 0 does not clip."""

    epochs: int
    batch_size: int
    label_smoothing: float
    clip_norm: float
    device: str
    precision: str
    compile: bool
    limit_train: int | None

    def __post_init__(self) -> None:
        check(self.epochs >= 1, "trainer.epochs", self.epochs, "at least 1", "trainer.epochs=30")
        check(self.batch_size >= 1, "trainer.batch_size", self.batch_size, "at least 1", "trainer.batch_size=128")
        check(
            0 <= self.label_smoothing < 1,
            "trainer.label_smoothing",
            self.label_smoothing,
            "a share in [0, 1)",
            "trainer.label_smoothing=0.1",
        )
        check(
            0 <= self.clip_norm < math.inf,
            "trainer.clip_norm",
            self.clip_norm,
            "a norm, or 0 for off",
            "trainer.clip_norm=1",
        )
        one_of("trainer.precision", self.precision, PRECISIONS)


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop; it stopped after a step, and a checkpoint holds all of it."""

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number
        self.checkpoint = checkpoint


@dataclass
class State:
    """All that changes while training. `step` counts optimizer steps from the start of the run.

    `loss_sum` and `seconds` belong to the epoch under way; `history` holds the metrics of the finished ones.
    """

    model: nn.Module
    forward: nn.Module  # the model, compiled or as it is
    optimizer: torch.optim.Optimizer
    loss_sum: Tensor
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def close_epoch(self, evaluation: Metrics, steps: int, images: int) -> None:
        """Turn what the epoch gathered into its metrics, and start on the next."""
        self.history.append(
            {
                "train/loss": self.loss_sum.item() / steps,
                "train/lr": self.optimizer.param_groups[0]["lr"],
                "train/seconds": self.seconds,
                "train/images_per_second": images / self.seconds,
                **evaluation,
            }
        )
        self.loss_sum.zero_()
        self.seconds = 0.0

    def save(self, path: Path) -> None:
        """Write a checkpoint that takes the place of the last one only when it is whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        saved = {
            "version": CHECKPOINT_VERSION,
            "device": self.loss_sum.device.type,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_sum": self.loss_sum,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }
        write_atomically(path, lambda file: torch.save(saved, file))

    def restore(self, path: Path) -> None:
        """Go back to a checkpoint. Raises `Mistake` when it cannot be read."""
        try:
            saved = torch.load(path, map_location=self.loss_sum.device, weights_only=True)
            if saved["version"] != CHECKPOINT_VERSION:
                raise ValueError(f"its version is {saved['version']}, this is {CHECKPOINT_VERSION}")
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
        except Exception as error:  # a damaged file raises almost anything
            raise Mistake(
                f"{path} cannot be read ({first_line(error)}). Remove it to train from the start: rm '{path}'"
            ) from error
        if saved["device"] != self.loss_sum.device.type:
            log.warning(
                "this run began on a %s device and goes on on a %s one: its figures are of both",
                saved["device"],
                self.loss_sum.device.type,
            )
        self.loss_sum = saved["loss_sum"]
        self.step, self.seconds, self.history = saved["step"], saved["seconds"], saved["history"]


def derive(seed: int, *path: object) -> int:
    """A seed for one purpose out of the run's: the same for the same arguments, unrelated for others."""
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # generators take 63 bits


def pick_device(trainer: Trainer) -> torch.device:
    """The device that `trainer.device` names; auto is the GPU where there is one. Raises `Mistake`."""
    if trainer.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(trainer.device)
    except RuntimeError:
        device = None
    check(
        device is not None and (device.type == "cuda" or str(device) == "cpu"),
        "trainer.device",
        trainer.device,
        "one of auto, cpu, cuda, cuda:N",
        "trainer.device=auto",
    )
    assert device is not None
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    check(
        device.type == "cpu" or (device.index or 0) < count,
        "trainer.device",
        trainer.device,
        f"this machine has {count} CUDA GPUs",
        "trainer.device=auto" if count else "trainer.device=cpu",
    )
    return device


def autocast(trainer: Trainer, device: torch.device) -> AbstractContextManager[Any]:
    """Run matrix products in `trainer.precision`; auto is bf16 on a GPU and fp32 on a CPU."""
    chosen = trainer.precision
    if chosen == "auto":
        chosen = "bf16" if device.type == "cuda" else "fp32"
    return nullcontext() if chosen == "fp32" else torch.autocast(device.type, torch.bfloat16)


def default_generator(device: torch.device) -> Generator:
    """The generator that layers draw from on a device; seeding it alone takes 1 µs, `torch.manual_seed` 90."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator


def deterministic(device: torch.device) -> None:
    """Have every operation give the same bits each time."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it only costs time


def build_model(run: Run, classes: int) -> Swin:
    """The network of a run, with the initial weights that its seed decides, and what is frozen of it.

    Raises `Mistake` when `model.freeze` names nothing.
    """
    torch.manual_seed(derive(run.seed, "weights"))
    model = Swin(run.model, run.window, run.patch, run.attention, run.block, run.data.image_size, classes)
    freeze(model, run.model.freeze)
    return model


def as_the_network_sees(run: Run, dataset: Dataset) -> Dataset:
    """The data, with 0 and 1 for the mean and std of the pixels when those are not to be normalised."""
    return dataset if run.augmentation.normalise else replace(dataset, mean=torch.zeros(3), std=torch.ones(3))


def prepare(run: Run, resuming: bool = False) -> tuple[Swin, Dataset]:
    """The network and the data of a run, on its device; when `resuming`, its weights will come from a checkpoint.

    Raises `Mistake`: all that can be wrong with a config has been looked at when this returns.
    """
    device = pick_device(run.trainer)
    deterministic(device)
    pretrained = None if resuming else run.model.pretrained
    weights = None if pretrained is None else read(pretrained)  # before the data, which may take minutes
    dataset = load(run.data, run.test, run.trainer.limit_train)
    images = len(dataset.train)
    check(
        run.trainer.batch_size <= images,
        "trainer.batch_size",
        run.trainer.batch_size,
        f"there are only {images} training images",
        f"trainer.batch_size={2 ** (images.bit_length() - 1)}",
    )
    model = build_model(run, len(dataset.classes))
    report = None if weights is None else fit(model, weights)
    if device.type == "cpu":
        reason = "as asked" if run.trainer.device == "cpu" else "no GPU was found"
        log.info("training on the CPU (%s; %d threads)", reason, torch.get_num_threads())
    if report is not None:
        log.info("model.pretrained: %s", report)
    frozen = [p.numel() for p in model.parameters() if not p.requires_grad]
    if frozen:
        whole = sum(p.numel() for p in model.parameters())
        log.info("model.freeze: %s of %s parameters are trained", f"{whole - sum(frozen):,}", f"{whole:,}")
    dataset = as_the_network_sees(run, dataset)
    return model.to(device), dataset.to(device, run.data.placement)


def train(
    run: Run, model: Swin, dataset: Dataset, checkpoint: Path, watch: Watch, tick: Tick | None = None
) -> dict[str, float]:
    """Train until `run.trainer.epochs` epochs are done, from `checkpoint` on when that file is there.

    `watch` receives each epoch, from 1, and its metrics when its checkpoint is written; on resuming, first those of
    the epochs that were finished before. `tick` receives the number of finished steps after each.
    Returns the figures of the whole run.
    Raises `Interrupted` after SIGINT or SIGTERM, with a checkpoint of the last finished step.
    """
    device = dataset.mean.device
    forward = cast(nn.Module, torch.compile(model)) if run.trainer.compile else model
    state = State(model, forward, build_optimizer(run.optimizer, model), torch.zeros((), device=device))
    steps = steps_per_epoch(run, dataset)
    if checkpoint.exists():
        state.restore(checkpoint)
        log.info("resuming after epoch %d (step %d)", len(state.history), state.step)
    for epoch, metrics in enumerate(state.history, start=1):
        watch(epoch, metrics)
    if run.schedule.warmup_epochs > run.trainer.epochs:
        log.warning(
            "schedule.warmup_epochs=%g is longer than trainer.epochs=%d: the lr only reaches %.0f %% of its peak",
            run.schedule.warmup_epochs,
            run.trainer.epochs,
            100 * run.trainer.epochs / run.schedule.warmup_epochs,
        )
    with stop_signals() as stop:
        while len(state.history) < run.trainer.epochs:
            finished = train_epoch(run, state, dataset, tick, stop)
            if finished:
                began = time.perf_counter()
                evaluation = evaluate(run, state.forward, dataset.val, dataset, "val")
                evaluation["val/seconds"] = time.perf_counter() - began  # its figures have waited for the device
                evaluation["val/images_per_second"] = len(dataset.val) / evaluation["val/seconds"]
                state.close_epoch(evaluation, steps, steps * run.trainer.batch_size)
            state.save(checkpoint)
            if finished:
                watch(len(state.history), state.history[-1])
            if stop and len(state.history) < run.trainer.epochs:
                raise Interrupted(stop[0], checkpoint)
    figures = summarise(state.history)
    if dataset.test is not None:
        figures |= evaluate(run, state.forward, dataset.test.to(device), dataset, "test")
    return figures


def steps_per_epoch(run: Run, dataset: Dataset) -> int:
    """Whole batches only: an image that one epoch's order leaves over has its turn in another's."""
    return len(dataset.train) // run.trainer.batch_size


def train_epoch(run: Run, state: State, dataset: Dataset, tick: Tick | None, stop: list[int]) -> bool:
    """Train from where `state` is to the end of its epoch. False when `stop` was filled before that.

    Nothing in a step waits for the device.
    """
    device, train_set = dataset.mean.device, dataset.train
    batch_size, repeats = run.trainer.batch_size, run.augmentation.repeats
    steps = steps_per_epoch(run, dataset)
    epoch, start = divmod(state.step, steps)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    generator, drop_path = Generator(device), default_generator(device)
    generator.manual_seed(derive(run.seed, "order", epoch))
    order = torch.randperm(len(train_set), generator=generator, device=device)
    views = steps * batch_size  # of the epoch; the last image may have fewer
    order = order[: math.ceil(views / repeats)].repeat_interleave(repeats)[:views]
    mirrored: Sequence[Tensor | None] = [None] * steps
    if run.augmentation.flip_in_turn:
        generator.manual_seed(derive(run.seed, "flip"))
        mirrored = mirrored_in_turn(len(train_set), epoch, generator)[order].split(batch_size)
    batches = train_set.each(order.to(train_set.labels.device).split(batch_size)[start:steps])  # where the images lie
    state.forward.train()
    began = time.perf_counter()
    for batch, flips in zip(batches, mirrored[start:steps], strict=True):
        # Reseeded for every step, so that a resumed step is the same step: for augmentation, and for drop path.
        generator.manual_seed(derive(run.seed, "augmentation", state.step))
        drop_path.manual_seed(derive(run.seed, "drop path", state.step))
        images, labels = augment(
            run.augmentation,
            batch.images,
            batch.labels,
            len(dataset.classes),
            dataset.mean,
            dataset.std,
            generator,
            flips,
        )
        # The lr belongs to the end of the step: the first step moves, the last one is at the schedule's end.
        set_lr(state.optimizer, lr_scale(run.schedule, (state.step + 1) / steps, run.trainer.epochs))
        with autocast(run.trainer, device):
            logits = state.forward(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=run.trainer.label_smoothing)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if run.trainer.clip_norm:
            nn.utils.clip_grad_norm_(parameters, run.trainer.clip_norm)
        state.optimizer.step()
        state.loss_sum += loss.detach()
        state.step += 1
        if tick is not None:
            tick(state.step)
        if stop:
            break
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    state.seconds += time.perf_counter() - began
    return state.step == (epoch + 1) * steps


@torch.no_grad()
def evaluate(run: Run, forward: nn.Module, split: Split, dataset: Dataset, name: str) -> dict[str, float]:
    """{"<name>/loss", "<name>/accuracy"} over every image of a split, once, without augmentation or label smoothing."""
    device = dataset.mean.device
    forward.eval()
    loss, correct = torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.int64)
    for batch in split.batches(EVALUATION_BATCH[device.type]):
        with autocast(run.trainer, device):
            logits = forward(normalise(batch.images, dataset.mean, dataset.std))
        loss += F.cross_entropy(logits.float(), batch.labels, reduction="sum")
        correct += (logits.argmax(dim=1) == batch.labels).sum()
    return {f"{name}/loss": loss.item() / len(split), f"{name}/accuracy": correct.item() / len(split)}


def summarise(history: Sequence[Metrics]) -> dict[str, float]:
    """The figures of a run: the last epoch's, and the best epoch's under a name of their own.

    Throughput is the median of the epochs after the first, which also warms up; of the first if it is the only one.
    """
    best = max(range(len(history)), key=lambda epoch: history[epoch]["val/accuracy"])
    last = history[-1]
    return {
        "val/accuracy": last["val/accuracy"],
        "val/loss": last["val/loss"],
        "train/loss": last["train/loss"],
        **{key: statistics.median(m[key] for m in history[1:] or history) for key in SPEEDS},
        "best/epoch": best + 1,
        "best/val/accuracy": history[best]["val/accuracy"],
        "best/val/loss": history[best]["val/loss"],
        "epochs": len(history),
        "seconds": sum(m["train/seconds"] + m["val/seconds"] for m in history),
    }


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM put their number in, so that the loop can end after a whole step.

    A second SIGINT interrupts at once.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread can receive signals
        yield received
        return

    def receive(number: int, _: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
