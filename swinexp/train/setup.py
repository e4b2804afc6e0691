"""What a run trains, and on what: its network and its data, on its device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from swinexp.data import Dataset, load
from swinexp.mistake import check
from swinexp.ranks import size
from swinexp.swin import Swin, fit, freeze, read
from swinexp.train.devices import compiles, derive, pick_device, settle

if TYPE_CHECKING:
    from swinexp.config import Run

log = logging.getLogger(__name__)


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
    if device.type == "cpu" and not resuming:  # a run that began on a GPU may end here
        here = "the run is on the CPU, where it has no effect"
        check(run.trainer.precision != "tf32", "trainer.precision", "tf32", here, "trainer.precision=auto")
        check(run.trainer.compile != "graphs", "trainer.compile", "graphs", here, "trainer.compile=auto")
        check(not run.trainer.fit_memory, "trainer.fit_memory", True, here, "trainer.fit_memory=false")
    settle(run.trainer, device)
    pretrained = None if resuming else run.model.pretrained
    weights = None if pretrained is None else read(pretrained)  # before the data, which may take minutes
    kind = (run.data, run.test, run.trainer.limit_train, run.augmentation.normalise, device)
    dataset = _again("data", kind, lambda: _data(run, device))
    run.trainer.check_images(len(dataset.train))
    parts = size() * run.trainer.accumulate
    check(
        run.trainer.batch_size >= parts,
        "trainer.batch_size",
        run.trainer.batch_size,
        f"it is less than one image for each of {parts} parts ({size()} processes, "
        f"trainer.accumulate={run.trainer.accumulate})",
        f"trainer.batch_size={parts}",
    )
    model = build_model(run, len(dataset.classes))
    if run.patch.init == "whitened" and weights is None and not resuming:
        model.patch_embed.begin_whitened(dataset.train.images, dataset.std)
    report = None if weights is None else fit(model, weights)
    if device.type == "cpu":
        reason = "as asked" if run.trainer.device == "cpu" else "no GPU was found"
        threads = torch.get_num_threads()
        log.info("training on the CPU (%s; %d %s)", reason, threads, "thread" if threads == 1 else "threads")
    if size() > 1:
        log.info("%d processes train their share of %d images a step", size(), run.trainer.batch_size)
    if parts > 1 and any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
        log.warning(
            "patch.embedding=%s: its BatchNorm normalises each of %d parts of a batch by itself, "
            "so the figures differ a little from those of whole batches",
            run.patch.embedding,
            parts,
        )
    if report is not None:
        log.info("model.pretrained: %s", report)
    frozen = [p.numel() for p in model.parameters() if not p.requires_grad]
    if frozen:
        whole = sum(p.numel() for p in model.parameters())
        log.info("model.freeze: %s of %s parameters are trained", f"{whole - sum(frozen):,}", f"{whole:,}")
    model = model.to(device)
    if compiles(run.trainer, device, run.trainer.epochs * len(dataset.train)):
        network = (  # however it begins
            replace(run.model, init="normal", pretrained=None),
            run.window,
            replace(run.patch, init="normal"),
            replace(run.attention, init="normal"),
            run.block,
            run.data.image_size,
            run.trainer.side(0, run.data.image_size),
            len(dataset.classes),
        )
        compiled = (network, run.trainer.precision, run.trainer.compile, device)
        kept: Swin = _again("network", compiled, lambda: model, _forget)
        if kept is not model:
            kept.load_state_dict(model.state_dict())
        model = kept
    return model, dataset


def _data(run: Run, device: torch.device) -> Dataset:
    dataset = load(run.data, run.test, run.trainer.limit_train)
    return as_the_network_sees(run, dataset).to(device, run.data.placement)


_kept: dict[str, tuple[str, Any]] = {}


def _again(what: str, kind: object, make: Callable[[], Any], leave: Callable[[Any], object] = lambda _: None) -> Any:
    """What `make` made for the last run of this process, if that was of the same kind: trials share what is warm."""
    if _kept.get(what, ("", None))[0] != repr(kind):
        if what in _kept:
            leave(_kept.pop(what)[1])  # before another one takes its memory
        _kept[what] = repr(kind), make()
    return _kept[what][1]


def _forget(model: Swin) -> None:
    """Let go of what a network was compiled to: the compiler keeps a few versions of its code, and then no more."""
    model.uncompile()
    torch._dynamo.reset()


def steps_per_epoch(run: Run, dataset: Dataset) -> int:
    """Whole batches only: an image that one epoch's order leaves over has its turn in another's."""
    return len(dataset.train) // run.trainer.batch_size
