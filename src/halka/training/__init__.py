"""Training: the loop, one adapter's run, and the folder that it can be resumed from."""

from halka.training.config import Step, TrainConfig, TrainResult
from halka.training.data import as_tokens
from halka.training.fitting import fit, train, train_many
from halka.training.job import Job
from halka.training.loop import Observer, mean_loss
from halka.training.ranks import Ranks, joined_ranks
from halka.training.run import batch_plan
from halka.training.run_folder import RunFolder

__all__ = [
    "Job",
    "Observer",
    "Ranks",
    "RunFolder",
    "Step",
    "TrainConfig",
    "TrainResult",
    "as_tokens",
    "batch_plan",
    "fit",
    "joined_ranks",
    "mean_loss",
    "train",
    "train_many",
]
