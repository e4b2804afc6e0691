"""Augmentation of whole batches on the device, as pure functions: every image draws for itself, from one generator.

B images, H × W pixels, K classes. No loop over images, no global random state.
"""

from swinexp.augment.batch import Augmentation, augment, mirrored_in_turn, normalise
from swinexp.augment.colour import jitter
from swinexp.augment.mixing import cutmix, mixup
from swinexp.augment.policies import POLICIES, auto_augment, rand_augment, trivial_augment
from swinexp.augment.spatial import cutout, flip, random_crop, random_erase, random_resized_crop

__all__ = [
    "POLICIES",
    "Augmentation",
    "augment",
    "auto_augment",
    "cutmix",
    "cutout",
    "flip",
    "jitter",
    "mirrored_in_turn",
    "mixup",
    "normalise",
    "rand_augment",
    "random_crop",
    "random_erase",
    "random_resized_crop",
    "trivial_augment",
]
