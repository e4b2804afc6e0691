"""The Swin Transformer (Liu et al., arXiv 2103.14030) for images of any small size, and variants of its parts.

The tokens of a stage lie one after the other in the order of its windows, (B, P, C), so that attention within windows
is a view of them, and every shift, partition and merge is one gather with an index that coordinates gave beforehand.
Shapes are written with these letters:

    B images   H, W rows and columns of a map   P tokens of a map (H·W)   C channels
    G windows of an image   T tokens of a window (window²)   N heads   D channels of a head

Parameters are named as in Microsoft's and timm's implementations, so that weights can be carried over.
"""

from swinexp.swin.inside import attention_maps, features, received, rollout
from swinexp.swin.network import Swin, SwinBlock
from swinexp.swin.options import Attention, Block, Model, Patch, Window, check_fit
from swinexp.swin.pretrained import fit, freeze, load_pretrained, read
from swinexp.swin.threads import by_threads

__all__ = [
    "Attention",
    "Block",
    "Model",
    "Patch",
    "Swin",
    "SwinBlock",
    "Window",
    "attention_maps",
    "by_threads",
    "check_fit",
    "features",
    "fit",
    "freeze",
    "load_pretrained",
    "read",
    "received",
    "rollout",
]
