"""Where the time of a training step goes: its parts, and on a GPU its kernels.

    python benchmarks/parts.py experiment=speedrun
    python benchmarks/parts.py model=cifar augmentation=reference trainer.compile=true --kernels 40
    python benchmarks/parts.py model=nano trainer.batch_size=32              on a CPU

A run as the command line describes it, on made-up images of 32 pixels in 10 classes. Of each part: how long until
Python goes on, and until the device is done. A part that Python takes longer for keeps the device waiting.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from machine import first_line, machine, waited
from pipeline import built, pictures, trains

from swinexp.config import typed
from swinexp.run import compose
from swinexp.train import pick_device
from swinexp.train.batches import batches
from swinexp.train.step import clipped


def timed(part: Callable[[], object], times: int, device: torch.device) -> tuple[float, float]:
    """Milliseconds until Python went on, and until all was done; of one."""
    part()
    waited(device)
    began = time.perf_counter()
    for _ in range(times):
        part()
    asked = time.perf_counter() - began
    waited(device)
    return 1e3 * asked / times, 1e3 * (time.perf_counter() - began) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24, help="of an epoch")
    parser.add_argument("--kernels", type=int, default=0, metavar="N", help="the N that take most of a GPU's time")
    parser.add_argument("overrides", nargs="*", help="as of python -m swinexp.run")
    options = parser.parse_intermixed_args()
    run = typed(compose([*options.overrides, "data=cifar10"]))
    device, batch_size = pick_device(run.trainer), run.trainer.batch_size
    print(first_line(machine(device)))
    state, dataset, seconds = built(run, pictures(options.steps * batch_size), device)
    epoch = trains(run, state, dataset)

    def augmentation() -> None:
        state.step = 0
        for _ in batches(run, state, dataset):
            pass

    epoch()
    state.step = 0
    images, labels = next(iter(batches(run, state, dataset)))
    factors = state.model.draw_drop_path(batch_size, torch.Generator(device))
    way = state.way(images)
    ready = way.captured or clipped(run, state)
    parts: dict[str, tuple[float, float]] = {
        "a step, whole": tuple(each / options.steps for each in timed(epoch, 2, device)),
        "augmentation": tuple(each / options.steps for each in timed(augmentation, 2, device)),
        "gradients": timed(lambda: ready(images, labels, factors), 5, device),
        "optimizer": timed(way.update or state.optimizer.step, 5, device),
    }
    if state.ema is not None:
        ema = state.ema
        parts["average of the weights"] = timed(lambda: ema.update(1), 5, device)
    print(f"{'ms, batch ' + str(batch_size):28}{'Python':>10}{'done':>10}")
    for name, (asked, done) in parts.items():
        rate = f"{1e3 * batch_size / done:14,.0f} images/s" if name == "a step, whole" else ""
        print(f"{name:28}{asked:10.2f}{done:10.2f}{rate}")
    if seconds is not None:
        print(f"{'before the first step, s':28}{seconds:20.1f}")
    if options.kernels and device.type == "cuda":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            epoch()
        rows = [row for row in profile.key_averages() if row.self_device_time_total > 0 and not row.is_user_annotation]
        rows.sort(key=lambda row: -row.self_device_time_total)
        total = sum(row.self_device_time_total for row in rows)
        count = sum(row.count for row in rows)
        print(f"kernels: {total / 1e3 / options.steps:.2f} ms and {count / options.steps:.0f} launches a step")
        for row in rows[: options.kernels]:
            share = row.self_device_time_total / options.steps
            print(f"{share:10.1f} µs{row.count / options.steps:8.1f}×  {row.key[:90]}")


if __name__ == "__main__":
    main()
