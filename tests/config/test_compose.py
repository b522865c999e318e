"""Every shipped YAML composes into the typed schema, and the paper's numbers stand where a reader expects them."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from medr1.config.naming import job_name, run_directory
from medr1.config.paths import SWEEPS
from medr1.config.schema import register_sweeps, schemas
from medr1.config.settings import EvaluateConfig, TrainConfig
from medr1.data.sources.omnimedvqa import ReleasedAxis
from medr1.data.sources.omnimedvqa.files import SplitAxis
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Modality, QuestionType
from medr1.errors import ConfigError
from medr1.workflows.sweep_runs import ComposedRun
from tests.composing import check

CONF = Path(__file__).resolve().parents[2] / "conf"
FILES = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml"))]
SHARED = ("model", "data", "modality", "question_type", "reasoning", "tracking")
_WITHOUT_SCHEMA = {"budget", "debug", "experiment", "launcher"}  # they change what others hold
PAPER = sorted(path.stem for path in CONF.glob("experiment/paper*.yaml"))
# What a choice cannot know by itself, see conf/model/hf.yaml and conf/data/omnimedvqa.yaml.
SERVER = ["model.url=http://127.0.0.1:8000/v1", "model.path=name"]
NEEDED = {
    ("model", "hf"): ["model.path=somewhere"],
    ("model", "hf_lora"): ["model.path=somewhere"],
    ("model", "server"): SERVER,
    **{
        ("data", name): [f"data.root={CONF}", "data.split=image_grouped"]  # some have no training records otherwise
        for of, name in FILES
        if of == "data" and name not in ("phantoms", "mcqa", "benchmarks")
    },
    ("data", "benchmarks"): ["+data@data.sets.phantoms=phantoms"],
    ("data", "mcqa"): [f"data.path={CONF}"],
    ("rollout", "vllm_server"): ["rollout.url=http://127.0.0.1:1"],
    ("rollout", "vllm_colocate"): [f"rollout.python={sys.executable}"],
    **{("experiment", name): [f"data.root={CONF}"] for name in PAPER},
}
PLUGINS = {"local": "joblib", "slurm": "submitit", "ray": "ray"}


@pytest.fixture(autouse=True, scope="module")
def hydra_is_ready() -> Iterator[None]:
    register_sweeps()
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        yield


def choose(group: str, name: str) -> list[str]:
    return [f"{group}={name}", *NEEDED.get((group, name), [])]


def is_typed(cfg: DictConfig) -> bool:
    """Every mapping in it belongs to a dataclass, so that every key and type was checked."""
    return OmegaConf.get_type(cfg) is not dict and all(
        # Settings of reward functions are checked against their signatures; maps have the values of the data as keys;
        # sets have the schema of their source.
        key in ("functions", "modality_map", "question_type_map", "sets") or is_typed(cfg[key])
        for key in cfg
        if not OmegaConf.is_missing(cfg, key) and isinstance(cfg[key], DictConfig)
    )


def test_the_groups_are_those_of_the_schemas() -> None:
    assert {group for group, _ in FILES} == {group for group, _ in schemas() if group} | _WITHOUT_SCHEMA


def rows(groups: Iterable[str]) -> Iterator[dict[str, str]]:
    """Choices that together take every option of the groups; each takes one of every group that has any left."""
    columns = [[(group, name) for of, name in FILES if of == group] for group in groups]
    return (dict(filter(None, row)) for row in zip_longest(*columns))


def assert_composes(command: str, chosen: dict[str, str], schema: type) -> None:
    words = [word for choice in chosen.items() for word in choose(*choice)]
    if command == "train" and chosen.get("model") == "server":
        words.append("algorithm=zero_shot")  # nothing else can be done with it
    cfg = compose(command, overrides=words)
    assert OmegaConf.get_type(cfg) is schema and is_typed(cfg)
    check(cfg)
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    for group, name in chosen.items():
        if group not in _WITHOUT_SCHEMA:
            assert (cfg[group].mode if group == "reasoning" else cfg[group].get("name", name)) == name


@pytest.mark.parametrize("chosen", list(rows(SHARED)), ids=lambda chosen: " ".join(chosen.values()))
def test_every_shared_choice_composes(chosen: dict[str, str]) -> None:
    assert_composes("train", chosen, TrainConfig)
    assert_composes("evaluate", chosen, EvaluateConfig)


@pytest.mark.parametrize(("group", "name"), [file for file in FILES if file[0] not in SHARED])
def test_every_choice_of_training_composes(group: str, name: str) -> None:
    plugin = PLUGINS[name] if group == "launcher" else None
    if plugin and importlib.util.find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is None:
        pytest.skip(f"hydra-{plugin}-launcher is not installed")
    assert_composes("train", {group: name}, TrainConfig)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_every_leaf_of_the_default_has_a_value(command: str) -> None:
    cfg = compose(command, return_hydra_config=True)
    assert OmegaConf.select(cfg, "hydra.run.dir")
    plain = compose(command)
    assert OmegaConf.missing_keys(plain) == set()
    OmegaConf.to_container(plain, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize(
    ("group", "values"),
    [("modality", [*Modality, "all"]), ("question_type", [*QuestionType, "all"]), ("reasoning", list(ReasoningMode))],
)
def test_options_of_a_group_are_the_values_of_its_enum(group: str, values: list[str]) -> None:
    assert sorted(name for of, name in FILES if of == group) == sorted(values)


def test_the_released_axes_of_the_config_are_those_of_the_reader_and_auto() -> None:
    assert [a.value for a in ReleasedAxis] == ["auto", *(a.value for a in SplitAxis)]


def values(cfg: DictConfig, keys: str) -> dict[str, Any]:
    return {key: OmegaConf.select(cfg, key, throw_on_missing=True) for key in keys.split()}


def test_the_paper_in_rl() -> None:
    """FACTS of Med-R1's released recipe: G = 4, temperature 1, lr 1e-6, beta 0.04, 256 tokens, bf16, full tuning."""
    a = compose("train", overrides=["model=qwen2_vl_2b", "algorithm=medr1_legacy"])
    assert values(a.algorithm, "learning_rate num_generations num_iterations lr_scheduler_type warmup_ratio") == {
        "learning_rate": 1e-6,
        "num_generations": 4,
        "num_iterations": 1,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.0,
    }
    assert values(a.algorithm.sampling, "temperature top_p top_k max_completion_length") == {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 50,
        "max_completion_length": 256,
    }
    assert values(a.algorithm.objective, "loss_agg_mode scale_rewards beta kl_loss_type") == {
        "loss_agg_mode": "seq_mean_token_mean",
        "scale_rewards": "group",
        "beta": 0.04,
        "kl_loss_type": "k3",
    }
    assert values(a.model, "dtype tuning freeze_vision_tower") == {
        "dtype": "bfloat16",
        "tuning": "full",
        "freeze_vision_tower": False,
    }
    assert a.reward.functions == {"accuracy": {"weight": 1.0}, "format": {"weight": 1.0}}
    assert a.evaluation.max_completion_length == 256


def test_the_paper_in_sft() -> None:
    a = compose("train", overrides=["model=qwen2_vl_2b", "algorithm=sft"]).algorithm
    assert values(a, "learning_rate lr_scheduler_type warmup_ratio") == {
        "learning_rate": 2e-5,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
    }


@pytest.mark.parametrize("model", ["hf", "qwen2_vl_2b", "qwen2_5_vl_3b", "qwen3_vl_2b", "qwen3_vl_4b"])
def test_full_tuning_of_a_real_model_has_the_papers_rates(model: str) -> None:
    lora = compose("train", overrides=[f"model={model}", "model.tuning=lora"]).model.recipe
    assert (lora.rl_learning_rate, lora.sft_learning_rate) == (1e-5, 2e-4)
    recipe = compose("train", overrides=[f"model={model}"]).model.recipe
    found = values(recipe, "rl_learning_rate sft_learning_rate num_generations max_completion_length train_batch_size")
    # Batch 2 on each device, accumulated twice.
    assert list(found.values()) == [1e-6, 2e-5, 4, 256, 4]


NAMED = sorted(path.stem for path in (CONF / "model").glob("qwen*.yaml"))


@pytest.mark.parametrize("name", NAMED)
def test_a_named_model_is_one_of_the_hub_and_its_images_fit_its_family(name: str) -> None:
    cfg = compose("evaluate", overrides=[f"model={name}"])
    family, size = name.rsplit("_", 1)
    hub = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL"}[family]
    assert cfg.model.path == f"Qwen/{hub}-{size.upper()}-Instruct"
    assert (cfg.model.image_token_size, cfg.data.image_size) == ((32, 384) if family == "qwen3_vl" else (28, 392))
    assert cfg.model.attn_implementation == "auto" and cfg.model.dtype == "bfloat16"
    large = int(size.removesuffix("b")) >= 7
    assert cfg.model.tuning == ("lora" if large else "full")
    assert cfg.model.recipe.rl_learning_rate == (1e-5 if large else 1e-6)


def test_the_side_of_an_image_token_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    """Of a directory as its config.json says, whatever it is called; elsewhere by the family in its name."""

    def sizes(*overrides: str) -> tuple[int, int]:
        cfg = compose("train" if "debug=quick" in overrides else "evaluate", overrides=list(overrides))
        check(cfg)
        return cfg.model.image_token_size, cfg.data.image_size

    place = tmp_path / "qwen2-vl"
    place.mkdir()
    assert sizes("model=hf", f"model.path={place}") == (28, 392)
    (place / "config.json").write_text('{"vision_config": {"patch_size": 16, "spatial_merge_size": 2}}')
    assert sizes("model=hf", f"model.path={place}") == (32, 384)
    assert sizes("model=qwen2_vl_2b", f"model.path={place}", "debug=quick") == (32, 96)
    for model in (["model=hf"], ["model=server", SERVER[0]]):
        assert sizes(*model, "model.path=somebody/Med-Qwen3-VL-8B") == (32, 384)
        assert sizes(*model, "model.path=somebody/other") == (28, 392)
        assert sizes(*model, "model.path=somebody/other", "model.image_token_size=1", "data.image_size=500") == (1, 500)
    assert sizes("debug=quick") == (28, 84)


def test_grpo_is_that_of_today_and_the_paper_is_another() -> None:
    today = compose("train").algorithm
    assert today.name == "grpo" and today.sampling.top_k == 0
    assert values(today.objective, "loss_agg_mode epsilon epsilon_high") == {
        "loss_agg_mode": "token_mean",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
    }


def test_both_baselines_spend_the_same_steps_and_prompts() -> None:
    rl, sft = (compose("train", overrides=[f"algorithm={name}"]) for name in ("grpo", "sft"))
    assert rl.trainer == sft.trainer and rl.data == sft.data and rl.evaluation == sft.evaluation


def test_a_value_given_once_reaches_all_that_refer_to_it() -> None:
    cfg = compose(
        "train", overrides=["model.recipe.max_completion_length=7", "model.recipe.max_steps=3", "model.image_size=56"]
    )
    assert cfg.algorithm.sampling.max_completion_length == cfg.evaluation.max_completion_length == 7
    assert cfg.trainer.max_steps == 3 and cfg.data.image_size == 56


def test_the_tiny_base_takes_the_steps_of_its_two_stages() -> None:
    cfg = compose("train", overrides=["experiment=tiny_base", "algorithm.text_steps=3", "algorithm.image_steps=4"])
    assert cfg.algorithm.name == "pretrain" and cfg.trainer.max_steps == 7


def test_the_quick_run_is_quick() -> None:
    quick = compose("train", overrides=["debug=quick"])
    assert quick.trainer.max_steps <= 5 and quick.evaluation.limit <= 5
    assert quick.algorithm == compose("train").algorithm


SWEEP_FILES = [
    # Each value of each axis of a sweep is composed.
    pytest.param(path.stem, marks=() if path.stem in ("cross_benchmark", "shortcut") else pytest.mark.long)
    for path in sorted(SWEEPS.glob("*.yaml"))
]


@pytest.mark.parametrize("name", SWEEP_FILES)
def test_every_sweep_composes_and_varies_its_rows(name: str) -> None:
    words = [f"sweep={name}"]
    named = {"cross_benchmark": ["data.train"], "base": ["model.path"]}.get(name, [])  # by the user
    if name == "cross_benchmark":
        words += ["data=benchmarks", "+data@data.sets.phantoms=phantoms"]
    cfg = compose("train", overrides=words, return_hydra_config=True)
    assert cfg.hydra.mode == RunMode.MULTIRUN and cfg.sweep.name == name
    axes = dict(cfg.hydra.sweeper.params)
    assert cfg.sweep.rows in (*axes, *named)
    for key, values in axes.items():
        for value in str(values).split(","):
            check(compose("train", overrides=[*words, f"{key}={value}"]))


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in PAPER if name != "paper"])
def test_every_table_of_the_paper_is_its_recipe_over_the_rows_of_a_sweep(name: str) -> None:
    words = [f"experiment={name}", f"data.root={CONF}"]
    cfg = compose("train", overrides=words, return_hydra_config=True)
    assert cfg.hydra.mode == RunMode.MULTIRUN and cfg.sweep.name == name
    axes = {key: str(value).split(",") for key, value in cfg.hydra.sweeper.params.items()}
    assert cfg.sweep.rows in axes and set(axes["algorithm"]) <= {"sft", "medr1_legacy", "zero_shot"}
    recipe = compose("train", overrides=["experiment=paper", f"data.root={CONF}"])
    for chosen in itertools.product(*axes.values()):
        run = compose("train", overrides=[*words, *map("=".join, zip(axes, chosen, strict=True))])
        check(run)
        assert run.trainer == recipe.trainer and run.trainer.max_steps is None and run.trainer.num_train_epochs == 1
        assert run.data.axis == ("question_type" if cfg.sweep.rows == "question_type" else "modality")


def test_steps_given_by_hand_go_before_epochs() -> None:
    words = ["experiment=paper", f"data.root={CONF}", "trainer.max_steps=7"]
    assert compose("train", overrides=words).trainer.max_steps == 7


def test_neither_steps_nor_epochs_is_refused() -> None:
    with pytest.raises(ConfigError, match="epochs"):
        check(compose("train", overrides=["trainer.max_steps=null"]))


@pytest.mark.long
def test_a_run_is_named_by_what_its_numbers_depend_on() -> None:
    @cache
    def name(*overrides: str) -> str:
        return job_name(compose("train", overrides=list(overrides)))

    plain = name()
    for same in (
        *("output_dir=elsewhere", "tracking=none", "trainer.save_steps=3", "trainer.logging_steps=2"),
        *(
            "data.dataloader_num_workers=0",
            "sweep=cross_modality",
            "evaluation.batch_size=3",
            "plugins=.",
            "tracking.experiment=other",
            "plan=true",
        ),
    ):
        assert name(same) == plain, same
    server = ("model=server", "model.path=name", "algorithm=zero_shot")
    for same in ("url=http://b/v1", "concurrency=2", "timeout=9", "max_retries=1", "api_key_variable=null"):
        assert name(*server, "model.url=http://a/v1", f"model.{same}") == name(*server, "model.url=http://c/v1"), same
    remote = ("rollout=vllm_server", "rollout.url=http://a:1")
    neutral = ("url=http://b:2", "weights_dir=/dev/shm", "timeout=9", "concurrency=2", "max_logp_difference=1")
    for same in (*neutral, "weight_transfer=gloo"):
        assert name(*remote, f"rollout.{same}") == name(*remote), same
    for other in ("importance_sampling_correction=false", "importance_sampling_clip_max=2"):
        assert name(*remote, f"rollout.{other}") != name(*remote), other
    assert name(*remote) != plain
    child = ("rollout=vllm_colocate", f"rollout.python={sys.executable}")
    for same in ("python=elsewhere", "gpu_memory_utilization=0.5", "max_model_length=900", "weights_dir=/dev/shm"):
        assert name(*child, f"rollout.{same}") == name(*child), same
    assert name(*child) not in (plain, name(*remote))
    files = ("data=omnimedvqa", "data.root=a")
    for same in ("root=b", "splits=c", "cache_dir=d"):
        assert name(*files, f"data.{same}") == name(*files), same
    assert name(*server, "model.url=http://a/v1", "model.repetition_penalty=1.1") != name(*server, "model.url=u")
    assert name(*files, "data.test_fraction=0.3") != name(*files)
    assert name("model.path=elsewhere") != plain, "another path is another model"
    for other in (
        "seed=1",
        "trainer.max_steps=3",
        "evaluation.limit=5",
        "algorithm.learning_rate=1",
        "data.shortcut=0.5",
    ):
        assert name(other) != plain, other
    assert name("modality=ct").startswith("grpo_ct_all_think_before_seed0-")


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_only_the_first_process_of_a_launcher_names_a_directory(
    variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def directory(rank: int, given: str | None = None) -> Path:
        monkeypatch.setenv(variable, str(rank))
        return Path(run_directory(str(tmp_path), given, "sft", "tiny"))

    assert directory(0).name.endswith("_sft_tiny") and directory(0).parent == tmp_path
    assert directory(1) == directory(10) == tmp_path / ".processes"
    assert directory(1, str(tmp_path / "run")) == tmp_path / "run"


VALUES = ["PET", "Chest X-ray", "CT/MR", "a//b", "../x", "x.yaml", "1", "null", "a, b: (c)", "it's", 'a "b"', "放射線"]


@pytest.mark.parametrize("value", VALUES)
def test_any_value_is_an_option_of_an_axis(value: str) -> None:
    escaped = value.replace('"', '\\"')
    for key in ("{}", "{}.name"):
        cfg = compose(
            "train", overrides=[f'{key.format(group)}="{escaped}"' for group in ("modality", "question_type")]
        )
        assert cfg.modality == cfg.question_type == {"name": value}
        name = job_name(cfg)
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", name) and len(name) < 200


def test_runs_on_values_that_look_alike_have_names_of_their_own() -> None:
    names = {job_name(compose("train", overrides=[f'modality="{value}"'])) for value in ("a b", "a-b", "a/b", "a  b")}
    assert len(names) == 4


def test_a_file_and_a_schema_go_before_a_value() -> None:
    assert compose("train", overrides=["modality=ct"]).modality == {"name": "ct"}
    assert OmegaConf.is_missing(compose("train", overrides=["modality=schema"]).modality, "name")


def test_other_groups_have_no_options_but_their_files() -> None:
    with pytest.raises(MissingConfigException):
        compose("train", overrides=["reasoning=PET"])


@pytest.mark.parametrize("key", ["modality", "modality.name"])
def test_the_axes_of_a_table_have_the_values_without_quotes(key: str) -> None:
    word = '"Chest X-ray"'
    cfg = compose("train", overrides=[f"{key}={word}", "algorithm=sft"])
    chosen = {key: word, "algorithm": "sft"}
    settings = OmegaConf.to_object(cfg)
    assert isinstance(settings, TrainConfig)
    job = ComposedRun(chosen, [key, "algorithm"], cfg, settings).job()
    assert job.axes == {"modality": "Chest X-ray", "algorithm": "sft", "seed": "0"}
