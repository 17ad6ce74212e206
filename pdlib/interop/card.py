"""The model card of a student that goes out: the README.md of its folder, in the form that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pdlib.files import is_hub_name
from pdlib.interop.library import diffusers, huggingface_hub

__all__ = ["model_card", "sampling_steps"]

_CITATION = """@inproceedings{salimans2022progressive,
  title = {Progressive Distillation for Fast Sampling of Diffusion Models},
  author = {Salimans, Tim and Ho, Jonathan},
  booktitle = {International Conference on Learning Representations},
  year = {2022}
}"""


def sampling_steps(card: Path) -> int | None:
    """For how many steps a folder's model card says that it was made; ``None`` where it does not, or is not there."""
    try:
        steps = huggingface_hub.ModelCard.load(card).data.to_dict().get("sampling_steps")
    except Exception:  # a card is for people: one that cannot be read is none
        return None
    return steps if isinstance(steps, int) and steps > 0 else None


def model_card(
    pipeline: diffusers.DDIMPipeline,
    steps: int,
    *,
    name: str,
    teacher: str | None = None,
    teacher_steps: int | None = None,
    data: str | None = None,
    guidance: float | None = None,
    figures: Mapping[str, str] | None = None,
) -> str:
    """What it is, how it is used, from what it was distilled, its figures, and how to cite: Markdown with metadata.

    Args:
        pipeline: what is saved.
        steps: in how many it is to be used.
        name: the model's.
        teacher: what it was distilled from, a folder or a name on the hub; ``None`` for no student.
        teacher_steps: in how many steps that one was sampled.
        data: what it was trained on.
        guidance: the weight of the teacher's guidance, which is in the student now.
        figures: what was measured, label -> value.
    """
    unet, scheduler = pipeline.unet.config, pipeline.scheduler.config
    many = f"{steps} steps" if steps > 1 else "one step"
    metadata = huggingface_hub.ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["progressive-distillation", "diffusion"],
        sampling_steps=steps,
        base_model=teacher if teacher and is_hub_name(teacher) else None,
    )
    origin = f": a student of progressive distillation, from `{teacher}`" if teacher else ""
    origin += f", sampled by DDIM in {teacher_steps} steps" if teacher_steps else ""
    origin += f", with guidance of weight {guidance:g}, which is in this model now: give none" if guidance else ""
    of = f" of images like those of `{data}`" if data else ""
    sizes = [unet.sample_size] * 2 if isinstance(unet.sample_size, int) else unet.sample_size
    noise = f"z = torch.randn(8, {unet.in_channels}, {', '.join(map(str, sizes))})"
    if unet.num_class_embeds is None:
        use = f"""from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("{name}")
images = pipeline(batch_size=8, num_inference_steps={steps}).images"""
    else:
        use = f"""import torch
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("{name}")
unet, scheduler = pipeline.unet, pipeline.scheduler
{noise}
classes = torch.arange(8) % {unet.num_class_embeds}
scheduler.set_timesteps({steps})
for t in scheduler.timesteps:
    with torch.no_grad():
        z = scheduler.step(unet(z, t, class_labels=classes).sample, t, z).prev_sample"""
    table = "\n".join(["| | |", "|---|---:|", *(f"| {label} | {value} |" for label, value in (figures or {}).items())])
    measured = f"\n## Figures\n\n{table}\n" if figures else ""
    return f"""---
{metadata.to_yaml()}
---

# {name}

A diffusion model{of} that samples in **{many}**{origin}.

## Use

```python
{use}
```

Use it with {many}, DDIM, and this scheduler, in which all is set that it takes: prediction
`{scheduler.prediction_type}`, {scheduler.num_train_timesteps} betas of its own, `trailing` timesteps, no clipping, the
last step to α = 1. Other numbers of steps are not what it was trained for.
{measured}
## Cite

```bibtex
{_CITATION}
```
"""
