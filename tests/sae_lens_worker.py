"""Run by the parity test in a process that has SAELens: its features and files beside ours.

    python sae_lens_worker.py FOLDER

FOLDER/x.npy are activations. Every folder ours/NAME is read by SAELens, which writes the features
and reconstruction that it finds beside it; and SAELens writes dictionaries of its own to
theirs/NAME.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sae_lens.saes import sae as base
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sae_lens.saes.transcoder import SkipTranscoder, SkipTranscoderConfig

D, F = 16, 48
WITH = {"metadata": base.SAEMetadata(model_name="m", hook_name="blocks.2.hook_mlp_out")}
KINDS = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "scaled": (StandardSAE, StandardSAEConfig, {"normalize_activations": "layer_norm"}),
    "rescaled": (
        StandardSAE,
        StandardSAEConfig,
        {"normalize_activations": "constant_norm_rescale"},
    ),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 6}),
    "by-norm": (TopKSAE, TopKSAEConfig, {"k": 6, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {"apply_b_dec_to_input": False}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "skip": (SkipTranscoder, SkipTranscoderConfig, {"d_out": D, "apply_b_dec_to_input": False}),
}


def seen(sae, x, folder):
    """Features and reconstruction, kept beside the dictionary."""
    with torch.no_grad():
        f = sae.encode(x)
        skip = getattr(sae, "W_skip", None)
        y = sae(x) if skip is not None else sae.decode(f)
    np.savez(folder / "found.npz", f=f.numpy(), y=y.numpy())


def main(folder):
    x = torch.from_numpy(np.load(folder / "x.npy"))
    for own in sorted((folder / "ours").iterdir()):
        seen(base.SAE.load_from_disk(own), x, own)
    for name, (kind, config, more) in KINDS.items():
        torch.manual_seed(len(name))
        sae = kind(config(d_in=D, d_sae=F, **WITH, **more))
        with torch.no_grad():
            for weight in sae.parameters():
                weight.copy_(torch.randn_like(weight) / 4)
            if name == "jumprelu":
                sae.threshold.abs_()
        to = folder / "theirs" / name
        sae.save_model(to)
        seen(sae, x, to)


main(Path(sys.argv[1]))
