"""All that changes while training, to and from a checkpoint."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import GradScaler, Tensor, nn

from swinexp.folder import best
from swinexp.mistake import Diverged
from swinexp.optim import Ema, averaged, build_optimizer, lr_scale, resume
from swinexp.ranks import rank, size
from swinexp.swin import Swin
from swinexp.train import checkpoint
from swinexp.train.devices import build_scaler
from swinexp.train.graph import Captured, CapturedUpdate
from swinexp.train.processes import evened, summed, together

if TYPE_CHECKING:
    from swinexp.config import Run

log = logging.getLogger(__name__)

Metrics = Mapping[str, float]


def best_epoch(history: Sequence[Metrics]) -> int:
    """From 1; the first of several."""
    return max(range(len(history)), key=lambda epoch: history[epoch]["val/accuracy"]) + 1


@dataclass
class Way:
    """What batches of one image size go through.

    `forward` is the network, which may average its gradients over several processes. `captured` makes a batch's
    gradients as a CUDA graph, and `update` is the optimizer's step as one, where there are such.
    """

    network: Swin
    forward: nn.Module
    captured: Captured | None = None
    update: CapturedUpdate | None = None


@dataclass
class State:
    """All that changes while training. `step` counts optimizer steps from the start of the run.

    `losses` and `norms` (steps of an epoch,) are of the epoch under way: of each step the loss, this process's part of
    it, and the norm of the gradient before clipping. They stay on the device until the epoch ends. So is `seconds` of
    that epoch. `history` holds the metrics of the finished ones. `parts` is how many a batch is trained in.
    `running` are the model's running statistics, by name: a BatchNorm's. `ways` has one for each size of the images
    that are trained on, by their side.
    """

    model: Swin
    ways: dict[int, Way]
    optimizer: torch.optim.Optimizer
    scaler: GradScaler | None
    ema: Ema | None
    losses: Tensor
    norms: Tensor
    parts: int
    running: dict[str, Tensor]
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in the optimizer's order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self.losses)

    def way(self, images: Tensor) -> Way:
        """Which a batch (B, 3, S, S) goes."""
        return self.ways[images.shape[-1]]

    def forget_graphs(self) -> None:
        """Train without CUDA graphs."""
        for way in self.ways.values():
            way.captured = way.update = None

    def close_epoch(self, run: Run, evaluation: Metrics, losses: Tensor, norms: Tensor) -> None:
        """Turn what was `gathered` of an epoch into its metrics, and start on the next. Raises `Diverged`."""
        skipped = ~losses.isfinite()
        if not math.isfinite(evaluation["val/loss"]):
            lr = self.optimizer.param_groups[0]["lr"]
            what = f"the validation loss is not finite after epoch {len(self.history) + 1} (lr {lr:.3g})"
            raise Diverged(f"{what}; {self._before()}. A smaller optimizer.lr may keep it finite")
        metrics = {
            "train/loss": losses[~skipped].mean().item(),
            "train/grad_norm": norms[norms.isfinite()].mean().item(),
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/seconds": self.seconds,
            "train/images_per_second": self.steps * run.trainer.batch_size / self.seconds,
            **evaluation,
        }
        if run.wandb.norms:
            norms = torch.stack(torch._foreach_norm([p.detach() for p in self.model.parameters()]))
            metrics["train/weight_norm"] = torch.linalg.vector_norm(norms).item()
        if run.trainer.on_nan == "skip":
            metrics["train/skipped_steps"] = int(skipped.sum())
        self.history.append(metrics)
        self.losses.fill_(0)
        self.norms.fill_(0)
        self.seconds = 0.0

    def gathered(self, run: Run) -> tuple[Tensor, Tensor]:
        """Losses and norms of the steps of this epoch so far, on the host. Raises `Diverged`.

        What every process has of its own becomes the same everywhere, good for judging and for a checkpoint.
        """
        done = self.step - len(self.history) * self.steps
        losses, norms = self.losses[:done].clone(), self.norms[:done].cpu()
        if size() > 1:
            summed(losses)
            self.losses[:done] = losses / size()  # shares again
            evened(*self.running.values(), *(self.ema.weights[name] for name in self.running if self.ema is not None))
        losses = losses.cpu()
        broken = (~losses.isfinite()).nonzero()[:, 0].tolist()
        if broken and (run.trainer.on_nan == "stop" or len(broken) == self.steps):
            raise Diverged(self._divergence(run, broken[0], norms))
        return losses, norms

    def _divergence(self, run: Run, index: int, norms: Tensor) -> str:
        step = len(self.history) * self.steps + index
        lr = run.optimizer.lr * lr_scale(run.schedule, (step + 1) / self.steps, run.trainer.epochs)
        skip = ", trainer.on_nan=skip leaves such steps out" if run.trainer.on_nan == "stop" else ""
        return (
            f"the loss is not finite at step {step + 1} (epoch {len(self.history) + 1}, lr {lr:.3g}, gradient norm "
            f"{norms[index]:.3g}); {self._before()}. A smaller optimizer.lr or trainer.clip_norm may keep it finite"
            f"{skip}"
        )

    def _before(self) -> str:
        """How the last epoch that went well went."""
        if not self.history:
            return "it is the first epoch"
        figures = (f"{key} {self.history[-1][key]:.4g}" for key in ("train/loss", "val/loss", "val/accuracy"))
        return f"epoch {len(self.history)} had {', '.join(figures)}"

    def save(self, path: Path, keep: int, saving: checkpoint.Saving) -> None:
        """Begin to write a checkpoint that takes the place of the last one only when it is whole. Raises `Mistake`.

        It is of this moment, whatever is trained while it is written. Its "model" holds the weights that are evaluated.
        After the best epoch it is best.pt too.
        """
        saving.wait()  # there is one copy at a time
        with averaged(self.optimizer):
            saved = checkpoint.copied(
                {
                    "device": self.losses.device.type,
                    "model": self.model.state_dict(),
                    "ema": None if self.ema is None else self.ema.weights,
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": None if self.scaler is None else self.scaler.state_dict(),
                    "losses": self.losses,
                    "norms": self.norms,
                    "step": self.step,
                    "seconds": self.seconds,
                    "history": self.history,
                }
            )
        is_best = self._is_best()
        saving.begin(lambda: checkpoint.write(path, saved, keep, is_best))

    def restore(self, path: Path) -> None:
        """Go back to a checkpoint, to the one before where that is damaged. Raises `Mistake` when none can be read."""
        checkpoint.restore(path, self.losses.device, self._load)
        if rank() == 0 and self._is_best():
            checkpoint.link(path, best(path))  # where the run was killed after it had written the checkpoint

    def _is_best(self) -> bool:
        """At the end of the best epoch so far."""
        epochs = len(self.history)
        return bool(epochs) and self.step == epochs * self.steps and best_epoch(self.history) == epochs

    def _load(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        resume(self.optimizer)
        for mine, kept in ((self.losses, saved["losses"]), (self.norms, saved["norms"])):
            mine.copy_(kept)
        if self.scaler is not None and saved["scaler"] is not None:
            self.scaler.load_state_dict(saved["scaler"])
        if self.ema is not None:
            for name, weight in self.ema.weights.items():
                weight.copy_(saved["ema"][name])
        if saved["device"] != self.losses.device.type:
            log.warning(
                "this run began on a %s device and goes on on a %s one: its figures are of both",
                saved["device"],
                self.losses.device.type,
            )
        self.step, self.seconds, self.history = saved["step"], saved["seconds"], saved["history"]


def build_state(run: Run, model: Swin, steps: int) -> State:
    """The state of a run before its first step, for epochs of so many steps."""
    device = model.head.weight.device
    kept = model.state_dict()
    small = run.trainer.small_side(run.data.image_size)
    networks = {run.data.image_size: model} | ({small: model.resized(small)} if run.trainer.small_epochs else {})
    return State(
        model,
        {side: Way(network, together(network)) for side, network in networks.items()},
        build_optimizer(run.optimizer, model),
        build_scaler(run.trainer, device),
        Ema(model, run.trainer.ema) if run.trainer.ema else None,
        torch.zeros(steps, device=device),
        torch.zeros(steps, device=device),
        run.trainer.accumulate,
        {name: value for name, value in model.named_buffers() if name in kept and value.is_floating_point()},
    )
