"""A saved checkpoint loads as it was; damaged and unsupported ones are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from medr1.domain.reasoning import TAGS
from medr1.errors import CheckpointError
from medr1.generation.rollout import rollout
from medr1.generation.sampling import Sampling
from medr1.models import loading
from medr1.models.loading import ModelSpec, load_policy, resolve_attn_implementation
from tests.unit.models.checkpoints import (
    SIZES,
    WEIGHTS,
    Damage,
    as_pickle,
    cut,
    edit_config,
    edit_json,
    edit_weights,
    load,
    logits,
    remove,
    write,
)


@torch.no_grad()
def test_a_checkpoint_comes_back_as_it_was(saved, make_prompts) -> None:
    path, policy, processor = saved
    again, its_processor = load(path)
    assert {p.name for p in path.iterdir()} >= {"config.json", WEIGHTS, "tokenizer.json", "preprocessor_config.json"}
    assert torch.equal(logits(again, its_processor, make_prompts), logits(policy, processor, make_prompts))
    assert (
        its_processor.suppressed_token_ids() == processor.suppressed_token_ids()
        and its_processor.eos_token_id == processor.eos_token_id
    )
    assert its_processor.tokenizer.padding_side == "left" and not again.training


@torch.no_grad()
def test_the_config_of_the_released_checkpoints_reads_the_same(saved, tmp_path, make_prompts) -> None:
    """The config files on the hub have older forms than transformers writes today.

    Qwen2-VL and Qwen2.5-VL have the text model's settings at the top level. All have older settings of the rotary
    embedding, and Qwen3-VL another name for the vision tower.
    """
    path, policy, processor = saved
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    if config["model_type"] == "qwen3_vl":
        text["rope_scaling"] = rope
        config["text_config"] = text
        config["vision_config"]["model_type"] = "qwen3_vl"
    else:
        text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
        config = text | config
    (tmp_path / "config.json").write_text(json.dumps(config))
    again, its_processor = load(tmp_path)
    assert torch.equal(logits(again, its_processor, make_prompts), logits(policy, processor, make_prompts))


def final_norm(weights: dict[str, Tensor]) -> str:
    """model.norm.weight or model.language_model.norm.weight, as in the files on the hub."""
    (name,) = (name for name in weights if name.endswith("model.norm.weight"))
    return name


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(edit_config(model_type="llama"), "'llama'", id="other family"),
        pytest.param(edit_config(model_type="x", auto_map={"AutoConfig": "x.Y"}), "configuration", id="own code"),
        pytest.param(edit_config(text_config={"hidden_size": "wide"}), "hidden_size", id="type in the config"),
        pytest.param(edit_config(image_token_id=5), "tokenizer has no", id="tokenizer of another model"),
        pytest.param(
            lambda path: edit_config(
                text_config=(text := json.loads((path / "config.json").read_text())["text_config"])
                | {"layer_types": ["full_attention"] * (text["num_hidden_layers"] - 1) + ["sliding_attention"]}
                | {"sliding_window": 8}
            )(path),
            "sliding_attention.*use_sliding_window",
            id="sliding window",
        ),
        pytest.param(remove("config.json"), "no config.json there", id="no config"),
        pytest.param(write("config.json", "{"), "configuration cannot be read", id="damaged config"),
        pytest.param(cut(WEIGHTS, 0), "cannot be loaded", id="empty weights"),
        pytest.param(cut(WEIGHTS, 3000), "cannot be loaded", id="header cut"),
        pytest.param(cut(WEIGHTS, -16), "cannot be loaded", id="weights cut"),
        pytest.param(remove(WEIGHTS), "no file named model.safetensors", id="no weights"),
        pytest.param(as_pickle(WEIGHTS, "pytorch_model.bin"), "no file named model.safetensors", id="pickle"),
        pytest.param(edit_weights(WEIGHTS, lambda w: w.pop(final_norm(w))), r"norm\.weight", id="missing weight"),
        pytest.param(
            edit_weights(WEIGHTS, lambda w: w.update({final_norm(w): torch.ones(3)})),
            "cannot be loaded",
            id="another shape",
        ),
        pytest.param(remove("*token*"), "tokenizer has no", id="no tokenizer"),
        pytest.param(write("tokenizer.json", "{}"), "cannot be loaded", id="damaged tokenizer"),
        pytest.param(remove("chat_template.jinja"), "no chat template", id="no chat template"),
        pytest.param(remove("preprocessor_config.json"), "image processor", id="no image processor"),
        pytest.param(edit_json("preprocessor_config.json", merge_size=1), "merge_size=1", id="other patches"),
        pytest.param(edit_config(model_type="qwen3_vl_moe"), "'qwen3_vl_moe'", id="experts"),
        pytest.param(
            lambda path: write(
                "chat_template.jinja", (path / "chat_template.jinja").read_text() + "{{ '<think>\\n' }}"
            )(path),
            "<think>",
            id="thinking",
        ),
    ],
)
def test_damaged_and_foreign_checkpoints_are_refused(saved, tmp_path, damage: Damage, message: str) -> None:
    path = tmp_path / "copy"
    shutil.copytree(saved[0], path)
    load(path)
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_shipped_generation_settings_change_nothing(saved, tmp_path, make_prompts) -> None:
    """Qwen2.5-VL ships top_k = 1, with which all samples of a group would be one."""
    path = tmp_path / "copy"
    shutil.copytree(saved[0], path)
    shipped = {"do_sample": True, "top_k": 1, "temperature": 0.01, "repetition_penalty": 5.0, "max_length": 3}
    (path / "generation_config.json").write_text(json.dumps(shipped))
    uniforms = torch.rand(len(SIZES) * 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for checkpoint in (saved[0], path):
        policy, processor = load(checkpoint)
        s = replace(Sampling.greedy(8, processor), temperature=1.0)
        prefix = policy.prefill(processor.encode(make_prompts(processor, SIZES)))
        results.append(rollout(policy, prefix, s, 4, uniforms))
    assert policy.model.generation_config.top_k == 1  # it was loaded
    assert torch.equal(results[0].ids, results[1].ids) and torch.equal(results[0].logprobs, results[1].logprobs)
    assert all(len({tuple(row.tolist()) for row in group}) == 4 for group in results[1].ids.view(3, 4, -1))


def test_the_chat_template_file_of_older_checkpoints_is_read(saved, tmp_path) -> None:
    path, _, processor = saved
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    template = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load(tmp_path)[1].chat("Which organ?") == processor.chat("Which organ?")


def test_an_image_size_that_does_not_fit_is_refused_before_the_weights_are_read(saved, tmp_path) -> None:
    path, _, processor = saved
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    (tmp_path / WEIGHTS).unlink()
    token = {"qwen3_vl": 32}.get(path.name, 28)
    assert processor.image_token_size == token
    near = {28: 392, 32: 384}[token]
    with pytest.raises(CheckpointError, match=f"image_size={near}.*image_token_size={token}"):
        load_policy(ModelSpec(str(tmp_path), image_size=388))
    with pytest.raises(CheckpointError, match="no file named"):
        load_policy(ModelSpec(str(tmp_path), image_size=2 * token))


def test_attention_is_the_fastest_that_machine_and_precision_allow(monkeypatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(loading, "is_flash_attn_2_available", lambda: False)
    assert (
        resolve_attn_implementation("auto", "bfloat16", gpu)
        == resolve_attn_implementation("auto", "bfloat16", cpu)
        == "sdpa"
    )
    assert resolve_attn_implementation("eager", "bfloat16", gpu) == "eager"
    monkeypatch.setattr(loading, "is_flash_attn_2_available", lambda: True)
    for capability, found in (((7, 5), "sdpa"), ((8, 0), "flash_attention_2"), ((9, 0), "flash_attention_2")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert resolve_attn_implementation("auto", "bfloat16", gpu) == found
    assert (
        resolve_attn_implementation("auto", "float32", gpu)
        == resolve_attn_implementation("auto", "bfloat16", cpu)
        == "sdpa"
    )


def declare(**fields: object) -> Damage:
    """Changes how tokenizer.json declares the reasoning tags."""

    def apply(path) -> None:
        content = json.loads((path / "tokenizer.json").read_text())
        for token in content["added_tokens"]:
            if token["content"] in TAGS:
                token.update(fields)
        (path / "tokenizer.json").write_text(json.dumps(content))
        settings = json.loads((path / "tokenizer_config.json").read_text())
        settings.pop("added_tokens_decoder", None)
        (path / "tokenizer_config.json").write_text(json.dumps(settings))

    return apply


def test_a_checkpoint_whose_tags_are_special_samples_and_keeps_them(saved, tmp_path, make_prompts) -> None:
    path = tmp_path / "copy"
    shutil.copytree(saved[0], path)
    declare(special=True)(path)
    policy, processor = load(path)
    tags = processor.tokenizer.convert_tokens_to_ids(list(TAGS))
    assert processor.tokenizer.decode(tags, skip_special_tokens=True) == ""  # what would be lost
    uniforms = torch.rand(len(SIZES) * 32, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    texts = []
    for own in (processor, saved[2]):
        sampling = replace(Sampling.greedy(12, own), temperature=4.0)
        prefix = policy.prefill(own.encode(make_prompts(own, SIZES)))
        completions = rollout(policy, prefix, sampling, 32, uniforms)
        texts.append(own.decode(completions.ids, completions.mask))
    assert texts[0] == texts[1]
    assert all(any(tag in text for text in texts[0]) for tag in TAGS)


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_as_the_end_token_is_refused(saved, tmp_path, tag: str) -> None:
    path = tmp_path / "copy"
    shutil.copytree(saved[0], path)
    edit_json("tokenizer_config.json", eos_token=tag)(path)
    with pytest.raises(CheckpointError, match="EOS token") as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_tokenizer_that_changes_the_tags_is_refused(saved, tmp_path) -> None:
    path = tmp_path / "copy"
    shutil.copytree(saved[0], path)
    declare(lstrip=True, rstrip=True)(path)  # swallow the blanks around them, which changes nothing here
    load(path)
    content = json.loads((path / "tokenizer.json").read_text())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in TAGS]
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "<think>"}, "content": ""}
    (path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="<think>"):
        load(path)
