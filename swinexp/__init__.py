"""swinexp: experiments with Swin Transformers on small images, configured by Hydra."""

from pathlib import Path

__version__ = "0.1.0"

HERE = Path(__file__).resolve().parent


def _found(folder: str) -> Path:
    """Beside the package in a checkout, inside it in a wheel."""
    return next(path for path in (HERE / folder, HERE.parent / folder) if path.is_dir())


CONF = _found("conf")
SWEEPS = _found("sweeps")
