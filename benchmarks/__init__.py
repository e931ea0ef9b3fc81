"""Questions of speed and quality, each answered beside a stated baseline.

``python -m benchmarks`` lists them.
"""

import os

# JAX would take three quarters of a GPU's memory for itself, and PyTorch runs on the same one.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
