"""Progressive distillation of diffusion models, written to be read beside the paper.

Salimans & Ho, *Progressive Distillation for Fast Sampling of Diffusion Models*, ICLR 2022.
"""

__version__ = "0.1.0"
