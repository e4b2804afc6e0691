"""Does this GPU compute what the CPU does? Networks, augmentation and data, each with its largest difference.

    python benchmarks/agree.py                    exit code 1 when something does not agree
    python benchmarks/agree.py --eager            without what has to be compiled, which takes more than a minute

In float64: logits, loss and all gradients of a small network of every option of attention, block and patch, relative to
the largest value. In uint8: every augmentation operation, as the share of values that differ by more than 1 of 255. In
fp32 and bf16: the loss of the reference network after ten steps, eager and compiled. Batches with the images on the
device and on the host have to be the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import first_line, machine
from torch import Tensor

from swinexp import CONF
from swinexp.augment.operations import CODES, operate
from swinexp.config import typed
from swinexp.data import Split, place
from swinexp.run import compose
from swinexp.train import build_model

SMALL = ["model=nano", "window=w4", "patch=p2", "data=cifar10"]
LARGEST = {"bits": 8.0, "threshold": 256.0, "degrees": 30.0, "pixels": 8.0, "slope": 0.3, "factor": 0.9}
UNITS = {
    "posterize": "bits",
    "solarize": "threshold",
    "rotate": "degrees",
    "translate_x": "pixels",
    "translate_y": "pixels",
    "shear_x": "slope",
    "shear_y": "slope",
}


def variants() -> list[str]:
    groups = ("attention", "block", "patch")
    named = [f"{group}={path.stem}" for group in groups for path in sorted((CONF / group).glob("*.yaml"))]
    return [each for each in named if each not in ("patch=p1", "patch=p4")]


def outcome(overrides: list[str], device: torch.device) -> list[Tensor]:
    """Logits, loss and gradients in float64, on the CPU."""
    model = build_model(typed(compose([*SMALL, *overrides])), 10).double().to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64).to(device)
    logits = model(images)
    loss = F.cross_entropy(logits, torch.arange(4, device=device))
    loss.backward()
    return [value.detach().cpu() for value in (logits, loss, *(p.grad for p in model.parameters()))]


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of each tensor."""
    return max(
        ((a - b).abs().max() / a.abs().max().clamp(min=1e-300)).item() for a, b in zip(ours, theirs, strict=True)
    )


def operation(name: str, device: torch.device) -> float:
    """The share of values that differ by more than 1."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(256, 3, 8, 8, generator=generator)
    images = F.interpolate(coarse, (32, 32), mode="bilinear").mul(255).to(torch.uint8)
    magnitude = torch.rand(256, generator=generator) * LARGEST[UNITS.get(name, "factor")]
    magnitude = magnitude.round() if name == "posterize" else magnitude
    codes = torch.full((256,), CODES[name])
    ours = operate(images, codes, magnitude).int()
    theirs = operate(images.to(device), codes, magnitude).cpu().int()
    return ((ours - theirs).abs() > 1).double().mean().item()


def trained(device: torch.device, dtype: torch.dtype, compiled: bool) -> float:
    """The reference network's loss after ten steps of SGD on one batch."""
    model = build_model(typed(compose(["model=cifar", "window=w4", "patch=p2", "model.drop_path=0"])), 10).to(device)
    forward = torch.compile(model) if compiled else model
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 32, 32, generator=generator).to(device)
    labels = torch.randint(10, (64,), generator=generator).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss = torch.zeros(())
    for _ in range(10):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = forward(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def placements(device: torch.device) -> int:
    """Values that differ between a batch of images on the device and of images on the host."""
    images = torch.randint(256, (1000, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(1000) % 10
    batches = torch.randperm(1000, generator=torch.Generator().manual_seed(1)).split(128)
    split = Split(images, labels)
    ours = place(split, "device", device).each([each.to(device) for each in batches])
    theirs = place(split, "host", device).each(batches)
    return sum(int((a.images != b.images).sum()) for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    parser.add_argument("--eager", action="store_true", help="nothing compiled")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = [first_line(machine(device, "CPU alone: it is compared with itself"))]
    wrong = 0

    def tell(what: str, difference: float, most: float) -> None:
        nonlocal wrong
        wrong += difference > most
        lines.append(f"{what:36}{difference:12.2e}  at most {most:.0e}{'' if difference <= most else '   ✗'}")
        print(lines[-1], flush=True)
        if options.out:  # each time: the limit of gpu.sh may come
            options.out.write_text("\n".join(lines) + "\n")

    print(lines[0])
    cpu = torch.device("cpu")
    for name in variants():
        tell(name, apart(outcome([name], cpu), outcome([name], device)), 1e-10)
    for name in CODES:
        tell(f"operation {name}", operation(name, device), 1e-3)
    tell("host and device placement", placements(device), 0)
    reference = trained(cpu, torch.float32, False)
    for compiled in (False,) if options.eager else (False, True):  # what takes longest last
        for dtype, most in ((torch.bfloat16, 5e-2), (torch.float32, 1e-3)):
            if device.type == "cuda":
                loss = trained(device, dtype, compiled)
                name = f"loss of ten steps, {str(dtype).removeprefix('torch.')}{', compiled' if compiled else ''}"
                tell(name, abs(loss - reference) / reference, most)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
