"""Images/s of the whole training path: ours, and a script as most people write it, taking turns.

    python benchmarks/pipeline.py                                     the reference network, batch 128, eager
    python benchmarks/pipeline.py --batch 128 1024 --images 50000 --compile      both networks; or --compile ours
    python benchmarks/pipeline.py --dim 48 --depths 2 2 --heads 2 4   a smaller network, where the images cost more

From decoded 32×32 images in memory to changed weights, with TrivialAugment, flip, crop and erase. The script is
PyTorch's documentation put together: a Dataset of Pillow images, a DataLoader with workers that stay, torchvision's
transforms and its Swin of the same sizes (parameter counts are checked), autocast on a GPU, torch's AdamW,
clip_grad_norm_, and loss.item() for a running mean. Ours is swinexp.train.train_epoch, with nothing left out of it;
on a GPU its step is one CUDA graph, with --compile and without.
Each has a process of its own, since ours sets how a process keeps its memory, and waits while the other one trains.
A round is an epoch of each, in an order that turns; the figure is the median over the rounds, and the ratio that of
the ratios within rounds. The first epoch of each, which warms up and compiles, comes before, both at once, and is told
apart.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import first_line, machine
from model import timed
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models.swin_transformer import SwinTransformer

from swinexp.config import Run, typed
from swinexp.data import Dataset, Split
from swinexp.data.splits import mean_std
from swinexp.run import compose
from swinexp.train import build_model, compile_model, settle, train_epoch
from swinexp.train.state import State, build_state

Epoch = Callable[[], object]


def pictures(count: int) -> Split:
    """Images with something to see in them: noise that was blown up, as a photograph is smooth."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    images = F.interpolate(coarse, (32, 32), mode="bilinear").mul(255).to(torch.uint8)
    return Split(images, torch.randint(10, (count,), generator=generator))


def described(options: argparse.Namespace, batch: int) -> Run:
    parts = [f"model.dim={options.dim}", f"model.depths={options.depths}", f"model.heads={options.heads}"]
    same = ["model=cifar", "window=w4", "patch=p2", "augmentation=trivial", "augmentation.erase=0.1"]
    compiled = f"trainer.compile={'true' if options.compile else 'graphs'}"  # graphs: nothing, on a CPU
    return typed(compose([*same, *parts, "data=cifar10", f"trainer.batch_size={batch}", compiled]))


def built(run: Run, split: Split, device: torch.device) -> tuple[State, Dataset, float | None]:
    """All that a run trains with, and the seconds of what it does before its first step."""
    settle(run.trainer, device)
    classes = [str(number) for number in range(10)]
    dataset = Dataset(classes, split, split[:128], None, *mean_std(split.images)).to(device)
    model = build_model(run, 10).to(device)
    state = build_state(run, model, len(split) // run.trainer.batch_size)
    return state, dataset, compile_model(run, state, dataset)


def trains(run: Run, state: State, dataset: Dataset) -> Epoch:
    def epoch() -> None:
        state.step = 0  # the same epoch again: its history stays empty
        train_epoch(run, state, dataset)

    return epoch


def ours(run: Run, split: Split, device: torch.device) -> Epoch:
    state, dataset, _ = built(run, split, device)
    return trains(run, state, dataset)


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Pillow images and their labels, transformed one by one."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.labels, self.transform = (
            split.images.permute(0, 2, 3, 1).numpy(),
            split.labels.tolist(),
            transform,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def script(run: Run, split: Split, device: torch.device, workers: int, compiled: bool) -> Epoch:
    transform = transforms.Compose(
        [
            transforms.TrivialAugmentWide(interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(32, padding=4),
            transforms.ToTensor(),
            transforms.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)),
            transforms.RandomErasing(0.1),
        ]
    )
    loader = torch.utils.data.DataLoader(
        Pictures(split, transform),
        batch_size=run.trainer.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    sizes = run.model.depths, run.model.heads
    peer = SwinTransformer([2, 2], run.model.dim, *sizes, [4, 4], 2.0, stochastic_depth_prob=0.1, num_classes=10)
    model = peer.to(device)
    own = sum(p.numel() for p in build_model(run, 10).parameters())
    assert sum(p.numel() for p in model.parameters()) == own
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.optimizer.lr, weight_decay=0.05)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def epoch() -> float:
        model.train()
        running = 0.0
        for images, labels in loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = criterion(forward(images), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            running += loss.item()
        return running / len(loader)

    return epoch


class Trainer:
    """One of the two, in a process of its own, which trains an epoch when it is asked to, and tells its seconds."""

    def __init__(self, variant: str, *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.other, theirs = context.Pipe()
        self.process = context.Process(target=_train, args=(theirs, variant, *arguments))
        self.process.start()

    def ask(self) -> None:
        self.other.send(True)

    def told(self) -> float:
        seconds: float = self.other.recv()
        return seconds

    def close(self) -> None:
        self.other.send(False)
        self.process.join()


def _train(asked: Connection, variant: str, options: argparse.Namespace, batch: int, workers: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run, split = described(options, batch), pictures(options.images)
    began = time.perf_counter()
    epoch = (
        ours(run, split, device)
        if variant == "ours"
        else script(run, split, device, workers, options.compile == "both")
    )
    first = time.perf_counter() - began  # compiling among it
    while asked.recv():
        asked.send(first + timed(epoch, 1, device))
        first = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--images", type=int, default=1280, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[len(os.sched_getaffinity(0))], help="of the script")
    parser.add_argument("--compile", nargs="?", const="both", choices=["ours", "both"], help="both networks, or ours")
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 6, 4])
    parser.add_argument("--heads", type=int, nargs="+", default=[3, 6, 12])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = machine(device)
    print(first_line(about))
    print(f"{'images/s':40}{'ours':>10}{'script':>10}   ours is faster by   (rounds)      first epoch, s")
    rows = []
    for batch in options.batch:
        images = options.images // batch * batch
        for workers in options.workers:
            trainers = {name: Trainer(name, options, batch, workers) for name in ("ours", "script")}
            for trainer in trainers.values():  # both at once: the one compiles, and the other has its workers start
                trainer.ask()
            first = {name: trainer.told() for name, trainer in trainers.items()}
            seconds: dict[str, list[float]] = {name: [] for name in trainers}
            for turn in range(options.rounds):
                for name in [*trainers][:: 1 if turn % 2 else -1]:
                    trainers[name].ask()
                    seconds[name].append(trainers[name].told())
            for trainer in trainers.values():
                trainer.close()
            ratios = [theirs / mine for mine, theirs in zip(seconds["ours"], seconds["script"], strict=True)]
            speeds = {name: images / statistics.median(each) for name, each in seconds.items()}
            row = {"batch": batch, "workers": workers, "images_per_second": speeds, "ratios": ratios, "first": first}
            rows.append(row)
            label = f"batch {batch}, {workers} workers{f', compiled: {options.compile}' if options.compile else ''}"
            spread = f"({min(ratios):.2f}-{max(ratios):.2f})"
            print(
                f"{label:40}{speeds['ours']:10,.0f}{speeds['script']:10,.0f}   {statistics.median(ratios):16.2f}×   "
                f"{spread:13} {first['ours']:.1f} {first['script']:.1f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({**about, "images": options.images, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
