"""The model card of an exported run: what it is, its own results, and how to use it without medr1."""

from __future__ import annotations

from collections.abc import Mapping

from medr1.domain.reasoning import ReasoningMode, question_text

_LOAD = {
    False: """\
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

base = "."  # this directory
model = AutoModelForImageTextToText.from_pretrained(base).eval()""",
    True: """\
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig, Qwen2VLImageProcessorPil

base = "BASE"  # the base model: a directory or hub id
model = AutoModelForImageTextToText.from_pretrained(base)
model.generation_config = GenerationConfig()  # the base's own may penalise repetitions
model = PeftModel.from_pretrained(model, ".").eval()  # this directory""",
}


def model_card(
    title: str,
    *,
    base: str,
    base_id: str | None,
    base_license: str | None,
    recipe: Mapping[str, str],
    results: str,
    mode: ReasoningMode,
    image_size: int,
    max_completion_length: int,
    adapter: bool,
) -> str:
    """Markdown with the hub's front matter. ``base_id`` is the base on the hub, None where it is not there;
    ``results`` the run's own table; ``adapter``: the weights are a PEFT adapter, not a whole checkpoint."""
    front = {
        "base_model": base_id,
        "license": base_license,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
    }
    meta = "\n".join(f"{key}: {value}" for key, value in front.items() if value)
    question = question_text("Which modality is this?", {"A": "ct", "B": "mri"}, mode)
    rows = "\n".join(f"| {key} | {value} |" for key, value in recipe.items())
    terms = f"They are those of the base ({base_license})" if base_license else "See the base model's licence"
    return f"""\
---
{meta}
---

# {title}

Trained by medr1 from {base}: {"a PEFT adapter" if adapter else "a whole checkpoint"} that answers multiple-choice
questions on medical pictures. An instrument of research: its answers are no medical advice.

## Recipe

| | |
|---|---|
{rows}

## Results

The run's own, on its test records:

{results.strip()}

## Use

With transformers{" and peft" if adapter else ""} alone; torchvision is not needed:

```python
import torch
from PIL import Image
{_LOAD[adapter].replace("BASE", base_id or "BASE")}
tokenizer = AutoTokenizer.from_pretrained(base)
pictures = Qwen2VLImageProcessorPil.from_pretrained(base)

image = Image.open("image.png").convert("RGB").resize(({image_size}, {image_size}), Image.Resampling.BICUBIC)
question = {question!r}
content = [{{"type": "image"}}, {{"type": "text", "text": question}}]
text = tokenizer.apply_chat_template(
    [{{"role": "user", "content": content}}], tokenize=False, add_generation_prompt=True
)
picture = pictures(images=[image], do_resize=False, return_tensors="pt")
tokens = int(picture["image_grid_thw"].prod()) // pictures.merge_size**2
text = text.replace("<|image_pad|>", "<|image_pad|>" * tokens)
prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False)
ids = prompt["input_ids"]
with torch.no_grad():
    out = model.generate(
        input_ids=ids,
        attention_mask=prompt["attention_mask"],
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        **picture,
        max_new_tokens={max_completion_length},
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=sorted(set(tokenizer.all_special_ids) - {{tokenizer.eos_token_id}}),
    )
print(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
```

medr1 itself asks it with `python -m medr1.ask IMAGE QUESTION OPTION OPTION --model DIR`.

## Licence

{terms}; those of the training data hold beside them.
"""
