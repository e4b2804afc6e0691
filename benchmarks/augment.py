"""Images/s of augmentation: ours on batches, torchvision's on one Pillow image after the other, interleaved.

    python benchmarks/augment.py --device cpu             one CPU thread, as one worker of a data loader has it
    python benchmarks/augment.py --batch 512              ours on the GPU where there is one
    python benchmarks/augment.py --alone basic strong     ours alone, with recipes of conf/augmentation

Both do the same to 32×32 images: crop, flip and erase, and the chain of the reference script (TrivialAugment, flip,
crop, erase; ours with CutMix, which the script does later). Measured as in benchmarks/model.py, from uint8 images in
memory to batches of floats, of which ours makes several at a time, as in training. The last column is the time in which
ours augments 50,000 images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from machine import first_line, machine
from model import measure
from PIL import Image
from torch import Tensor
from torchvision import transforms

from swinexp.augment import augment
from swinexp.config import typed
from swinexp.run import compose
from swinexp.train.batches import batches_at_once
from swinexp.train.devices import keep_memory

CHAINS = {
    "crop, flip, erase": ["augmentation=basic", "augmentation.erase=0.1"],
    "reference": ["augmentation=reference"],
}
RANDOM = [
    transforms.RandomHorizontalFlip(),
    transforms.RandomCrop(32, padding=4),
    transforms.ToTensor(),
    transforms.RandomErasing(0.1),
]
THEIRS = {
    "crop, flip, erase": transforms.Compose(RANDOM),
    "reference": transforms.Compose(
        [transforms.TrivialAugmentWide(interpolation=transforms.InterpolationMode.BILINEAR), *RANDOM]
    ),
}


def ours(overrides: list[str], images: Tensor, batch: int, device: torch.device) -> Callable[[], None]:
    config = typed(compose([*overrides, "data.mirror=true"])).augmentation
    images, labels = images.to(device), torch.zeros(len(images), dtype=torch.long, device=device)
    mean = std = torch.full((3,), 0.5, device=device)
    generator, host = torch.Generator(device).manual_seed(0), torch.Generator().manual_seed(0)

    def step() -> None:
        augment(config, images, labels, 10, mean, std, generator, None, batch, host)

    return step


def theirs(chain: Callable[[Image.Image], Tensor], images: Tensor) -> Callable[[], None]:
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]

    def step() -> None:
        torch.stack([chain(picture) for picture in pictures])

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", nargs="+", default=[], metavar="RECIPE", help="without torchvision")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=10, help="for each variant of a table row")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type == "cpu":
        keep_memory()  # as a run does; it serves torchvision as well
    print(first_line(machine(device)))
    chains = {name: [f"augmentation={name}"] for name in options.alone} or CHAINS
    print(f"{'':32}{'ours':>12}{'torchvision':>14}   ours is faster by   50,000 images")
    for batch in options.batch:
        count = batch * batches_at_once(batch, 3 * 32 * 32, device)  # as in training
        smooth = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        images = torch.nn.functional.interpolate(smooth, (32, 32), mode="bilinear").mul(255).to(torch.uint8)
        for name, overrides in chains.items():
            variants = {"ours": ours(overrides, images, batch, device)}
            if not options.alone:
                variants["torchvision"] = theirs(THEIRS[name], images)
            row = measure(variants, count, options.seconds, options.rounds, device)
            speed = row["ours"]["images_per_second"]
            peer = f"{'':34}"
            if not options.alone:
                peer = f"{row['torchvision']['images_per_second']:14,.0f}   "
                peer += f"{row['torchvision']['ours_is_faster_by']:15.1f}× "
            print(f"{f'{name}, batch {batch}':32}{speed:12,.0f}{peer}  {50_000 / speed:11.3f} s", flush=True)


if __name__ == "__main__":
    main()
