"""The pages tell the truth: their commands compose, their links lead somewhere, the two commands are where CI looks."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from medr1.cli.main import CONF
from medr1.config.schema import register, register_sweeps

PAGES = {
    name: (CONF.parent / name).read_text(encoding="utf-8").replace("\\\n", "")
    for name in ("README.md", "CLUSTER.md", "REPRODUCE.md", "RESULTS.md")
}
README = PAGES["README.md"]
COMMANDS = sorted(set(re.findall(r"python ((?:train|evaluate)\.py[^\n#`]*)", "\n".join(PAGES.values()))))


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 30


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command: str) -> None:
    if "launcher=ray" in command and importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is None:
        pytest.skip("hydra-ray-launcher is not installed")
    script, *words = shlex.split(command)
    overrides = [word for word in words if "=" in word]
    assert all("=" in word or word in ("-m", "--help") for word in words)
    parser = OverridesParser.create()
    single = []
    for override in parser.parse_overrides(overrides):
        values = (
            override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_element_as_str()]
        )
        single.append(f"{override.get_key_element()}={next(iter(values))}")
    register()
    ConfigStore.instance().repo.pop("sweep", None)  # as in evaluate.py, where it is no group but a directory
    if script == "train.py":
        register_sweeps()
    with initialize_config_dir(str(CONF), version_base=None):
        compose(script.removesuffix(".py"), single)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page: str) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", PAGES[page]):
        assert (CONF.parent / target).exists(), target


def test_the_two_commands_stand_between_their_marks() -> None:
    block = README.split("<!-- two commands -->")[1].split("<!-- end -->")[0]
    commands = [line for line in block.splitlines() if line.startswith("pip ")]
    assert commands == [
        "pip install -e . && python train.py modality=mri reasoning=think_after",
        'pip install -e ".[test]" && pytest',
    ]
    assert "two commands -->" in Path(CONF.parent / ".ci" / "run").read_text(encoding="utf-8")
