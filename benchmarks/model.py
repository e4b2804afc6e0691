"""Images/s of the reference network: ours, timm's and torchvision's, at the same sizes, interleaved in one process.

    python benchmarks/model.py                            batch 32 and 128, eager
    python benchmarks/model.py --batch 128 --compile      compiled too
    python benchmarks/model.py --seconds 5 --json out.json

One round runs every variant once, in an order that turns from round to round; a variant's figure is its median over
the rounds, and its ratio to ours is the median of the ratios within the rounds, so that a machine that slows down
slows all of them. Compile and warm-up come first and are told apart. The train step is forward, loss, backward, clip
and AdamW as in swinexp.train; the peers take the optimizer that people give them, torch's default AdamW.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import first_line, machine, waited
from torch import Tensor, nn

from swinexp.config import typed
from swinexp.optim import AdamW, build_optimizer
from swinexp.run import compose
from swinexp.swin import by_threads
from swinexp.train import build_model
from swinexp.train.devices import keep_memory
from swinexp.train.graph import Captured

DIM, DEPTHS, HEADS = 96, [2, 6, 4], [3, 6, 12]
NORM_EPS = 1e-6


def ours() -> nn.Module:
    return build_model(typed(compose(["model=cifar", "window=w4", "patch=p2"])), classes=10)


def timm() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=32, patch_size=2, embed_dim=DIM, depths=DEPTHS, num_heads=HEADS, window_size=4, mlp_ratio=2.0,
        drop_path_rate=0.1, num_classes=10, norm_layer=lambda dim, **_: nn.LayerNorm(dim, eps=NORM_EPS),
    )  # fmt: skip


def torchvision() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([2, 2], DIM, DEPTHS, HEADS, [4, 4], 2.0, stochastic_depth_prob=0.1, num_classes=10)


def train_step(
    model: nn.Module,
    forward: Callable[..., Tensor],
    batch: int,
    device: torch.device,
    own: bool,
    size: int = 32,
    captured: bool = False,
) -> Callable[[], None]:
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(10, (batch,), device=device)
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = (
        build_optimizer(AdamW("adamw", 1e-3, 0.05, "matrices", 1.0, (0.9, 0.99), 1e-8), model)
        if own
        else torch.optim.AdamW(weights, 1e-3, (0.9, 0.99), weight_decay=0.05)
    )

    def gradients(images: Tensor, labels: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = forward(images)
        optimizer.zero_grad()
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        loss.backward()
        return loss.detach(), nn.utils.clip_grad_norm_(weights, 1.0)

    ready = Captured(gradients, weights, images, labels, None) if captured else gradients

    def step() -> None:
        model.train()
        ready(images, labels, None)
        optimizer.step()

    return step


def inference(
    model: nn.Module, forward: Callable[..., Tensor], batch: int, device: torch.device, size: int = 32
) -> Callable[[], None]:
    images = torch.randn(batch, 3, size, size, device=device)

    def step() -> None:
        model.eval()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            forward(images)

    return step


def timed(step: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds for `count` steps."""
    waited(device)
    began = time.perf_counter()
    for _ in range(count):
        step()
    waited(device)
    return time.perf_counter() - began


def measure(variants: dict[str, Callable[[], None]], batch: int, seconds: float, rounds: int, device: torch.device):
    """{variant: {images_per_second, ours_is_faster_by, first_call_seconds}}, and ours as 1."""
    first = {name: timed(step, 1, device) for name, step in variants.items()}
    counts = {}
    for name, step in variants.items():
        timed(step, 2, device)
        counts[name] = max(1, round(seconds / rounds / timed(step, 1, device)))
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            speeds[name].append(batch * counts[name] / timed(variants[name], counts[name], device))
    return {
        name: {
            "images_per_second": statistics.median(speeds[name]),
            "ours_is_faster_by": statistics.median(
                mine / theirs for mine, theirs in zip(speeds[names[0]], speeds[name], strict=True)
            ),
            "first_call_seconds": first[name],
        }
        for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--compile", action="store_true", help="measure compiled models too")
    parser.add_argument("--seconds", type=float, default=20, help="for each variant of a table row")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_memory()  # as a run does; it serves the peers as well
    about = machine(device)
    print(first_line(about))
    print(f"{'':28}{'ours':>10}{'timm':>10}{'torchvision':>13}   ours is faster by   first call, s")
    results = []
    for compiled in (False, True) if options.compile else (False,):
        torch.manual_seed(0)
        torch._dynamo.reset()
        models = {"ours": ours().to(device), "timm": timm().to(device), "torchvision": torchvision().to(device)}
        assert {sum(p.numel() for p in model.parameters()) for model in models.values()} == {7_048_612}
        forwards: dict[str, Callable[..., Tensor]] = {
            name: torch.compile(model) if compiled else model for name, model in models.items()
        }
        if not compiled:
            forwards["ours"] = partial(by_threads, models["ours"])  # as training and evaluation call it
        for batch in options.batch:
            for kind in ("train step", "inference"):
                variants = {
                    name: train_step(model, forwards[name], batch, device, name == "ours")
                    if kind == "train step"
                    else inference(model, forwards[name], batch, device)
                    for name, model in models.items()
                }
                row = measure(variants, batch, options.seconds, options.rounds, device)
                results.append({"kind": kind, "batch": batch, "compiled": compiled, "variants": row})
                label = f"{kind}, batch {batch}{', compiled' if compiled else ''}"
                speeds = [row[name]["images_per_second"] for name in models]
                ratios = "  ".join(f"{row[name]['ours_is_faster_by']:.2f}×" for name in ("timm", "torchvision"))
                first = " ".join(f"{row[name]['first_call_seconds']:.1f}" for name in models)
                print(
                    f"{label:28}{speeds[0]:10.1f}{speeds[1]:10.1f}{speeds[2]:13.1f}   {ratios:17}   {first}", flush=True
                )
    if options.json:
        options.json.write_text(json.dumps({**about, "rows": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
