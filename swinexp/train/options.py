"""What the group trainer decides, and the figures that a run can be judged by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from swinexp.folder import MOST
from swinexp.mistake import check, one_of
from swinexp.ranks import size

OBJECTIVES = (
    "val/accuracy",
    "val/loss",
    "best/val/accuracy",
    "best/val/loss",
    "train/loss",
    "train/images_per_second",
    "val/images_per_second",
    "parameters",
    "flops",
    "activations",
)
EMA_OBJECTIVES = ("ema/val/accuracy", "ema/val/loss")
TEST_OBJECTIVES = ("test/accuracy", "test/loss")
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
COMPILE = ("auto", "true", "false", "graphs")
ON_NAN = ("stop", "skip")


@dataclass
class Trainer:
    """How long, how large, and on what.

    `batch_size`       images of an optimizer step, over all processes
    `accumulate`       parts that a process trains its share of a batch in, one after the other; the step is the same
    `clip_norm`        largest norm of the gradient, of all together or, with `clip_per_tensor`, of each; 0 is off
    `ema`              decay of the moving average of the weights, 0 is off (`swinexp.optim.ema`)
    `patience`         epochs without a better val/accuracy that end the run, 0 is off
    `keep`             newest checkpoints that stay, beside the best epoch's
    `gpus`             of this machine that train together, a process each; torchrun is started for more than one
    `precision`        of matrix products: one of `PRECISIONS`
    `compile`          one of `COMPILE`; all but false have a GPU launch a step as one CUDA graph
    `on_nan`           a loss that is not finite ends the run, or such steps are skipped
    `small_epochs`     so many at the beginning are of images scaled down to `small_size` pixels, or to half of their
                       size: progressive resizing
    `fit_memory`       train in smaller parts when a GPU's memory does not do, in one process, rather than stop
    """

    epochs: int
    batch_size: int
    accumulate: int
    label_smoothing: float
    clip_norm: float
    clip_per_tensor: bool
    ema: float
    patience: int
    keep: int
    device: str
    gpus: int
    precision: str
    compile: str
    on_nan: str
    fit_memory: bool
    limit_train: int | None
    small_epochs: int
    small_size: int | None

    def __post_init__(self) -> None:
        for key, example in (("epochs", 30), ("batch_size", 128), ("accumulate", 1), ("keep", 2), ("gpus", 1)):
            value = getattr(self, key)
            check(value >= 1, f"trainer.{key}", value, "at least 1", f"trainer.{key}={example}")
        check(
            self.gpus in (1, size()) or size() == 1,
            "trainer.gpus",
            self.gpus,
            f"torchrun has started {size()} processes",
            f"trainer.gpus={size()}, or the command without torchrun",
        )
        check(
            self.gpus == 1 or ":" not in self.device,
            "trainer.device",
            self.device,
            f"it is one GPU, and trainer.gpus={self.gpus}",
            "trainer.device=cuda",
        )
        check(self.keep <= MOST, "trainer.keep", self.keep, f"1 to {MOST}", "trainer.keep=2")
        check(
            self.accumulate <= self.batch_size,
            "trainer.accumulate",
            self.accumulate,
            f"there are only {self.batch_size} images in a batch",
            f"trainer.accumulate={self.batch_size}",
        )
        check(
            0 <= self.label_smoothing < 1,
            "trainer.label_smoothing",
            self.label_smoothing,
            "a share in [0, 1)",
            "trainer.label_smoothing=0.1",
        )
        check(
            0 <= self.clip_norm < math.inf,
            "trainer.clip_norm",
            self.clip_norm,
            "a norm, or 0 for off",
            "trainer.clip_norm=1",
        )
        check(
            self.clip_norm > 0 or not self.clip_per_tensor,
            "trainer.clip_per_tensor",
            True,
            "nothing is clipped (trainer.clip_norm=0)",
            "trainer.clip_norm=3",
        )
        check(0 <= self.ema < 1, "trainer.ema", self.ema, "a decay in [0, 1), 0 for off", "trainer.ema=0.999")
        check(self.patience >= 0, "trainer.patience", self.patience, "epochs, 0 for off", "trainer.patience=20")
        one_of("trainer.precision", self.precision, PRECISIONS)
        self.compile = self.compile.lower()  # true and false come as Python writes them
        one_of("trainer.compile", self.compile, COMPILE)
        one_of("trainer.on_nan", self.on_nan, ON_NAN)
        if self.limit_train is not None:
            self.check_images(self.limit_train)
        check(
            0 <= self.small_epochs < self.epochs,
            "trainer.small_epochs",
            self.small_epochs,
            f"0 to {self.epochs - 1}, for the last of trainer.epochs={self.epochs} is of whole images",
            f"trainer.small_epochs={self.epochs // 2}",
        )
        check(
            self.small_epochs > 0 or self.small_size is None,
            "trainer.small_size",
            self.small_size,
            "no epoch is of smaller images (trainer.small_epochs=0)",
            f"trainer.small_epochs={self.epochs // 2}",
        )

    def small_side(self, image_size: int) -> int:
        """Pixels of the smaller images' side, for images of so many."""
        return image_size // 2 if self.small_size is None else self.small_size

    def side(self, epoch: int, image_size: int) -> int:
        """Pixels of the side of the images that an epoch, from 0, trains on."""
        return self.small_side(image_size) if epoch < self.small_epochs else image_size

    def check_images(self, images: int) -> None:
        """Raise `Mistake` unless so many training images are a batch."""
        check(
            self.batch_size <= images,
            "trainer.batch_size",
            self.batch_size,
            f"there are only {images} training images",
            f"trainer.batch_size={2 ** (max(1, images).bit_length() - 1)}",
        )
