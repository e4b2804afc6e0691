"""Seconds of training to an accuracy on test images, over several seeds in one process.

    python benchmarks/speedrun.py                                        ten seeds of experiment=speedrun
    python benchmarks/speedrun.py --seeds 3 data=image_folder data.root=FOLDER
    python benchmarks/speedrun.py --seeds 3 --experiment quickstart --aim 0.98      on digits and a CPU

The seeds are a sweep of swinexp's own, whose trials keep the data on the device and the compiled network. Told are the
last epoch's accuracy on test images, with the last weights and their average, as mean ± standard deviation, and the
seconds of training alone: warm is the median of all seeds after the first, cold the first one's with what compiling
took. Validation after each epoch is not counted; nothing is chosen by it, and test images are read once, at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from machine import first_line, machine


def told(folder: Path) -> dict[str, Any]:
    """Of a run: its summary, and the seconds it trained."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return summary | {"train_seconds": sum(epoch["train/seconds"] for epoch in epochs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--experiment", default="speedrun")
    parser.add_argument("--aim", type=float, default=0.911, help="mean accuracy on test images")
    parser.add_argument("--out", type=Path, help="write the figures of every seed to this file")
    parser.add_argument("overrides", nargs="*", help="for every run")
    options = parser.parse_args()
    name = f"speedrun-{options.experiment}-{options.seeds}"
    search = ["-m", "hydra/sweeper=swinexp_optuna", "hydra/sweeper/sampler=grid", f"hydra.sweeper.study_name={name}"]
    seeds = f"seed=choice({','.join(map(str, range(options.seeds)))})"  # of one too
    command = ["-m", "swinexp.run", *search, f"experiment={options.experiment}", seeds, *options.overrides]
    code = subprocess.run([sys.executable, *command], check=False).returncode
    if code:
        sys.exit(code)
    folder = Path("outputs/sweeps") / name
    runs = [told(folder / str(number)) for number in range(options.seeds)]
    about = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(first_line(about))
    for key in ("test/accuracy", "ema/test/accuracy"):
        values = [run[key] for run in runs if key in run]
        if values:
            spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
            verdict = "reached" if statistics.mean(values) >= options.aim else "missed"
            mean = f"{100 * statistics.mean(values):.2f}{spread} %"
            print(f"{key:20}{mean:>18}  n={len(values)}  aim {100 * options.aim:.2f} % {verdict}")
    cold = runs[0]["train_seconds"] + runs[0].get("compile_seconds", 0.0)
    warm = statistics.median(run["train_seconds"] for run in runs[1:] or runs)
    print(f"seconds of training   warm {warm:.1f}   cold {cold:.1f}, compiling included")
    if options.out:
        options.out.write_text(
            json.dumps({**about, "command": sys.argv[1:], "warm": warm, "cold": cold, "runs": runs}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
