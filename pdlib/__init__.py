"""Progressive distillation of diffusion models, written to be read beside the paper.

Salimans & Ho, *Progressive Distillation for Fast Sampling of Diffusion Models*, ICLR 2022.
"""

import os

__version__ = "0.1.0"

# Let torch's idle threads sleep instead of spinning: on a machine with other work to do, a training
# is several times faster. Read once, when torch is first imported; a value of your own is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
