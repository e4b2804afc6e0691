"""Data sets as tensors: every split is one uint8 tensor of square RGB images, decoded once and kept on disk.

`options` says what data sets there are and what decides them, `sources` reads each, `images` decodes files, `download`
fetches what is missing, `cache` keeps what was decoded, `placement` has a split on the device or beside it, and
`dataset` puts the `splits` together.
"""

from swinexp.data.dataset import Dataset, load
from swinexp.data.options import (
    CIFAR10,
    CIFAR100,
    CINIC10,
    DATA,
    SVHN,
    Data,
    Digits,
    ImageFolder,
    TinyImageNet,
)
from swinexp.data.placement import HostSplit, place
from swinexp.data.splits import Split, mean_std, stratified

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CINIC10",
    "DATA",
    "SVHN",
    "Data",
    "Dataset",
    "Digits",
    "HostSplit",
    "ImageFolder",
    "Split",
    "TinyImageNet",
    "load",
    "mean_std",
    "place",
    "stratified",
]
