"""What a run is made of: its network's parameters, FLOPs and activations by module, the optimizer's groups of
parameters, the lr from the first epoch to the last, and images/s on this device.

    python -m swinexp.describe model=cifar window=w4 patch=p2
    python -m swinexp.describe model=swin_t window=w7 patch=p4 data.image_size=224 --classes=1000

takes the same overrides as swinexp.run, and trains nothing. The head is for the classes of the data set, or for
those of --classes; for 10 where neither says.
"""

from __future__ import annotations

import copy
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swinexp.run import compose, reported

if TYPE_CHECKING:
    import torch
    from rich.table import Table
    from torch import nn

    from swinexp.config import Run
    from swinexp.swin import Swin


@dataclass(frozen=True)
class Cost:
    """Of one module. FLOPs and activations are for one image, counted as fvcore does.

    A multiply-add is one FLOP, a normalised value five, or two with the statistics that BatchNorm keeps. Activations
    are the values that convolutions, linear maps and matrix products put out.
    """

    parameters: int
    flops: int
    activations: int


def count(model: nn.Module, image_size: int) -> dict[str, Cost]:
    """{module name: its cost}; the whole network's name is the empty string.

    torch counts, on a copy of the network that has shapes and no memory; nothing here knows the network.
    """
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten

    def norm(shape: tuple[int, ...], *_: object, **__: object) -> int:
        return 2 * 5 * math.prod(shape)  # torch counts a multiply-add as two

    def kept_norm(shape: tuple[int, ...], *_: object, **__: object) -> int:
        return 2 * 2 * math.prod(shape)

    def outputs(*_: object, out_shape: tuple[int, ...], **__: object) -> int:
        return math.prod(out_shape)

    products = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution)
    twin = copy.deepcopy(model).to("meta").eval()
    for name, module in model.named_modules():
        if isinstance(module, nn.RMSNorm):  # which torch would take apart into operations that it does not count
            twin.set_submodule(name, nn.LayerNorm(module.normalized_shape, device="meta").eval())

    def counted(mapping: dict[Any, Callable[..., int]]) -> Callable[[str], int]:
        counter = FlopCounterMode(display=False, custom_mapping=mapping)
        with counter, torch.no_grad():
            twin(torch.empty(1, 3, image_size, image_size, device="meta"))
        root = type(twin).__name__  # where torch's names of modules begin
        found = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}

        def total(name: str) -> int:
            full = f"{root}.{name}" if name else root
            if full in found or not isinstance(twin.get_submodule(name), nn.ModuleList):
                return found.get(full, 0)
            # a list of modules is never called itself
            return sum(total(f"{name}.{child}") for child, _ in twin.get_submodule(name).named_children())

        return total

    flops, activations = (
        counted({aten.native_layer_norm: norm, aten._native_batch_norm_legit_no_training: kept_norm}),
        counted(dict.fromkeys(products, outputs)),
    )
    return {
        name: Cost(sum(p.numel() for p in module.parameters()), flops(name) // 2, activations(name))
        for name, module in model.named_modules()
    }


def throughput(run: Run, model: Swin, classes: int, device: torch.device, seconds: float = 4.0) -> dict[str, float]:
    """Images/s of the training path and of evaluation, on random images; without the first call, which warms up."""
    import torch

    from swinexp.data import Dataset, Split
    from swinexp.train import build_state, compile_model, evaluate, train_epoch

    size, batch = run.data.image_size, run.trainer.batch_size
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    split = Split(images, torch.randint(classes, (batch,)))
    half = torch.full((3,), 0.5)
    dataset = Dataset([str(i) for i in range(classes)], split, split, None, half, half).to(device)
    state = build_state(run, model, steps=1)
    compile_model(run, state, dataset)

    def epoch() -> None:
        state.step = 0
        train_epoch(run, state, dataset)

    def rate(step: Callable[[], object]) -> float:
        step()
        calls, began = 0, time.perf_counter()
        while not calls or time.perf_counter() - began < seconds:
            step()  # waits for the device at its end
            calls += 1
        return batch * calls / (time.perf_counter() - began)

    return {
        "training": rate(epoch),
        "inference": rate(lambda: evaluate(run, model, dataset.val, dataset, "val")),
    }


def lr_curve(run: Run, width: int = 64, height: int = 6) -> list[str]:
    """Lines that draw `optimizer.lr` over the whole run: `width` columns, each at the middle of its epochs."""
    from swinexp.optim import lr_scale

    epochs = run.trainer.epochs
    scales = [lr_scale(run.schedule, (column + 0.5) / width * epochs, epochs) for column in range(width)]
    eighths = [round(8 * height * scale) for scale in scales]
    lines = []
    for row in reversed(range(height)):
        blocks = "".join(" ▁▂▃▄▅▆▇█"[min(max(level - 8 * row, 0), 8)] for level in eighths)
        lines.append(f"{run.optimizer.lr * (row + 1) / height:>8.2g} ┤{blocks}".rstrip())
    marks = "└" + "─" * width
    return [*lines, f"{0:>8} {marks}", f"{'epoch':>8}  0{epochs:>{width - 1}}"]


def group_table(run: Run, model: nn.Module) -> Table:
    """The optimizer's groups, as `parameter_groups` has them."""
    from rich.table import Table

    from swinexp.optim import parameter_groups

    table = Table()
    table.add_column("parameter group")
    for title in ("tensors", "parameters", "lr", "weight decay"):
        table.add_column(title, justify="right")
    named = dict(model.named_parameters())
    for group in parameter_groups(run.optimizer, model):
        size = sum(named[name].numel() for name in group.parameters)
        decay = f"{group.weight_decay:g}"
        table.add_row(group.name, f"{len(group.parameters):,}", f"{size:,}", f"{group.peak_lr:.3g}", decay)
    return table


def describe(run: Run, classes: int) -> None:
    """Print what a run is made of, its network with a head for so many classes."""
    from rich.console import Console
    from rich.table import Table

    from swinexp.track import chip
    from swinexp.train import build_model, pick_device, settle

    device = pick_device(run.trainer)
    settle(run.trainer, device)
    model = build_model(run, classes)
    costs = count(model, run.data.image_size)
    table = Table()
    table.add_column("module")
    for title in ("parameters", "FLOPs", "activations"):
        table.add_column(title, justify="right")

    for name, cost in costs.items():  # the network's parts, its stages, and their blocks and merging
        if re.fullmatch(r"\w+|layers\.\d+|layers\.\d+\.(blocks\.\d+|downsample)", name):
            indent = "  " * min(name.count("."), 2)
            table.add_row(indent + name, f"{cost.parameters:,}", f"{cost.flops:,}", f"{cost.activations:,}")
    table.add_section()
    whole = costs[""]
    table.add_row("all", f"{whole.parameters:,}", f"{whole.flops:,}", f"{whole.activations:,}", style="bold")
    console = Console()
    size = run.data.image_size
    print(f"one image of {size}×{size} pixels, {classes} classes; a FLOP is a multiply-add")
    console.print(table)
    console.print(group_table(run, model))
    print(f"optimizer.lr of {run.optimizer.name} over the run, schedule {run.schedule.name}")
    print("\n".join(lr_curve(run, min(64, console.width - 12))))
    with console.status(f"measuring images/s at batch {run.trainer.batch_size} on {chip(device)}"):
        rates = throughput(run, model.to(device), classes, device)
    line = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    print(f"images/s at batch {run.trainer.batch_size} on {chip(device)}: {line}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    overrides = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(overrides):
        print(__doc__)
        return
    with reported(overrides):
        from swinexp.config import typed
        from swinexp.mistake import check

        flags = [argument for argument in overrides if argument.startswith("--classes=")]
        run = typed(compose([argument for argument in overrides if argument not in flags], "--classes=N"))
        classes = flags[-1].removeprefix("--classes=") if flags else str(run.data.classes or 10)
        fits = classes.isdecimal() and int(classes) >= 1
        check(fits, "--classes", classes, "a whole number from 1", "--classes=10")
        describe(run, int(classes))


if __name__ == "__main__":
    main()
