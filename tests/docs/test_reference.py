"""The generated reference: every setting is in it, with a meaning, and the algorithms' with names in TRL and verl."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import pytest

from medr1.cli.main import CONF
from medr1.config.renamed import RENAMED

ROOT = CONF.parent


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_reference", ROOT / "docs" / "hooks" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_reference"] = module
    spec.loader.exec_module(module)
    return module


reference = _load()


@functools.cache
def all_settings() -> list[Any]:
    return list(reference.all_settings())


def test_every_key_of_conf_is_a_documented_setting() -> None:
    documented = {setting.key for setting in all_settings()}
    free = tuple(f"{setting.key}." for setting in all_settings() if "dict[" in setting.type)  # such as reward.functions
    for group in (*reference.GROUPS, *reference.PRESETS):
        prefix = f"{group}." if group in reference.GROUPS else ""
        for path in reference.options(group).values():
            keys = {key for key in reference.own_values(path, prefix) if not key.startswith(free)}
            assert keys <= documented, path


def test_every_setting_has_a_meaning_in_whole_sentences() -> None:
    for setting in all_settings():
        assert setting.meaning.endswith("."), setting


def test_every_setting_of_an_algorithm_is_compared_with_trl_and_verl() -> None:
    missing = {
        setting.key
        for group, schema, rows in reference.sections()
        for setting in rows
        if group == "algorithm" and schema.__name__ != "PretrainConfig" and not (setting.trl and setting.verl)
    }
    assert missing == {"algorithm.name"}


def test_names_of_trl_exist_in_trl() -> None:
    trl = pytest.importorskip("trl")
    known = {field.name for name in ("GRPOConfig", "SFTConfig", "ModelConfig") for field in fields(getattr(trl, name))}
    named = {word for s in all_settings() for word in re.findall(r"\w+", s.trl.partition("(")[0]) if s.trl != "-"}
    assert named <= known


def test_a_setting_without_docstring_ends_the_build() -> None:
    @dataclass
    class Settings:
        """Settings."""

        value: int = 1

    with pytest.raises(reference.MissingDocstring, match="value"):
        list(reference.settings_of(Settings, "group.", {}))


def test_the_page_has_a_row_for_each_setting_and_option() -> None:
    page = reference.on_page_markdown("# Title\n\n<!-- generated: configuration -->\n")
    assert page.startswith("# Title") and "<!--" not in page
    for setting in all_settings():
        assert f"| `{setting.key}` |" in page
    for group in (*reference.GROUPS, *reference.PRESETS):
        for option in reference.options(group):
            assert f"| `{option}`" in page


def test_every_reward_function_and_its_settings_are_documented() -> None:
    page = reference.on_page_markdown("<!-- generated: configuration -->\n<!-- generated: rewards -->\n")
    functions = reference.medr1.rewards.registered()
    assert {"accuracy", "format", "tag_count", "consistency"} <= set(functions)
    for name, function in functions.items():
        assert f"| `{name}` |" in page
        for setting in function.settings:
            assert f"| `reward.functions.{name}.{setting}` |" in page


def test_a_reward_whose_docstring_lacks_a_setting_ends_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def undocumented(completions, records, *, limit=1):
        """Nothing."""

    function = reference.medr1.rewards.RewardFunction(undocumented, None)
    monkeypatch.setattr(reference.medr1.rewards, "registered", lambda: {"undocumented": function})
    with pytest.raises(reference.MissingDocstring, match=r"undocumented.*limit"):
        list(reference.reward_settings())
    with pytest.raises(reference.MissingDocstring, match="undocumented"):
        reference.reward_functions()


def test_the_table_of_names_has_the_settings_of_the_algorithms() -> None:
    table = reference.on_page_markdown("<!-- generated: names -->")
    assert "| `algorithm.num_generations` | `num_generations` | `actor_rollout_ref.rollout.n` |" in table


def test_the_changelog_has_every_renamed_setting() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert [old for old, new in RENAMED.items() if f"| `{old}` | `{new}` |" not in changelog] == []
