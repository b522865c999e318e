"""Prompts, grammars and the parser, on valid, invalid and arbitrary completions."""

# ruff: noqa: RUF001 (full-width letters and the like are the subject)
from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medr1.domain.reasoning import (
    TAGS,
    Parsed,
    ReasoningMode,
    answer_position,
    instruction,
    parse,
    question_text,
    target_text,
)

BEFORE, NONE, AFTER = ReasoningMode.THINK_BEFORE, ReasoningMode.NO_THINK, ReasoningMode.THINK_AFTER
LETTERS = "ABCD"

FREE_TEXT = st.text(max_size=80).filter(lambda text: not any(tag in text for tag in TAGS))
PIECES = st.sampled_from(
    [
        *TAGS,
        *"ACEcaＢｂ()（）.:,<>/-&",
        " ",
        "\n",
        " or ",
        "a nodule",
        "Nodule",
        "Hepatitis B",
        "None",
        "\ud800",
        "İ",
        "ı",
    ]
)
SCRAPS = st.lists(PIECES, max_size=20).map("".join)


def read(text: str, mode: ReasoningMode, letters: str = LETTERS) -> Parsed:
    return parse(text, mode, letters)


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (BEFORE, "<think>a nodule</think><answer>C</answer>"),
        (BEFORE, "<think></think><answer>C</answer>"),
        (BEFORE, " \n<think>a\n\nb</think>\n\n<answer>\n C \n</answer>\n"),
        (BEFORE, "<think>A or B? 3 < 4 and <b>so</b></think><answer>C</answer>"),
        (NONE, "<answer>C</answer>"),
        (NONE, "\t<answer> C </answer>\n"),
        (NONE, "<answer>(C)</answer>"),
        (NONE, "<answer>C)</answer>"),
        (NONE, "<answer>C.</answer>"),
        (NONE, "<answer>C:</answer>"),
        (NONE, "<answer>C) the left lung, or a nodule</answer>"),
        (NONE, "<answer>c</answer>"),
        (NONE, "<answer>(c)</answer>"),
        (NONE, "<answer>c. the left lung</answer>"),
        (NONE, "<answer>Ｃ</answer>"),
        (NONE, "<answer>ｃ</answer>"),
        (NONE, "<answer>（Ｃ）</answer>"),
        (NONE, "<answer>Ｃ：左肺</answer>"),
        (NONE, "<answer>\u3000Ｃ．\u00a0</answer>"),
        (NONE, "<answer>Ⓒ</answer>"),
        (NONE, "<answer>⒞</answer>"),
        (NONE, "<answer>𝐂</answer>"),
        (AFTER, "<answer>C</answer><think>a nodule</think>"),
        (AFTER, " <answer>C</answer>\n<think>\nfor 2 > 1</think> "),
    ],
)
def test_valid_completions(mode: ReasoningMode, text: str) -> None:
    found = read(text, mode)
    assert (found.format, found.answer, found.lenient) == (True, "C", "C")
    for other in set(ReasoningMode) - {mode}:
        assert (read(text, other).format, read(text, other).answer) == (False, "C")


@pytest.mark.parametrize(
    ("text", "lenient"),
    [
        ("<answer>A</answer><answer>C</answer>", "C"),
        ("<answer>C</answer><answer>C</answer>", "C"),
        ("<think>x</think><answer>C</answer><think>y</think><answer>C</answer>", "C"),
        ("<answer><answer>C</answer></answer>", "C"),
        ("<think><answer>C</answer></think><answer>C</answer>", "C"),
        ("<answer>C", "C"),
        ("<think>x</think><answer>C", "C"),
        ("C", "C"),
        ("C)", "C"),
        ("(C)", "C"),
        ("The answer is C.", "C"),
        ("<answer>E</answer>", None),
        ("<answer>e</answer>", None),
        ("<answer>Ċ</answer>", None),
        ("<answer>С</answer>", None),  # Cyrillic
        ("<answer>K</answer>", None),
        ("<answer></answer>", None),
        ("<answer>None</answer>", None),
        ("<answer>AC</answer>", None),
        ("<answer>the lung</answer>", None),
        ("<answer>C<think>x</think></answer>", "C"),
        ("<ANSWER>C</ANSWER>", "C"),
        ("A nodule is seen", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("mode", ReasoningMode)
def test_completions_without_an_answer_in_any_mode(text: str, lenient: str | None, mode: ReasoningMode) -> None:
    found = read(text, mode)
    assert (found.format, found.answer, found.lenient) == (False, None, lenient)


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (BEFORE, "<answer>C</answer><think>x</think>"),
        (BEFORE, "<think>x<answer>C</answer>"),
        (BEFORE, "x</think><answer>C</answer>"),
        (BEFORE, "<think>x</think>so <answer>C</answer>"),
        (BEFORE, "<think>x</think><answer>C</answer>."),
        (BEFORE, "<think><think>x</think></think><answer>C</answer>"),
        (BEFORE, "<think>x</think><think>y</think><answer>C</answer>"),
        (BEFORE, "<answer>C</answer>"),
        (NONE, "<think>x</think><answer>C</answer>"),
        (NONE, "<answer>C</answer></answer>"),
        (NONE, "None\n\n<answer> C </answer>"),  # the target of supervised fine-tuning in the released code
        (NONE, "<answer>C</answer><think></think>"),
        (AFTER, "<think>x</think><answer>C</answer>"),
        (AFTER, "<answer>C</answer><think>x"),
        (AFTER, "<answer>C</answer><think>x</think><think>y</think>"),
        (AFTER, "<answer>C</answer>"),
    ],
)
def test_an_answer_outside_the_grammar_counts_without_the_format(mode: ReasoningMode, text: str) -> None:
    found = read(text, mode)
    assert (found.format, found.answer) == (False, "C")


TEXTS = {"A": "Old fracture", "B": "Nodule", "C": "Vitamin A deficiency", "D": "Hepatitis B"}
SEVERAL = [
    "A) or B)",
    "A) B) C) D)",
    "A, B",
    "A,B",
    "A; B",
    "A or B",
    "A and B",
    "A & B",
    "A / B",
    "A/B",
    "A-D",
    "A B",
    "A\nB\nC",
    "A)B)C)",
    "A.B.C.",
    "(A)(B)",
    "(A) (B)",
    "A: B",
    "A) Old fracture B) Nodule",
    "A) Old fracture, or B",
    "Both A and B",
    "Either A) or B)",
    "A) not B",
    "A) B is possible, too",
    "a) or b)",
    "a) b)",
    "a. b.",
    "a) or b",
    "a) old fracture, or b",
    "A) or option b",
    "Ａ）ｏｒ　Ｂ）",
    "Ａ，Ｂ",
    "D) Hepatitis B or C",
    "A vs B",
    "A vs. B",
    "A not B",
    "A rather than B",
    "A perhaps (B)",
    "A_B",
    "A)_B)",
    "A.b.c.d",
    "a: b",
    'A) "b"',
    "A) old fracture. b. nodule",
    "a. old fracture; b: nodule",
    "A. or maybe b",
]


@pytest.mark.parametrize("content", SEVERAL)
@pytest.mark.parametrize("options", [TEXTS, LETTERS], ids=["texts", "letters"])
def test_a_block_that_names_several_letters_is_no_answer(content: str, options: dict[str, str] | str) -> None:
    for text in (f"<answer>{content}</answer>", f"<answer>{content}", f"I say C. <answer>{content}</answer>"):
        assert parse(text, NONE, options) == Parsed(False, None, None, "")


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("B) Nodule", "B"),
        ("b) nodule", "B"),
        ("B) a nodule", "B"),
        ("B) A nodule", "B"),
        ("B) nodule, e.g. a large one, i.e. no cyst", "B"),
        ("B) C-spine and T-cells", "B"),
        ("B) c-spine, 5 d after a fall", "B"),
        ("B: it is b", "B"),
        ("B) not E", "B"),
        ("C) Vitamin A deficiency", "C"),
        ("c. VITAMIN A DEFICIENCY.", "C"),
        ("D) Hepatitis B", "D"),
        ("D. It is Hepatitis B", "D"),
        ("Ｄ）Ｈｅｐａｔｉｔｉｓ　Ｂ", "D"),
    ],
)
def test_the_text_behind_the_letter_may_hold_letters_of_its_own(content: str, answer: str) -> None:
    found = parse(f"<answer>{content}</answer>", NONE, TEXTS)
    assert (found.format, found.answer, found.lenient) == (True, answer, answer)


@pytest.mark.parametrize(
    ("text", "lenient"),
    [
        ("<answer>Nodule</answer>", "B"),
        ("<answer> nodule. </answer>", "B"),
        ("<answer>Hepatitis B</answer>", "D"),
        ("<answer>vitamin a deficiency</answer>", "C"),
        ("<think>Not C.</think><answer>Nodule</answer>", "B"),
        ("<answer>Nodule</answer><think>Not C.</think>", "B"),
        ("<answer>Nodule", "B"),
        ("Nodule", "B"),
        ("Hepatitis B.", "D"),
        ("<think>Not C.</think>Nodule", "B"),
        ("<answer>Nodule</answer><answer>Old fracture</answer>", "A"),
        ("<answer>A nodule</answer>", None),
        ("<answer>Nodule or Old fracture</answer>", None),
        ("A nodule is seen", None),
    ],
)
def test_the_exact_text_of_an_option_counts_in_the_lenient_reading_only(text: str, lenient: str | None) -> None:
    assert (parse(text, NONE, TEXTS).answer, parse(text, NONE, TEXTS).lenient) == (None, lenient)


def test_a_letter_comes_before_a_text() -> None:
    swapped = {"A": "B", "B": "A", "C": "AB"}
    assert [parse(f"<answer>{text}</answer>", NONE, swapped).lenient for text in ("A", "b", "AB")] == ["A", "B", "C"]
    assert parse("<answer>A", NONE, swapped).lenient == "A"
    assert parse("<answer>A) B</answer>", NONE, swapped).answer == "A"


@pytest.mark.parametrize(
    "text", ["it is a", "a nodule, not a cyst", "vitamin a", "<answer>it is a</answer>", "<answer>a cyst</answer>"]
)
def test_a_lower_case_letter_in_prose_is_no_answer(text: str) -> None:
    assert (read(text, NONE).answer, read(text, NONE).lenient) == (None, None)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("<answer>C</answer>", "C"),
        ("<think>C</think><answer> (c) nodule</answer>", "c"),
        ("<answer>\u3000（Ｃ）</answer>", "Ｃ"),
        ("<answer>⒞</answer>", "⒞"),
        ("<answer>Nodule</answer>", None),
        ("<answer>C</answer><answer>C</answer>", None),
    ],
)
def test_the_position_of_the_letter_is_that_in_the_text_as_written(text: str, letter: str | None) -> None:
    position = answer_position(text)
    assert (None if position is None else text[position]) == letter


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is B because the lesion is round.", "B"),
        ("The answer is B and not A.", "B"),
        ("The answer is B because option A shows nothing.", "B"),
        ("The answer is not B but C.", "C"),
        ("The answer is A. No, the answer is D", "D"),
        ("**Answer:** B, not C", "B"),
        ("The correct option is D and not A", "D"),
        ("The answer is a nodule", None),
        ("The answer is A nodule", None),
        ("The answer is A because B and C are wrong.", "A"),
        ("Correct answer: A because C is wrong", "A"),
        ("It is A, since the lesion is bright. Options B and C do not fit.", "A"),
        ("The answer A is wrong. I choose B", "B"),
        ("Is the answer A or B? I think B", "B"),
        ("The answer to the question is C. D is unlikely", "C"),
        ("I choose option A, not B cells", "A"),
        ("The answer: I think it may be D", "D"),
        ("T cells and B cells are seen", None),
        ("The answer is C. I did not pick B because it is small.", "C"),
        ("The answer is C. I would not choose A or B.", "C"),
        ("Answer: C. It is B cell lymphoma", "C"),
        ("Choose A if lung, choose B if heart. The image shows a lung, so A.", "A"),
        ("Select A, B, C or D. My pick is C", "C"),
        ("Please select A or B. The image shows B", "B"),
        ("It is B or C. D", "D"),
        ("Choose the best answer. (A) Lung (B) Heart (C) Liver. Mine: C", "C"),
        ("Final answer B. Options C and D are wrong.", "B"),
        ("My answer C. D is less likely", "C"),
        ("Answer B\nExplanation: D is wrong", "B"),
        ("Option C fits best.", "C"),
        ("C seems right", "C"),
        ("I think B as the lesion is bright", "B"),
        (r"The final answer is $\boxed{B}$. Options A, C, D are incorrect.", "B"),
        (r"The answer is \boxed{\text{B}}, not C", "B"),
        ('The answer is "B", since A, C and D are wrong.', "B"),
        ("The correct option is `B`. Not A, C.", "B"),
        ("The answer is option B: Lung nodule. Unlike A, C.", "B"),
        ("The answer should be B, not C.", "B"),
        ("B is correct, because A, C, D do not fit.", "B"),
        ("B) is the most likely correct one. C is rare.", "B"),
        ("A is not correct. D", "D"),
        ("The answer is not A.", None),
        ("It is not A, and not option C", None),
        ("B fits. It is more likely than A", "B"),
        ("The answer is A and B", None),
        ("Answer: A or B.", None),
        ("The answer is A and B is wrong", "A"),
        ("b", "B"),
        ("a", "A"),
        ("b) lung nodule", "B"),
        ("(c)", "C"),
        ("<think>Not C.</think> b.", "B"),
        ("C. It is larger than A", "C"),
        ("I do not think B is correct. I go with C.", "C"),
        ("Neither A nor B is correct. C", "C"),
        ("I'm not sure whether B is the best. D", "D"),
        ("It would be wrong to say B is correct. D", "D"),
        ("B is best excluded. D", "D"),
        ("So B is correct, and A, C, D are not.", "B"),
        ("The answer is not (A).", None),
        ("It is not **B**", None),
        ("It isn\u2019t B", None),
        ("The answer cannot be B", None),
        ("The answer is neither A nor B", None),
        ("C. A is wrong", "C"),
        ("It is C, and B is incorrect.", "C"),
        ("D rather than option (B)", "D"),
        ("I would rule out A", None),
        ("The answer is A, B", None),
        ("The answer is B, C or D", None),
        ("The answer is B or option C.", None),
        ("The answer is B or C because both fit", None),
        ("Either B or C", None),
    ],
)
def test_what_a_text_says_of_its_answer_comes_before_other_letters(text: str, expected: str | None) -> None:
    assert read(text, NONE).lenient == expected


def test_only_letters_of_the_options_are_answers() -> None:
    assert read("<answer>C</answer>", NONE, "AB").answer is None
    assert not read("<answer>C</answer>", NONE, "AB").format
    assert read("<answer>J</answer>", NONE, "AJ").answer == "J"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is not A but B", "B"),
        ("A lesion in the right lobe, so D", "D"),
        ("Vitamin E", None),
        ("CT", None),
        ("<answer>A</answer> or <answer>B</answer>, perhaps D", "B"),
        ("B is the correct answer.", "B"),
        ("A is the correct answer", "A"),
        ("I choose B as the answer", "B"),
        ("Option B is correct.", "B"),
        ("Option A is wrong, so B", "B"),
        ("<answer>Option B is correct</answer>", "B"),
        ("<answer>B cyst</answer>", "B"),
    ],
)
def test_the_lenient_answer_is_the_last_letter_that_stands_alone(text: str, expected: str | None) -> None:
    assert read(text, NONE).lenient == expected


@given(st.sampled_from(ReasoningMode), st.sampled_from(LETTERS), FREE_TEXT)
@example(BEFORE, "A", "<")
@example(BEFORE, "A", "<answer")
@example(AFTER, "B", "</think")
def test_target_text_matches_the_grammar(mode: ReasoningMode, letter: str, rationale: str) -> None:
    found = read(target_text(mode, letter, rationale), mode)
    assert (found.format, found.answer) == (True, letter)
    assert found.rationale == ("" if mode is NONE else rationale.strip())


@given(
    st.one_of(SCRAPS, st.text(st.characters(), max_size=80), SCRAPS.map("<answer>{}</answer>".format)),
    st.sampled_from(ReasoningMode),
    st.sampled_from([LETTERS, dict.fromkeys(LETTERS, ""), TEXTS]),
)
def test_the_fields_agree_for_any_text(text: str, mode: ReasoningMode, options: dict[str, str] | str) -> None:
    found = parse(text, mode, options)
    position = answer_position(text)
    if found.answer is not None:
        assert position is not None and found.answer in unicodedata.normalize("NFKC", text[position]).upper()
    assert found.answer in {None, *LETTERS} and found.lenient in {None, *LETTERS}
    if found.format:
        assert found.answer is not None
        assert text.count("<answer>") == text.count("</answer>") == 1
        assert text.count("<think>") == text.count("</think>") == (mode is not NONE)
        assert sum(read(text, other).format for other in ReasoningMode) == 1
    if found.answer is not None:
        assert found.lenient == found.answer and text.count("<answer>") == 1


LONG = 50_000


@pytest.mark.parametrize("mode", ReasoningMode)
@pytest.mark.parametrize(
    "text",
    [
        "<think>" * LONG,
        "</think>" * LONG,
        "<answer>" * LONG,
        "<answer>C" * LONG,
        "<answer>C)" + "<" * LONG,
        "<answer>" + " " * LONG,
        "<answer>C" + " " * LONG,
        "<answer>a)" + " b" * LONG,
        "<answer>" + "or " * LONG + "</answer>",
        "<answer>" + "," * LONG + "</answer>",
        "<answer>" + "x-" * LONG + "</answer>",
        "<answer> </answer>" * LONG,
        "<answer>x</answer>" * (LONG // 10),
        "x" * LONG,
        "<think>" + " " * LONG + "</think>" + " " * LONG + "<answer>",
        " " * LONG + "<answer>C</answer>" + " " * LONG + "x",
        "<answer>C</answer><think>" + "x" * LONG,
        "<think>x</think>" * LONG,
        "A " * LONG,
        "A" + " " * LONG + "B" + "\n" * LONG,
    ],
    ids=lambda text: f"{text[:20]!r}",
)
def test_parsing_time_is_linear(text: str, mode: ReasoningMode) -> None:
    start = time.process_time()
    read(text, mode)
    # Quadratic time is minutes at this length; linear time is about a second on a busy machine.
    assert time.process_time() - start < 15


@pytest.mark.parametrize("mode", ReasoningMode)
def test_the_prompt_describes_the_grammar(mode: ReasoningMode) -> None:
    text = question_text(" Which organ? ", {"A": "lung", "C": "CT, PET", "B": "liver"}, mode)
    assert text == f"Which organ?\nA) lung\nC) CT, PET\nB) liver\n{instruction(mode)}"
    tags = [instruction(mode).find("<think></think>"), instruction(mode).find("<answer></answer>")]
    assert tags[1] >= 0
    assert (tags[0] >= 0) == (mode is not NONE)
    assert mode is NONE or (tags[0] < tags[1]) == (mode is BEFORE)
