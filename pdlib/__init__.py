"""Progressive distillation of diffusion models, written to be read beside the paper.

Salimans & Ho, *Progressive Distillation for Fast Sampling of Diffusion Models*, ICLR 2022.
"""

import os

__version__ = "0.1.0"

# How long a thread of torch's that waits for another spins before it sleeps. Long spinning wastes the
# processor where other programs want it, none at all wastes the time of waking up. Read once, when torch
# is first imported; a choice of your own is kept.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
