"""Loading, choosing what is trained, and saving: what is damaged is refused, and nothing else changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medr1.errors import CheckpointError
from medr1.generation.rollout import Sampling, rollout
from medr1.models import loading
from medr1.models.loading import load_policy, make_reference, resolve_attn_implementation, save_policy, set_trainable
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.training.optimization import build_optimizer
from tests.conftest import FAMILIES

SIZES = [(2, 2), None, (3, 2)]
OPTIMIZER: dict[str, Any] = {
    "learning_rate": 0.1,
    "weight_decay": 0.1,
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0.0,
}
OPTIMIZER |= {"steps": 1, "adam_beta2": 0.999}
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
Damage = Callable[[Path], object]


def load(path: Path, adapter: Path | None = None, checkpointing: bool = False) -> tuple[Policy, Processor]:
    return load_policy(
        str(path), dtype="float32", attn_implementation="sdpa", gradient_checkpointing=checkpointing, adapter=adapter
    )


def logits(policy: Policy, processor: Processor, make_prompts) -> Tensor:
    return policy.logits(policy.prefill(processor.encode(make_prompts(processor, SIZES))).hidden)


@pytest.fixture(scope="session", params=FAMILIES)
def saved(request, build, tmp_path_factory) -> tuple[Path, Policy, Processor]:
    """A checkpoint in the hub's format and the policy it was made from."""
    policy, processor = build(request.param, seed=5)
    path = tmp_path_factory.mktemp("checkpoint") / request.param
    save_policy(policy, processor, path)
    return path, policy, processor


@pytest.fixture(scope="session")
def base(build, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "checkpoint"
    save_policy(*build("qwen2_vl", seed=6), path)
    return path


def with_adapter(base: Path, targets: str = "both", freeze_vision_tower: bool = False) -> tuple[Policy, Processor]:
    """A policy with an adapter that does something, as after training."""
    policy, processor = load(base)
    set_trainable(policy, freeze_vision_tower=freeze_vision_tower, lora=(2, 4, targets))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return policy, processor


@torch.no_grad()
def test_a_checkpoint_comes_back_as_it_was(saved, make_prompts) -> None:
    path, policy, processor = saved
    again, its_encoder = load(path)
    assert {p.name for p in path.iterdir()} >= {"config.json", WEIGHTS, "tokenizer.json", "preprocessor_config.json"}
    assert torch.equal(logits(again, its_encoder, make_prompts), logits(policy, processor, make_prompts))
    assert (
        its_encoder.suppressed_token_ids() == processor.suppressed_token_ids()
        and its_encoder.eos_token_id == processor.eos_token_id
    )
    assert its_encoder.tokenizer.padding_side == "left" and not again.training


@torch.no_grad()
def test_the_config_of_the_released_checkpoints_reads_the_same(saved, tmp_path, make_prompts) -> None:
    """transformers nests the text model's settings today; the files of Qwen2-VL and Qwen2.5-VL on the hub have them at
    the top. All have an older form of the rotary embedding's, and Qwen3-VL's another name of the vision tower."""
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
    again, its_encoder = load(tmp_path)
    assert torch.equal(logits(again, its_encoder, make_prompts), logits(policy, processor, make_prompts))


def edit_json(name: str, **changes: object) -> Damage:
    def apply(path: Path) -> None:
        content = json.loads((path / name).read_text()) | changes
        (path / name).write_text(json.dumps(content))

    return apply


def edit_config(**changes: object) -> Damage:
    return edit_json("config.json", **changes)


def edit_weights(name: str, change: Callable[[dict[str, Tensor]], object]) -> Damage:
    def apply(path: Path) -> None:
        weights = load_file(path / name)
        change(weights)
        save_file(weights, path / name, metadata={"format": "pt"})

    return apply


def final_norm(weights: dict[str, Tensor]) -> str:
    """Named as the hub's files name it: model.norm.weight, or model.language_model.norm.weight."""
    (name,) = (name for name in weights if name.endswith("model.norm.weight"))
    return name


def as_pickle(name: str, pickle: str) -> Damage:
    def apply(path: Path) -> None:
        torch.save(load_file(path / name), path / pickle)
        (path / name).unlink()

    return apply


def cut(name: str, end: int) -> Damage:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:end])


def write(name: str, text: str) -> Damage:
    return lambda path: (path / name).write_text(text)


def remove(pattern: str) -> Damage:
    return lambda path: [file.unlink() for file in path.glob(pattern)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(edit_config(model_type="llama"), "'llama' checkpoint; medr1 trains qwen2_vl", id="other family"),
        pytest.param(edit_config(model_type="x", auto_map={"AutoConfig": "x.Y"}), "configuration", id="own code"),
        pytest.param(edit_config(text_config={"hidden_size": "wide"}), "hidden_size", id="type in the config"),
        pytest.param(edit_config(image_token_id=5), "tokenizer has no", id="tokenizer of another model"),
        pytest.param(
            lambda path: edit_config(
                text_config=(text := json.loads((path / "config.json").read_text())["text_config"])
                | {"layer_types": ["full_attention"] * (text["num_hidden_layers"] - 1) + ["sliding_attention"]}
                | {"sliding_window": 8}
            )(path),
            "layers of sliding_attention; set use_sliding_window to false",
            id="sliding window",
        ),
        pytest.param(remove("config.json"), "no config.json there", id="no config"),
        pytest.param(write("config.json", "{"), "configuration cannot be read", id="damaged config"),
        pytest.param(cut(WEIGHTS, 0), "cannot be loaded", id="empty weights"),
        pytest.param(cut(WEIGHTS, 3000), "cannot be loaded", id="header cut"),
        pytest.param(cut(WEIGHTS, -16), "cannot be loaded", id="weights cut"),
        pytest.param(remove(WEIGHTS), "no file named model.safetensors", id="no weights"),
        pytest.param(as_pickle(WEIGHTS, "pytorch_model.bin"), "no file named model.safetensors", id="pickle"),
        pytest.param(edit_weights(WEIGHTS, lambda w: w.pop(final_norm(w))), "lacks 1", id="lost"),
        pytest.param(
            edit_weights(WEIGHTS, lambda w: w.update({final_norm(w): torch.ones(3)})),
            "cannot be loaded",
            id="another shape",
        ),
        pytest.param(remove("*token*"), "tokenizer has no", id="no tokenizer"),
        pytest.param(write("tokenizer.json", "{}"), "cannot be loaded", id="damaged tokenizer"),
        pytest.param(remove("chat_template.jinja"), "no chat template", id="no chat template"),
        pytest.param(remove("preprocessor_config.json"), "image processor", id="no image processor"),
        pytest.param(edit_json("preprocessor_config.json", merge_size=1), "merged by 1, but", id="other patches"),
        pytest.param(edit_config(model_type="qwen3_vl_moe"), "mixture of experts; medr1 knows only", id="experts"),
        pytest.param(
            lambda path: write(
                "chat_template.jinja", (path / "chat_template.jinja").read_text() + "{{ '<think>\\n' }}"
            )(path),
            "begins every answer with <think>.* take the Instruct checkpoint",
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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(cut(ADAPTER, -16), "cannot be loaded", id="weights cut"),
        pytest.param(remove(ADAPTER), "no adapter_model.safetensors", id="no weights"),
        pytest.param(as_pickle(ADAPTER, "adapter_model.bin"), "no adapter_model.safetensors", id="pickle"),
        pytest.param(edit_weights(ADAPTER, lambda w: w.pop(min(w))), "not those of", id="lost"),
        pytest.param(edit_weights(ADAPTER, lambda w: w.update(x=torch.ones(1))), "not those of", id="too much"),
        pytest.param(remove("adapter_config.json"), "adapter_config.json", id="no config"),
        pytest.param(write("adapter_config.json", "{}"), "cannot be loaded", id="empty config"),
    ],
)
def test_damaged_adapters_are_refused(base, tmp_path, damage: Damage, message: str) -> None:
    path = tmp_path / "adapter"
    save_policy(*with_adapter(base), path)
    load(base, path)
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(base, path)
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
        s = Sampling(8, processor.eos_token_id, tuple(processor.suppressed_token_ids()))
        prefix = policy.prefill(processor.encode(make_prompts(processor, SIZES)))
        results.append(rollout(policy, prefix, s, 4, uniforms))
    assert policy.model.generation_config.top_k == 1  # it was there to be heeded
    assert torch.equal(results[0].ids, results[1].ids) and torch.equal(results[0].logprobs, results[1].logprobs)
    assert all(len({tuple(row.tolist()) for row in group}) == 4 for group in results[1].ids.view(3, 4, -1))


def test_the_chat_template_of_older_checkpoints_is_found_beside_the_processor(saved, tmp_path) -> None:
    path, _, processor = saved
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    template = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load(tmp_path)[1].chat("Which organ?") == processor.chat("Which organ?")


def test_pictures_that_are_no_whole_number_of_tokens_are_refused_before_the_weights_are_read(saved, tmp_path) -> None:
    path, _, processor = saved
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    (tmp_path / WEIGHTS).unlink()
    token = {"qwen3_vl": 32}.get(path.name, 28)
    assert processor.image_token == token
    given: dict[str, Any] = {"dtype": "float32", "attn_implementation": "sdpa", "gradient_checkpointing": False}
    near = {28: 392, 32: 384}[token]
    with pytest.raises(CheckpointError, match=f"image_size of {near} .*image_token={token}"):
        load_policy(str(tmp_path), image_size=388, **given)
    with pytest.raises(CheckpointError, match="no file named"):
        load_policy(str(tmp_path), image_size=2 * token, **given)


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


def test_full_tuning_trains_everything(saved) -> None:
    policy, _ = load(saved[0])
    set_trainable(policy, freeze_vision_tower=False, lora=None)
    assert all(p.requires_grad for p in policy.parameters())
    assert len(policy.trained_state("policy.")) == len(list(policy.parameters()))


@pytest.mark.parametrize("targets", ["language", "vision", "both"])
def test_lora_trains_adapters_alone_in_the_half_that_was_asked_for(saved, targets: str) -> None:
    policy, _ = with_adapter(saved[0], targets)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    halves = {half for half in ("language_model", "visual") if any(half in name for name in trained)}
    assert (
        halves == {"language": {"language_model"}, "vision": {"visual"}, "both": {"language_model", "visual"}}[targets]
    )
    assert set(policy.trained_state("policy.")) == {f"policy.{name}" for name in trained}
    # Every linear layer of the decoder layers and of the blocks of the vision tower, A and B.
    adapted = {name.split(".lora_")[0].split("base_model.model.")[1] for name in trained}
    core = load(saved[0])[0].core
    linear = {name for name, module in core.named_modules() if isinstance(module, torch.nn.Linear)}
    parts = {"language": ("language_model",), "vision": ("visual.blocks",), "both": ("language_model", "visual.blocks")}
    assert adapted == {name for name in linear if any(part in name for part in parts[targets])}
    assert len(trained) == 2 * len(adapted)


@torch.no_grad()
def test_with_the_adapter_off_the_policy_is_the_base(saved, make_prompts) -> None:
    path, before, processor = saved
    policy, _ = with_adapter(path)
    untouched = logits(before, processor, make_prompts)
    assert (logits(policy, processor, make_prompts) - untouched).abs().max() > 0.1
    with policy.without_adapter():
        assert torch.equal(logits(policy, processor, make_prompts), untouched)
    assert (logits(policy, processor, make_prompts) - untouched).abs().max() > 0.1
    assert make_reference(policy) is None


@pytest.mark.parametrize("lora", [None, (2, 4, "both")])
def test_no_gradient_reaches_a_frozen_vision_tower(saved, make_prompts, lora) -> None:
    policy, processor = load(saved[0])
    set_trainable(policy, freeze_vision_tower=True, lora=lora)
    logits(policy, processor, make_prompts).square().sum().backward()
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    optimizer, _ = build_optimizer(policy.parameters(), **OPTIMIZER)
    optimizer.step()
    changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert changed and not any("visual" in name for name in changed)
    reached = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached and not any("visual" in name for name in reached)
    assert {name for name, p in policy.named_parameters() if "visual" in name and p.requires_grad} == set()


def test_a_choice_that_trains_nothing_is_refused(saved) -> None:
    policy, _ = load(saved[0])
    with pytest.raises(CheckpointError, match="nothing is left to train"):
        set_trainable(policy, freeze_vision_tower=True, lora=(2, 4, "vision"))


@torch.no_grad()
def test_a_saved_adapter_comes_back_on_its_base(saved, tmp_path, make_prompts) -> None:
    path, _, _ = saved
    policy, processor = with_adapter(path)
    save_policy(policy, processor, tmp_path)
    assert not (tmp_path / WEIGHTS).exists()
    again, its_encoder = load(path, tmp_path)
    assert torch.equal(logits(again, its_encoder, make_prompts), logits(policy, processor, make_prompts))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_reference_stays_when_the_policy_is_trained(saved, make_prompts, checkpointing: bool) -> None:
    policy, processor = load(saved[0], checkpointing=checkpointing)
    assert policy.gradient_checkpointing is checkpointing
    set_trainable(policy, freeze_vision_tower=False, lora=None)
    reference = make_reference(policy)
    assert reference is not None and not any(p.requires_grad for p in reference.parameters())
    before = logits(policy, processor, make_prompts)
    before.square().mean().backward()
    torch.optim.SGD(policy.parameters(), lr=0.1).step()
    with torch.no_grad():
        assert torch.equal(logits(reference, processor, make_prompts), before)
        assert not torch.allclose(logits(policy, processor, make_prompts), before, atol=1e-3)
    assert policy.core.is_activation_checkpointing is checkpointing
    assert not reference.gradient_checkpointing and not reference.core.is_activation_checkpointing
