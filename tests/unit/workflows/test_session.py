"""What a run asks of its data before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoTokenizer

from medr1.config.paths import CONF
from medr1.errors import ConfigError, DataError, RewardError, ServerError
from medr1.models.loading import control_tokens
from medr1.runs.run_directory import RunDirectory
from medr1.tracking.metrics_file import MetricsFile
from medr1.workflows.components import check_steps_ahead, steps_done
from medr1.workflows.session import _check_model, _last_steps, load_data, open_session, set_max_steps
from tests.composing import composed

TINY = CONF.parent / "medr1/models/tiny_base"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of the shipped model with further special tokens."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[SEP]", "<region>", "!"]})
    tokenizer.save_pretrained(folder)
    return folder


def release(root: Path, *questions: str, parts: tuple[str, ...] = ("train", "test")) -> Path:
    """Split files with these questions in each part."""
    (root / "Images").mkdir(parents=True)
    (root / "Splits").mkdir()
    (root / "QA_information").mkdir()
    Image.new("L", (40, 40), 90).save(root / "Images/0.png")
    records = [
        {
            "question_id": f"D_{n}",
            "question_type": "Disease Diagnosis",
            "question": question,
            "gt_answer": "x",
            "image_path": "Images/0.png",
            "option_A": "x",
            "option_B": "y",
            "modality_type": "CT",
        }
        for n, question in enumerate(questions)
    ]
    (root / "QA_information/D.json").write_text(json.dumps(records))
    for part in parts:
        problems = [
            {"image": "Images/0.png", "problem": f"{q} A)x, B)y", "solution": "<answer> A </answer>"} for q in questions
        ]
        (root / f"Splits/CT_{part}.json").write_text(json.dumps(problems))
    return root


def config(command: str, root: Path, *overrides: str) -> Any:
    data = ("data=omnimedvqa", f"data.root={root}", f"data.cache_dir={root.parent / 'cache'}", "tracking=none")
    return composed(command, *data, *overrides)


def test_the_special_tokens_of_a_tokenizer_are_its_control_tokens(checkpoint: Path, tmp_path: Path) -> None:
    shipped = control_tokens(str(TINY))
    assert {"<|im_end|>", "<|image_pad|>", "<|endoftext|>"} <= shipped
    assert not shipped & {"<think>", "<answer>", "lung"}
    assert control_tokens(str(checkpoint)) == shipped | {"[SEP]", "<region>"}  # "!" is also text
    assert control_tokens(str(tmp_path / "nowhere")) == control_tokens("nobody/nothing") == frozenset()


@pytest.mark.parametrize("text", ["Seen [SEP]?", "A <region>?", "Seen <|im_end|>?"])
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_records_with_a_token_of_the_chosen_model_are_skipped_or_named(
    text: str, command: str, checkpoint: Path, tmp_path: Path
) -> None:
    root = release(tmp_path / "root", "Seen?", text, "What!")
    model = ("model=hf", f"model.path={checkpoint}", "model.image_token_size=28", "model.image_size=28")
    data = load_data(config(command, root, *model))
    assert [record.question for record in data.test] == ["Seen?", "What!"]
    assert data.facts["counts"]["bad"] == {"control_token": 2}  # one in each part
    assert len(data.train) == 2
    with pytest.raises(DataError, match="2 control_token") as caught:
        load_data(config(command, root, *model, "data.on_bad_record=error"))
    assert text in str(caught.value) and "data.on_bad_record=skip" in str(caught.value)
    other = load_data(config(command, root))  # the shipped model has only tokens of the form <|name|>
    assert (text in [record.question for record in other.test]) is ("<|" not in text)


def test_with_a_server_only_the_known_form_is_refused(tmp_path: Path) -> None:
    root = release(tmp_path / "root", "Seen [SEP]?", "Seen <|image_pad|>?")
    server = ("model=server", "model.url=http://127.0.0.1:9/v1", "model.path=m", "model.image_size=28")
    data = load_data(config("evaluate", root, *server))
    assert [record.question for record in data.test] == ["Seen [SEP]?"]


@pytest.mark.parametrize("parts", [("train",), ("test",)])
@pytest.mark.parametrize("algorithm", ["grpo", "sft"])
def test_a_training_without_training_or_test_records_is_refused(
    parts: tuple[str, ...], algorithm: str, tmp_path: Path
) -> None:
    root = release(tmp_path / "root", "Seen?", parts=parts)
    with pytest.raises(DataError) as caught:
        load_data(config("train", root, f"algorithm={algorithm}"))
    assert "modality=ct question_type=disease: 1" in str(caught.value)


@pytest.mark.parametrize(("command", "overrides"), [("evaluate", ()), ("train", ("algorithm=zero_shot",))])
def test_what_does_not_train_needs_no_training_records(
    command: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    data = load_data(config(command, release(tmp_path / "root", "Seen?", parts=("test",)), *overrides))
    assert data.train == [] and len(data.test) == 1


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_server_that_fails_leaves_a_remedy_that_works(has_begun: bool, tmp_path: Path) -> None:
    """Before the run begins there is nothing to resume, as when pass rates are sampled."""
    cfg, run = composed("train", "debug=quick", "modality=ct", "tracking=none"), RunDirectory(tmp_path / "run")

    def fail(data: Any) -> Any:
        raise ServerError("the server is away")

    words = f"continue with: python train.py resume={run.path}" if has_begun else "repeat the command"
    with pytest.raises(ServerError, match=words):  # noqa: SIM117
        with open_session(
            cfg, run, [], is_resumed=False, facts={"device": "cpu"}, **({} if has_begun else {"choose": fail})
        ):
            fail(None)
    assert run.config.is_file() is has_begun


def test_a_reward_function_that_fails_is_given_again_in_the_remedy(tmp_path: Path) -> None:
    """The stored config has the function of before, so that a corrected one must be named."""
    file = tmp_path / "my rewards.py"
    file.write_text("def short(completions, **more):\n    return [0.0 for _ in completions]\n")
    given = f"{file}:short"
    reward = (f"+reward.functions.short.function='{given}'", "+reward.functions.short.weight=1")
    cfg = composed("train", "debug=quick", "modality=ct", "tracking=none", *reward)
    run = RunDirectory(tmp_path / "run")
    expected = f"python train.py resume={run.path} 'reward.functions.short.function={given}'"
    with pytest.raises(RewardError) as error:  # noqa: SIM117
        with open_session(cfg, run, [], is_resumed=False, facts={"device": "cpu"}):
            raise RewardError("short: division by zero")
    assert expected in str(error.value)


def test_models_of_steps_that_an_epoch_does_not_reach_are_refused() -> None:
    words = ("trainer.max_steps=null", "trainer.num_train_epochs=1", "trainer.save_model_steps=[3,9]")
    cfg = composed("train", "trainer.train_batch_size=4", *words)
    set_max_steps(cfg, 36)
    assert cfg.trainer.max_steps == 9
    cfg.trainer.max_steps = None
    with pytest.raises(ConfigError, match=r"save_model_steps=\[3,9\]: use steps from 1 to 8"):
        set_max_steps(cfg, 32)


def test_models_of_steps_that_a_run_has_passed_are_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    cfg = composed("train", "trainer.save_model_steps=[2,4,6]", "algorithm.num_iterations=2")
    check_steps_ahead(cfg, run)
    (run.checkpoints / "step=8.ckpt").mkdir(parents=True)  # two updates a step
    run.intermediate_model(2).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"\[2,4,6\]: the run goes on after step 4.*after step 4 was not.*=\[2,6\]$"):
        check_steps_ahead(cfg, run)
    cfg.trainer.save_model_steps = [2, 6]
    check_steps_ahead(cfg, run)


def test_a_model_that_is_not_in_the_cache_is_not_called_another(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.environment.write_text(json.dumps({"model_fingerprint": "abc"}))
    cfg = composed("train", "model=qwen2_vl_2b")
    with pytest.raises(ConfigError, match=f"not in the cache of this machine.*hf download {cfg.model.path}"):
        _check_model(cfg, run, {"model_fingerprint": None})
    with pytest.raises(ConfigError, match="are not those that this run began with"):
        _check_model(cfg, run, {"model_fingerprint": "xyz"})
    _check_model(cfg, run, {"model_fingerprint": "abc"})


def test_curves_of_a_run_with_several_optimizer_steps_in_a_step_are_sent_up_to_its_checkpoint(tmp_path: Path) -> None:
    """A checkpoint is named by its optimizer steps, and a curve counts steps."""
    run = RunDirectory(tmp_path)
    cfg = composed("train", "algorithm.num_iterations=2")
    for step in range(5):
        MetricsFile(run.metrics).append({"train/loss": 1.0}, step)
    assert _last_steps(cfg, run) == {}
    (run.checkpoints / "step=6.ckpt").mkdir(parents=True)
    assert steps_done(cfg, run) == 3 and _last_steps(cfg, run) == {"train/loss": 2}
