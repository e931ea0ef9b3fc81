"""Run by ``benchmarks.dictionaries`` in a process that has SAELens: encodes when it is told to.

    python dictionaries_sae_lens.py FOLDER

FOLDER/sae is a dictionary, FOLDER/x.npy activations. Each line that comes in is one call of
``encode``, after which a line goes out; FOLDER/features.npy are the first call's first 64 tokens.
"""

import importlib.metadata
import sys
from pathlib import Path

import numpy as np
import torch
from sae_lens.saes.sae import SAE  # type: ignore[import-not-found]


def main(folder: Path) -> None:
    """Answer until the input ends."""
    x = torch.from_numpy(np.load(folder / "x.npy"))
    sae = SAE.load_from_disk(folder / "sae")
    out = sys.stdout
    sys.stdout = sys.stderr  # whatever the package prints is no answer
    print(importlib.metadata.version("sae-lens"), file=out, flush=True)
    features = folder / "features.npy"
    with torch.no_grad():
        for _ in sys.stdin:
            f = sae.encode(x)
            if not features.exists():
                np.save(features, f[:64].numpy())
            del f
            print("done", file=out, flush=True)


main(Path(sys.argv[1]))
