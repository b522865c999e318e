"""The pages: their commands compose, their links and images exist, and the README is short."""

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
from medr1.cli.overrides import expand_sets
from medr1.config.schema import register, register_sweeps
from medr1.config.search_space import range_of
from medr1.workflows.components import check_typed
from tests.composing import check

ROOT = CONF.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").replace("\\\n", "")
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
}
README = PAGES["README.md"]
# Commands with plugins= need a folder of plugins: tests/docs/test_contributing.py runs those of CONTRIBUTING.md.
# To the end of the line, or to a comment, a backtick or a parenthesis that the command has not opened.
_WORDS = r"(?:[^\n#`()]|\((?:[^\n#`()]|\([^\n#`()]*\))*\))*"
COMMANDS = sorted(
    {
        command
        for name, page in PAGES.items()
        if name != "CHANGELOG.md"
        for command in re.findall(rf"(?:python (?:train|evaluate)\.py|medr1-(?:train|evaluate)) ?{_WORDS}", page)
        if "plugins=" not in command and " -sc " not in command
    }
)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 30


@pytest.mark.parametrize("command", [c if c in README else pytest.param(c, marks=pytest.mark.long) for c in COMMANDS])
def test_every_command_composes_and_passes_the_checks(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "launcher=ray" in command and importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is None:
        pytest.skip("hydra-ray-launcher is not installed")
    script, *words = shlex.split(command.removeprefix("python "))
    name = "train" if "train" in script else "evaluate"
    overrides = expand_sets([word for word in words if "=" in word])
    assert all("=" in word or word in ("-m", "--help", "--cfg", "job") for word in words)
    single = []
    for override in OverridesParser.create().parse_overrides(overrides):
        found = range_of(override)
        values = found.probes if found else [override.get_value_element_as_str()]
        single.append(f"{override.get_key_element()}={values[0]}")
    register()
    ConfigStore.instance().repo.pop("sweep", None)  # as in evaluate.py, where it is a directory and not a group
    if name == "train":
        register_sweeps()
    monkeypatch.chdir(tmp_path)
    for file in (tmp_path / "brevity.py", tmp_path / "installed" / "my_package" / "rewards.py"):  # the page's function
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(re.findall(r"```python\n(def brevity.*?)```", PAGES["docs/guides/rewards.md"], re.DOTALL)[0])
    monkeypatch.syspath_prepend(tmp_path / "installed")
    if any(override.startswith("resume=") for override in single):  # only the stored run has this function
        single = [override for override in single if not override.startswith("reward.functions.brevity.function=")]
    for number, override in enumerate(single):  # folders that the page leaves to the reader
        key, _, value = override.partition("=")
        if re.fullmatch(r"data\.(sets\.\w+\.)?(root|splits)", key):
            Path(value.strip("/")).mkdir(parents=True, exist_ok=True)
            single[number] = f"{key}={value.strip('/')}"
        if key == "data.path":
            Path(value).touch()
        if key == "rollout.python":
            Path(value).parent.mkdir(parents=True)
            Path(value).touch(mode=0o755)
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose(name, single)
    if not {"resume", "run"} & {override.partition("=")[0] for override in single}:  # they start from a stored run
        settings = check(cfg)
        if not any("," in override or override.startswith(("sweep", "experiment")) for override in overrides):
            check_typed([settings], [override.partition("=")[0] for override in overrides])


def _anchors(page: str) -> set[str]:
    """The anchors of the headings of a page, as GitHub and Python-Markdown make them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower())).strip("-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links_and_images_exist(name: str) -> None:
    text = re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)|<img src=\"(?!https?:)([^\"]+)\"", text):
        path, _, anchor = "".join(target).partition("#")
        if path in ("../contributing.md", "contributing.md"):  # shows CONTRIBUTING.md
            path, place = "CONTRIBUTING.md", ROOT
        else:
            place = (ROOT / name).parent
        found = (place / path).resolve() if path else ROOT / name
        assert found.exists(), f"{name}: {path}"
        included = path == "CONTRIBUTING.md" or "<!-- include:" in text  # the hook of the site replaces these links
        if name.startswith("docs/") and not included:
            assert found.is_relative_to(ROOT / "docs"), f"{name}: {path} is outside of docs/"
        if anchor:
            assert anchor in _anchors(found.read_text(encoding="utf-8")), f"{name}: {path}#{anchor}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for name in PAGES:
        if name.startswith("docs/"):
            assert f": {name.removeprefix('docs/')}\n" in navigation, name


def test_the_readme_has_at_most_200_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_first_paragraph_names_med_r1() -> None:
    assert "Med-R1" in README.split("\n\n")[1] and "2503.13939" in README.split("\n\n")[1]


def test_the_two_commands_are_between_their_marks() -> None:
    block = README.split("<!-- two commands -->")[1].split("<!-- end -->")[0]
    commands = [line for line in block.splitlines() if line.startswith("pip ")]
    assert commands == [
        "pip install -e . && python train.py modality=mri reasoning=think_after",
        'pip install -e ".[test]" && pytest',
    ]
    assert "two commands -->" in Path(ROOT / ".ci" / "run").read_text(encoding="utf-8")
