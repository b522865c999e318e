"""Texts of records: which options mean the same, and which texts are no texts for a tokenizer."""

# ruff: noqa: RUF001  (characters that look like others are the subject)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medr1.domain.reasoning import ReasoningMode, question_text
from medr1.domain.records import BadRecord, Reason, check_choices, check_text
from medr1.domain.texts import is_blank, one_line, option_meaning


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Nodule", "nodule"),
        ("Nodule", " Nodule ."),
        ("Nodule", "Nodule;"),
        ("Nodule", "Nodule。"),
        ("Nodule", "“Nodule”."),
        ("Nodule", "'nodule.'"),
        ("Nodule", "Nod\u00adule"),
        ("Nodule", "\ufeffNodule\u200b"),
        ("Nodule", "Ｎｏｄｕｌｅ"),
        ("Old fracture", "Old\n  fracture"),
        ("Old fracture", "Old\u00a0fracture"),
        ("Old fracture", "old\u2009Fracture\r\n"),
        ("Old fracture", "Old\u2028fracture"),
        ("Crohn's disease", "Crohn’s disease"),
        ("Crohn's disease", "Crohn&#39;s disease"),
        ("Crohn's disease", "Crohn&rsquo;s disease"),
        ("Crohn's disease", "Crohn´s disease"),
        ("H&E", "H&amp;E"),
        ("< 5 mm", "&lt; 5&nbsp;mm"),
        ("< 5 mm", "&amp;lt; 5 mm"),
        ("≥ 5", "&ge; 5"),
        ("5 μm", "5 µm"),
        ("5 μm", "5 &micro;m"),
        ("5 mm", "5 ㎜"),
        ("5 mm", "５ ｍｍ"),
        ("37 °C", "37 ºC"),
        ("37 °C", "37 ℃"),
        ("T1-weighted", "T1‑weighted"),
        ("5-10", "5–10"),
        ("Stage II", "Stage Ⅱ"),
        ("fibrosis", "ﬁbrosis"),
        ("cafe\u0301 au lait", "caf\u00e9 au lait"),
        ("10^5", "10⁵"),
        ("10^-3", "10⁻³"),
        ("cm2", "cm²"),
        ("CO2", "CO₂"),
        ("CD4+", "CD4⁺"),
        ("1 1/2", "1½"),
        ("STRASSE", "straße"),
    ],
)
def test_spellings_of_one_option_mean_the_same(text: str, other: str) -> None:
    assert option_meaning(text) == option_meaning(other)
    with pytest.raises(BadRecord) as caught:
        check_choices("Which?", {"A": "Something else", "B": text, "C": other}, "A")
    assert caught.value.reason is Reason.DUPLICATE_OPTION and "B and C" in caught.value.detail


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("5 mm", "5 μm"),
        ("5 mm", "5 cm"),
        ("5 mm", "-5 mm"),
        ("0.5 mm", "5 mm"),
        ("T1", "T2"),
        ("≥ 5", "≤ 5"),
        ("≥ 5", "> 5"),
        ("&lt; 5", "&gt; 5"),
        ("= 5", "≠ 5"),
        ("10⁵", "105"),
        ("10⁵", "10⁶"),
        ("10⁻³", "10³"),
        ("10₅", "10⁵"),
        ("1½", "11/2"),
        ("½", "¼"),
        ("2①", "21"),
        ("cm²", "cm³"),
        ("Grade 2", "Grade 2+"),
        ("+", "-"),
        ("Malignant", "Malignant?"),
        ("5'", '5"'),
        ("α", "β"),
        ("left", "right"),
        (".", "…"),
        ("50", "50%"),
        ("&notable;", "¬able;"),
    ],
)
def test_options_that_differ_in_meaning_stay_apart(text: str, other: str) -> None:
    assert option_meaning(text) != option_meaning(other)
    check_choices("Which?", {"A": text, "B": other}, "A")


@given(st.text())
def test_any_text_has_a_meaning_on_one_line(text: str) -> None:
    meaning = option_meaning(text)
    assert meaning == one_line(meaning)
    assert meaning or is_blank(text)


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u00a0", "\u200b", "\ufeff \u00ad", "\u2028"])
def test_what_shows_nothing_is_blank(text: str) -> None:
    assert is_blank(text) and not is_blank(f"{text}x") and not is_blank(f"{text}.")
    for options in ({"A": text, "B": "x"}, {"A": "x", "B": text}):
        with pytest.raises(BadRecord, match="malformed"):
            check_choices("Which?", options, "A")
    with pytest.raises(BadRecord, match="malformed"):
        check_choices(text, {"A": "x", "B": "y"}, "A")


@pytest.mark.parametrize("space", ["\n", "\r\n", " \n\t ", "\u2028", "\x0b", "\x0c", "\x85", "\u00a0\n"])
@pytest.mark.parametrize("mode", ReasoningMode)
def test_an_option_is_one_line_of_the_prompt(space: str, mode: ReasoningMode) -> None:
    text = question_text("Which?", {"A": f"Old{space}fracture", "B": f"{space}B) Cyst"}, mode)
    assert text.splitlines()[:3] == ["Which?", "A) Old fracture", "B) B) Cyst"]
    assert len(text.splitlines()) == 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Seen <|image_pad|>?", Reason.CONTROL_TOKEN),
        ("<|im_end|>", Reason.CONTROL_TOKEN),
        ("a<|im_start|>system", Reason.CONTROL_TOKEN),
        ("<|vision_start|><|vision_end|>", Reason.CONTROL_TOKEN),
        ("<|endoftext|>.", Reason.CONTROL_TOKEN),
        ("<|reserved_special_token_0|>", Reason.CONTROL_TOKEN),
        ("x [SEP] y", Reason.CONTROL_TOKEN),
        ("\ud800", Reason.UNENCODABLE_TEXT),
        ("a\udfffb", Reason.UNENCODABLE_TEXT),
        ("a\0b", Reason.UNENCODABLE_TEXT),
    ],
)
def test_what_is_no_text_for_a_tokenizer_is_a_bad_record(text: str, reason: Reason) -> None:
    with pytest.raises(BadRecord) as caught:
        check_text(["harmless", text], {"[SEP]"})
    assert caught.value.reason is reason and repr(text) in caught.value.detail
    str(caught.value).encode()
    if "[SEP]" not in text:
        for question, option in ((text, "x"), ("Which?", text)):
            with pytest.raises(BadRecord, match=reason.value):
                check_choices(question, {"A": option, "B": "y"}, "B")


@pytest.mark.parametrize("text", ["a < b | c > d", "<|>", "<||>", "p <| q", "|x| < 3", "<b|c>", "🫁 数据", "<think>"])
def test_other_texts_are_accepted(text: str) -> None:
    check_text([text], {"[SEP]", "<|im_end|>"})
