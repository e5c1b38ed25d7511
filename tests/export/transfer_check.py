"""Run by nnU-Net's interpreter: its trainer takes a file of ours, shows its features, and trains a few steps.

python transfer_check.py PLANS WEIGHTS IMAGES.npy OUTPUT.npz
"""

from __future__ import annotations

import os
import sys

import numpy as np
import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

plans, weights, images, output = sys.argv[1:]
torch.set_num_threads(1)
# No worker processes; planning cannot do with 0.
os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 (its name)
trainer = get_trainer_from_args("42", "2d", "all", plans_identifier=plans, device=torch.device("cpu"))
maybe_load_checkpoint(trainer, continue_training=False, validation_only=False, pretrained_weights_file=weights)

network = trainer.network.eval()
shown: dict[str, np.ndarray] = {}
network.decoder.stages[-1].register_forward_hook(lambda *call: shown.update(decoder=call[-1].numpy()))
with torch.no_grad():
    image = torch.from_numpy(np.load(images))
    shown |= {f"encoder_{stage}": features.numpy() for stage, features in enumerate(network.encoder(image))}
    answer = network(image)
    head = network.decoder.seg_layers[-1]
    shown |= {"logits": (answer[0] if isinstance(answer, list | tuple) else answer).numpy()}
    shown |= {"head.weight": head.weight.numpy().copy(), "head.bias": head.bias.numpy().copy()}

before = {name: value.clone() for name, value in network.state_dict().items()}
trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 3, 1
trainer.run_training()
after = trainer.network.state_dict()
assert all(bool(value.isfinite().all()) for value in after.values())
moved = [name for name in before if not torch.equal(before[name], after[name])]
shown["moved"] = np.array([any(name.startswith(part) for name in moved) for part in ("encoder.", "decoder.stages.")])
np.savez(output, **shown)
