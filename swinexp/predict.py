"""Labels for any images, from a run's network.

    python -m swinexp.predict run=outputs/runs/quickstart one.png two.jpg
    python -m swinexp.predict run=outputs/runs/quickstart checkpoint=best top=5 json=true photos/*.jpg

prints a line for each image: its path, the class, how probable the network holds it to be, and the next ones.
json=true makes each line a JSON object with path, classes and probabilities. Images are scaled and cut about their
centre as those of a folder of images are. One that cannot be read is told in a line of its own on standard error; the
others are labelled all the same, and the exit code is 2. A path with an = in it begins with ./ or /.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from swinexp.archive import CHECKPOINTS, Known, fill, kept_data, reloaded, requested, weights
from swinexp.mistake import Mistake, check, one_line, one_of
from swinexp.run import reported

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 128  # images that are decoded and labelled at a time


@dataclass
class Request:
    """What the command asks for, beside the images."""

    run: str = MISSING
    checkpoint: str = "last"
    top: int = 3
    json: bool = False

    def __post_init__(self) -> None:
        one_of("checkpoint", self.checkpoint, CHECKPOINTS)
        check(self.top >= 1, "top", self.top, "at least 1 class for an image", "top=3")


def sorted_out(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(KEY=VALUE, paths of images) of a command line. Raises `Mistake`."""
    for argument in arguments:
        if argument.startswith("-"):
            key = argument.lstrip("-").partition("=")[0]
            known = key in Request.__dataclass_fields__
            instead = f"{key}={'true' if key == 'json' else 'VALUE'}" if known else f"./{argument} if it is an image"
            raise Mistake(f"{argument}: there are no options but KEY=VALUE. Type {instead}")
    options = [argument for argument in arguments if re.match(r"[A-Za-z_]\w*=", argument)]
    images = [argument for argument in arguments if argument not in options]
    for image in images:
        if (Path(image) / "checkpoints").is_dir():
            raise Mistake(f"{image}: a run's folder, and no image. Type run={image} IMAGE.png")
    return options, images


def labelled(request: Request, paths: Sequence[str]) -> Iterator[tuple[str, list[str], list[float]]]:
    """(path, classes, their probabilities), most probable first, of each image that can be read.

    The others are told on standard error. Raises `Mistake`.
    """
    import torch

    from swinexp.augment import normalise
    from swinexp.data import load
    from swinexp.data.images import UNREADABLE, opened, square
    from swinexp.swin import by_threads
    from swinexp.train import as_the_network_sees, autocast, build_model, pick_device, settle

    folder = Path(request.run)
    run = reloaded(folder)
    kept, _ = weights(folder, request.checkpoint)
    data = kept_data(folder)
    if data is None:  # then the training images have to be measured again
        dataset = as_the_network_sees(run, load(run.data, False, run.trainer.limit_train))
        data = Known(dataset.classes, dataset.mean, dataset.std, dataset.counts)
    classes, mean, std, _ = data
    device = pick_device(run.trainer)
    settle(run.trainer, device)
    model = build_model(run, len(classes))
    fill(model, kept, folder)
    model.to(device).eval()

    def pixels(path: str) -> Tensor | None:
        try:
            with opened(path) as image:
                return torch.from_numpy(square(image, run.data.image_size).copy())
        except UNREADABLE as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            print(f"swinexp: {path}: is not a readable image ({reason})", file=sys.stderr)
            return None

    for start in range(0, len(paths), BATCH):
        images = [(path, image) for path in paths[start : start + BATCH] if (image := pixels(path)) is not None]
        if not images:
            continue
        batch = torch.stack([image for _, image in images]).to(device)
        with torch.no_grad(), autocast(run.trainer, device):
            logits = by_threads(model, normalise(batch, mean.to(device), std.to(device)))
        shares, labels = logits.float().softmax(dim=1).topk(min(request.top, len(classes)))
        for (path, _), of_image, indices in zip(images, shares.tolist(), labels.tolist(), strict=True):
            yield path, [classes[index] for index in indices], of_image


def predict(request: Request, paths: Sequence[str]) -> int:
    """Print a line for each image; returns how many there were. Raises `Mistake`."""
    count = 0
    for path, classes, probabilities in labelled(request, paths):
        count += 1
        if request.json:
            numbers = [share if math.isfinite(share) else None for share in probabilities]
            print(json.dumps({"path": path, "classes": classes, "probabilities": numbers}))
        else:
            named = (f"{name} {share:.4f}" for name, share in zip(classes, probabilities, strict=True))
            print(f"{path}: {', '.join(named)}")
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        print(__doc__)
        return
    with reported(given):
        options, images = sorted_out(given)
        request = requested(Request, options)
        if not images:
            raise Mistake(f"run={request.run}: no image is named. Type run={request.run} IMAGE.png")
        if predict(request, images) < len(images):
            sys.exit(2)


if __name__ == "__main__":
    main()
