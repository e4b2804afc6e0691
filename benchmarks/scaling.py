"""How the cost of a network grows with image size, window, depth and batch: four points each, and the slope.

    python benchmarks/scaling.py                          model=nano patch=p2, the sizes that a CPU does in two minutes
    python benchmarks/scaling.py model=cifar --batches 128 256 512 1024

Milliseconds of a train step and of inference for a batch, as in model.py, eager, with the FLOPs and activations of an
image. The slope is that of the least squares line through the logarithms: 1 is in proportion, 2 is quadratic. All
points of a table are measured in turn. Further arguments are overrides of the network.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from machine import first_line, machine
from model import inference, timed, train_step

from swinexp.config import Run, typed
from swinexp.describe import count
from swinexp.run import compose
from swinexp.train import build_model

BASE = ["model=nano", "window=w4", "patch=p2", "data=cifar10"]


def axes(options: argparse.Namespace) -> dict[str, tuple[list[int], Callable[[int], list[str]]]]:
    """{name: (values, value -> overrides)}; "batch" alone is no override."""
    stages = [2] * len(typed(compose([*BASE, *options.overrides])).model.depths)
    return {
        "image side": (options.images, lambda value: [f"data.image_size={value}"]),
        "window": (options.windows, lambda value: [f"window.size={value}", "data.image_size=32"]),
        "depth": (options.depths, lambda value: [f"model.depths={[each * value for each in stages]}"]),
        "batch": (options.batches, lambda _: []),
    }


def slope(xs: list[float], ys: list[float]) -> float:
    """Of the line through (log x, log y)"""
    return statistics.linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope


def steps(run: Run, batch: int, device: torch.device) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    model = build_model(run, 10).to(device)
    size = run.data.image_size
    return {
        "train step": train_step(model, model, batch, device, own=True, size=size),
        "inference": inference(model, model, batch, device, size),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[16, 32, 64, 128], help="sides, in pixels")
    parser.add_argument("--windows", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 4, 8], help="pairs of blocks in a stage")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--batch", type=int, default=32, help="of all other tables")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("overrides", nargs="*", help="of the network")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = machine(device)
    print(first_line(about))
    print(f"{'':12}{'':>8}{'MFLOPs':>10}{'activations':>13}{'train, ms':>11}{'inference, ms':>15}")
    tables = {}
    for axis, (values, overrides) in axes(options).items():
        runs = {value: typed(compose([*BASE, *options.overrides, *overrides(value)])) for value in values}
        costs = {value: count(build_model(run, 10), run.data.image_size)[""] for value, run in runs.items()}
        variants = {
            value: steps(run, value if axis == "batch" else options.batch, device) for value, run in runs.items()
        }
        taken: dict[str, dict[int, list[float]]] = {
            kind: {v: [] for v in values} for kind in ("train step", "inference")
        }
        for turn in range(-1, options.rounds):  # the first is for warming up
            for value in values[:: 1 if turn % 2 else -1]:
                for kind, step in variants[value].items():
                    seconds = timed(step, 1, device)
                    if turn >= 0:
                        taken[kind][value].append(seconds)
        medians = {kind: [1e3 * statistics.median(each[v]) for v in values] for kind, each in taken.items()}
        flops = [float(costs[v].flops) for v in values]
        activations = [float(costs[v].activations) for v in values]
        for i, value in enumerate(values):
            print(
                f"{axis if i == 0 else '':12}{value:8}{flops[i] / 1e6:10,.1f}{activations[i]:13,.0f}"
                f"{medians['train step'][i]:11.1f}{medians['inference'][i]:15.1f}"
            )
        columns = {"flops": flops, "activations": activations, **medians}
        slopes = {name: slope([float(v) for v in values], column) for name, column in columns.items()}
        print(
            "".join(
                [
                    f"{'':12}{'slope':>8}",
                    *(f"{each:{w}.2f}" for each, w in zip(slopes.values(), (10, 13, 11, 15), strict=True)),
                ]
            ),
            flush=True,
        )
        tables[axis] = {"values": values, **columns, "slopes": slopes}
    if options.json:
        options.json.write_text(
            json.dumps({**about, "overrides": options.overrides, "tables": tables}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
