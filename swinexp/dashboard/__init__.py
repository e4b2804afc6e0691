"""W&B's pages as code: `subject` (what they are of), `panels`, `workspace`, `report`, `server` (where they are kept);
and `wandb_sweep`, our sweeps as W&B's own.
"""
