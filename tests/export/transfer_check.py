"""Run by nnU-Net's interpreter: its trainer takes a file of ours, shows its features, and trains a few steps.

python transfer_check.py PLANS WEIGHTS IMAGES.npy OUTPUT.npz           as nnUNetv2_train -pretrained_weights does
python transfer_check.py PLANS WEIGHTS IMAGES.npy OUTPUT.npz --nnssl   as nnUNetv2_train_pretrained does
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

plans, weights, images, output, *nnssl = sys.argv[1:]
torch.set_num_threads(1)
# No worker processes; planning cannot do with 0.
os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 (its name)
cpu = torch.device("cpu")
if nnssl:
    # What nnUNetv2_preprocess_like_nnssl writes, but for configuration 2d: that program knows 3d_fullres only.
    folder = Path(os.environ["nnUNet_preprocessed"]) / "Dataset042_Phantom"  # noqa: SIM112
    described = json.loads((folder / f"{plans}.json").read_text())
    pretrained = torch.load(weights, weights_only=True)["nnssl_adaptation_plan"]
    ((_, pretraining),) = pretrained["pretrain_plan"]["configurations"].items()
    described["pretrain_info"] = {
        "checkpoint_path": weights,
        "pt_num_in_channels": pretrained["pretrain_num_input_channels"],
        "pt_used_patchsize": pretraining["patch_size"],
        **{name: pretrained[name] for name in ("key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe")},
    }
    architecture = pretrained["architecture_plans"]
    described["configurations"]["2d"] |= {
        "patch_size": pretrained["recommended_downstream_patchsize"],
        "architecture": {
            "network_class_name": architecture["arch_class_name"],
            "arch_kwargs": architecture["arch_kwargs"],
            "_kw_requires_import": architecture["arch_kwargs_requiring_import"],
        },
    }
    (folder / "ptPlans.json").write_text(json.dumps(described))
    trainer = get_trainer_from_args("42", "2d", "all", "PretrainedTrainer", "ptPlans", device=cpu)
    trainer.initialize()
else:
    trainer = get_trainer_from_args("42", "2d", "all", plans_identifier=plans, device=cpu)
    maybe_load_checkpoint(trainer, continue_training=False, validation_only=False, pretrained_weights_file=weights)

network = trainer.network.eval()
shown: dict[str, np.ndarray] = {}
hook = network.decoder.stages[-1].register_forward_hook(lambda *call: shown.update(decoder=call[-1].numpy()))
with torch.no_grad():
    image = torch.from_numpy(np.load(images))
    shown |= {f"encoder_{stage}": features.numpy() for stage, features in enumerate(network.encoder(image))}
    answer = network(image)
    head = network.decoder.seg_layers[-1]
    shown |= {"logits": (answer[0] if isinstance(answer, list | tuple) else answer).numpy()}
    shown |= {"head.weight": head.weight.numpy().copy(), "head.bias": head.bias.numpy().copy()}
hook.remove()

before = {name: value.clone() for name, value in network.state_dict().items()}
trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 3, 1
trainer.run_training()
after = trainer.network.state_dict()
assert all(bool(value.isfinite().all()) for value in after.values())
moved = [name for name in before if not torch.equal(before[name], after[name])]
shown["moved"] = np.array([any(name.startswith(part) for name in moved) for part in ("encoder.", "decoder.stages.")])
np.savez(output, **shown)
