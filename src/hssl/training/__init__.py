"""Pre-training and fine-tuning, and the run folders they leave."""

from hssl.training.finetune import finetune
from hssl.training.pretrain import pretrain
from hssl.training.run import Run, RunInfo, load_segmentation, load_unet

__all__ = ["Run", "RunInfo", "finetune", "load_segmentation", "load_unet", "pretrain"]
