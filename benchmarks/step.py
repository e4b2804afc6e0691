"""Images/s of a training step on a GPU: ours, timm's and torchvision's, eager and compiled, and what each way brings.

    python benchmarks/step.py                       the reference network, batch 128 eager; compiled at 128 to 2048
    python benchmarks/step.py --batch 512 2048 --rounds 5 --json step.json
    python benchmarks/step.py --only "ours, compiled" "record, compiled" --wait 100

The step is benchmarks/model.py's: forward, loss, backward, clip and AdamW, in bf16. Each variant has a process of its
own: all get ready at once, for compiling keeps one core busy for a minute, and are then measured in turn, round after
round. "record" is the network of experiment=record. The peers are compiled with mode="reduce-overhead", torch's CUDA
graphs; ours as a run does it. Figures are written after each round, so that none is lost where time runs out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
from machine import first_line, machine
from model import ours, timed, timm, torchvision, train_step

from swinexp.config import typed
from swinexp.run import compose
from swinexp.swin import layers, network
from swinexp.train import build_model, settle


def record() -> torch.nn.Module:
    return build_model(typed(compose(["experiment=record"])), classes=10)


PEERS = {"timm": timm, "torchvision": torchvision}
NETWORKS = {"ours": ours, "record": record} | PEERS
WAYS = ("without the attention's kernels", "without the convolution's kernels", "without bf16 tokens")
COMBINED = "with small kernels combined"  # by torch's compiler: the casts of 92 weights and biases, say


@dataclass(frozen=True)
class Variant:
    network: str
    mode: str  # eager | graph (captured, not compiled) | compiled (ours captured too)
    batch: int
    way: str = ""  # with or without something

    def __str__(self) -> str:
        return f"{self.network}, {self.mode}{', ' if self.way else ''}{self.way}"


def variants(batches: list[int]) -> list[Variant]:
    small, large = min(batches), max(batches)
    eager = [Variant(name, "eager", small) for name in ("ours", *PEERS)]
    compiled = [Variant(name, "compiled", batch) for batch in batches for name in ("ours", *PEERS)]
    ways = [Variant("record" if "convolution" in way else "ours", "compiled", large, way) for way in WAYS]
    combined = [Variant("ours", "compiled", batch, COMBINED) for batch in batches]
    return [*eager, Variant("ours", "graph", small), *compiled, Variant("record", "compiled", large), *ways, *combined]


def build(variant: Variant, device: torch.device) -> Callable[[], None]:
    own = variant.network not in PEERS
    if own:
        settle(typed(compose([])).trainer, device)
    if variant.way == "without the attention's kernels":
        network.attends = lambda *_: False  # type: ignore[assignment]
    if variant.way == "without the convolution's kernels":
        layers.on_gpu = lambda _: False  # type: ignore[assignment]
    if variant.way == "without bf16 tokens":
        network.residual = layers.residual = lambda x: x  # type: ignore[assignment]
    if variant.way == COMBINED:
        from torch._inductor import config

        config.combo_kernels = True
    torch.manual_seed(0)
    model = NETWORKS[variant.network]().to(device)
    forward = model
    if variant.mode == "compiled":
        forward = torch.compile(model, mode=None if own else "reduce-overhead", dynamic=False)
    return train_step(model, forward, variant.batch, device, own, captured=own and variant.mode != "eager")


def work(asked: Connection, variant: Variant, seconds: float) -> None:
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    began = time.perf_counter()
    try:
        step = build(variant, device)
        timed(step, 3, device)
    except Exception as error:
        asked.send(f"{type(error).__name__}: {error}"[:300])
        return
    asked.send(time.perf_counter() - began)
    while asked.recv():
        count = max(3, round(seconds / (timed(step, 3, device) / 3)))
        asked.send(variant.batch * count / timed(step, count, device))


def heard(pipes: dict[Variant, Connection], most: float) -> dict[Variant, float | str]:
    """What each process says when it is ready: after how many seconds, or why not. None is waited for beyond `most`."""
    told: dict[Variant, float | str] = {}
    until = time.perf_counter() + most
    while len(told) < len(pipes):
        waiting = {pipe: variant for variant, pipe in pipes.items() if variant not in told}
        heard_of = wait([*waiting], max(0.0, until - time.perf_counter()))
        for pipe in heard_of:
            assert isinstance(pipe, Connection)
            try:
                told[waiting[pipe]] = pipe.recv()
            except EOFError:
                told[waiting[pipe]] = "its process ended"
        if not heard_of:
            told |= dict.fromkeys(waiting.values(), f"not ready after {most:.0f} s")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows of these names")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each variant of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--wait", type=float, default=600, metavar="SECONDS", help="for what is not ready to be measured"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("it measures a GPU, and there is none; benchmarks/model.py measures a CPU")
    about = machine(torch.device("cuda"))
    print(first_line(about))
    asked = [each for each in variants(options.batch) if not options.only or str(each) in options.only]
    if not asked:
        parser.error(f"--only: one of {', '.join(sorted({repr(str(each)) for each in variants(options.batch)}))}")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // len(asked)))
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, {}
    for variant in asked:
        pipes[variant], theirs = context.Pipe()
        processes[variant] = context.Process(target=work, args=(theirs, variant, options.seconds), daemon=True)
        processes[variant].start()
        theirs.close()  # so that a process that is killed is heard of
    ready = heard(pipes, options.wait)
    failed = {variant: answer for variant, answer in ready.items() if isinstance(answer, str)}
    for variant in failed:
        processes[variant].kill()  # which would take its part of the processor and the GPU
    speeds: dict[Variant, list[float]] = {variant: [] for variant in pipes if variant not in failed}
    for turn in range(options.rounds):
        for variant in [*speeds][:: 1 if turn % 2 else -1]:
            pipes[variant].send(True)
            speeds[variant].append(pipes[variant].recv())
        if options.json:
            rows = [
                {**asdict(variant), "images_per_second": each, "ready": ready[variant]}
                for variant, each in speeds.items()
            ]
            options.json.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    print(f"{'':58}{'batch':>6}{'images/s':>10}   (rounds)          ready after, s")
    for variant, each in speeds.items():
        pipes[variant].send(False)
        spread = f"({min(each):,.0f}-{max(each):,.0f})"
        print(f"{variant!s:58}{variant.batch:6}{statistics.median(each):10,.0f}   {spread:20}{ready[variant]:6.1f}")
    for variant, error in failed.items():
        print(f"{variant!s:58}{variant.batch:6}  failed: {error}")


if __name__ == "__main__":
    main()
