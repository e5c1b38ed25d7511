"""Pre-training and fine-tuning; the run folders they leave are in :mod:`hssl.runs`."""

from hssl.training.finetune import finetune
from hssl.training.pretrain import pretrain

__all__ = ["finetune", "pretrain"]
