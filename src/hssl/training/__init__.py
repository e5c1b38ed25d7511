"""Pre-training and fine-tuning; the run folders they leave are in :mod:`hssl.runs`."""

from hssl.runs import Run, RunInfo, load_segmentation, load_unet
from hssl.training.finetune import finetune
from hssl.training.pretrain import pretrain

__all__ = ["Run", "RunInfo", "finetune", "load_segmentation", "load_unet", "pretrain"]
