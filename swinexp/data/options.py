"""What data sets there are, and what decides each. Values live in conf/data/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from swinexp.mistake import check, one_of

PLACEMENTS = ("auto", "device", "host")
ON_ERROR = ("raise", "skip")
CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclass
class Data:
    """What every data set needs; `mirror` says that a mirrored image keeps its label.

    `classes` is how many there are, None where the files decide; `names` are theirs, empty where the files say them.
    """

    classes: ClassVar[int | None] = None
    names: ClassVar[tuple[str, ...]] = ()

    name: str
    image_size: int
    mirror: bool
    split_seed: int
    placement: str
    cache: str

    def __post_init__(self) -> None:
        check(self.image_size >= 1, "data.image_size", self.image_size, "a size in pixels", "data.image_size=32")
        check(
            0 <= self.split_seed < 2**63,
            "data.split_seed",
            self.split_seed,
            "a whole number from 0 to 2⁶³-1",
            "data.split_seed=0",
        )
        one_of("data.placement", self.placement, PLACEMENTS)
        check(bool(self.cache), "data.cache", self.cache, "a folder is needed", "data.cache=~/.cache/swinexp")


@dataclass
class TwoSplits(Data):
    """A data set that is published without validation images: `val_fraction` of the training images serve as them."""

    val_fraction: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            0 < self.val_fraction < 1,
            "data.val_fraction",
            self.val_fraction,
            "a share of the training images, between 0 and 1",
            "data.val_fraction=0.1",
        )


@dataclass
class Digits(TwoSplits):
    """scikit-learn's handwritten digits."""

    classes = 10
    names = tuple("0123456789")


@dataclass
class CIFAR10(TwoSplits):
    """CIFAR-10 in `root`, downloaded when it is not there."""

    classes = 10
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    root: str


@dataclass
class CIFAR100(TwoSplits):
    """CIFAR-100 with its fine labels in `root`, downloaded when it is not there."""

    classes = 100
    names = tuple(CIFAR100_NAMES.split())

    root: str


@dataclass
class SVHN(TwoSplits):
    """The cropped digits of SVHN in `root`, downloaded when they are not there; `extra` adds its extra split."""

    classes = 10
    names = tuple("0123456789")

    root: str
    extra: bool


@dataclass
class CINIC10(Data):
    """CINIC-10 in `root`, downloaded when it is not there; its own `valid` images are the validation split."""

    classes = 10
    names = CIFAR10.names

    root: str
    on_error: str

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("data.on_error", self.on_error, ON_ERROR)


@dataclass
class ImageFiles(TwoSplits):
    """A data set of single files in `root`; what becomes of one that cannot be read is `on_error`."""

    root: str
    on_error: str

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("data.on_error", self.on_error, ON_ERROR)


@dataclass
class TinyImageNet(ImageFiles):
    """Tiny-ImageNet in `root`, downloaded when it is not there; its labelled `val` images are the test split."""

    classes = 200


@dataclass
class ImageFolder(ImageFiles):
    """`root`/train/<class>/ and `root`/test/<class>/ with JPEG or PNG files."""


DATA: dict[str, type[Data]] = {
    "digits": Digits,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "svhn": SVHN,
    "cinic10": CINIC10,
    "tiny_imagenet": TinyImageNet,
    "image_folder": ImageFolder,
}
