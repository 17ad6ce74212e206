"""Progressive distillation of diffusion models, written to be read beside the paper.

Salimans & Ho, *Progressive Distillation for Fast Sampling of Diffusion Models*, ICLR 2022.

Three independent choices make a training: a **schedule** (what z_t is), a **grid** (which times) and an **objective**
(what one update minimises). One interface joins everything: the denoiser, a callable (z, t) -> x̂ with a schedule.
"""

import os

import lazy_loader

__version__ = "0.2.0"

# How long a thread of torch's that waits for another spins before it sleeps. Long spinning wastes the
# processor where other programs want it, none at all wastes the time of waking up. Read once, when torch
# is first imported; a choice of your own is kept.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# Each name is imported when it is first asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["interop"],
    submod_attrs={
        "schedules": [
            "SCHEDULES",
            "CosineSchedule",
            "DiscreteSchedule",
            "LinearSchedule",
            "Schedule",
            "diffuse",
            "make_schedule",
            "zero_terminal_snr",
        ],
        "grids": ["Grid"],
        "predictions": ["PREDICTIONS", "Prediction"],
        "weightings": ["WEIGHTINGS", "Clipped", "Density", "weight"],
        "networks": ["MLP", "NETWORKS", "Network", "UNet"],
        "denoiser": ["Confined", "Denoiser", "DenoiserLike", "Guided", "OfClasses"],
        "exact": ["EmpiricalDenoiser", "GaussianDenoiser", "MixtureDenoiser"],
        "sampling": ["ancestral_step", "ddim_step", "sample", "sample_batches", "x_of_step"],
        "objectives": ["Answer", "Clean", "Objective", "PerClass", "TwoSteps", "distillation_target"],
        "training": ["Session", "Trained", "TrainingSettings", "fit"],
        "distillation": ["Stage", "convert", "distillation", "progressive_distillation"],
        "methods": ["METHODS", "Method", "learn", "make_method"],
        "diagnosis": ["diagnose"],
        "data": ["DATASETS", "Data", "load_data"],
        "metrics": ["METRICS", "feature_network", "measure"],
    },
)
