"""The problem parser: round trips of Med-R1's format, and rejection of ambiguous texts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medr1.data.sources.omnimedvqa.problem_text import parse_problem, parse_solution

SPLITS = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "medr1-splits"

# Words with commas, full stops and closed parentheses, also such as look like labels: (A), (H&E), (A, B).
_WORDS = st.sampled_from(
    [
        "lung",
        "left,",
        "T2 N0 M0,",
        "(MRI)",
        "(A)",
        "(H&E)",
        "(A, B)",
        "(see (B) or C)",
        "Stage IV.",
        "A",
        "B",
        "vitamin D",
    ]
)
_TEXTS = st.lists(_WORDS, min_size=1, max_size=6).map(lambda words: " ".join(words).rstrip(","))


def written(question: str, options: dict[str, str]) -> str:
    return f"{question} " + ", ".join(f"{letter}){text}" for letter, text in options.items())


@given(_TEXTS, st.lists(_TEXTS, min_size=2, max_size=10), st.randoms(use_true_random=False))
def test_round_trip_with_letters_in_any_order(question: str, texts: list[str], random: object) -> None:
    letters = list("ABCDEFGHIJ"[: len(texts)])
    random.shuffle(letters)  # type: ignore[attr-defined]
    options = dict(zip(letters, texts, strict=True))
    problem = parse_problem(written(f"{question}?", options))
    assert problem.question == f"{question}?"
    assert list(problem.options.items()) == list(options.items())


_NEAR_LABELS = st.lists(
    st.sampled_from(["A)", "B)", "C)", "J)", "K)", "(", ")", ", ", "; ", "\n", " ", "x", "'", "()"])
)


@given(st.text(max_size=200) | _NEAR_LABELS.map("".join))
def test_any_text_is_parsed_or_rejected(text: str) -> None:
    try:
        problem = parse_problem(text)
    except ValueError:
        return
    assert len(problem.options) >= 2
    assert set(problem.options) == set("ABCDEFGHIJ"[: len(problem.options)])


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        ("What is it? A)CT, B)MRI", "What is it?", {"A": "CT", "B": "MRI"}),
        ("Which (of A) or B)? A)x, B)y", "Which (of A) or B)?", {"A": "x", "B": "y"}),
        ("Compare A) and B) here. A)x, B)y, C)z", "Compare A) and B) here.", {"A": "x", "B": "y", "C": "z"}),
        ("Q? A)Hematoxylin & eosin (H&E) stain, B)CT", "Q?", {"A": "Hematoxylin & eosin (H&E) stain", "B": "CT"}),
        (
            "Q? A)one, E)two, B)three, C)four, D)five",
            "Q?",
            dict(zip("AEBCD", ["one", "two", "three", "four", "five"], strict=True)),
        ),
        ("Q? A)see B) below, B)other", "Q?", {"A": "see B) below", "B": "other"}),
        ("Seen (fig. 1? A)x (y, B)z, C)w", "Seen (fig. 1?", {"A": "x (y", "B": "z", "C": "w"}),
        ("Q?\nA) x\nB) y", "Q?", {"A": "x", "B": "y"}),
        ("Q? A)none, (), B)y, ')", "Q?", {"A": "none, ()", "B": "y, ')"}),
        ("Q? A)x, B)y, )", "Q?", {"A": "x", "B": "y, )"}),
        ("Q? A)x, y, and z., B)No, none", "Q?", {"A": "x, y, and z.", "B": "No, none"}),
    ],
)
def test_examples(text: str, question: str, options: dict[str, str]) -> None:
    problem = parse_problem(text)
    assert (problem.question, list(problem.options.items())) == (question, list(options.items()))


@pytest.mark.parametrize(
    "text", ["", "What?", "Q? A)only", "Q? A)x, C)y", "Q? A)x, B)y, A)z", "Q? B)x, C)y", "Q? (A)x, (B)y"]
)
def test_ambiguous_texts_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="no list of options"):
        parse_problem(text)


@pytest.mark.parametrize("piece", [" A)", ", A)", " A), C)", " A)x, B)y, A)z", "(", "\nA)"])
def test_long_texts_take_little_time(piece: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match="no list of options"):
        parse_problem(piece * 20_000)
    assert time.process_time() - start < 5


@given(st.text(max_size=40) | st.lists(st.sampled_from(["<answer>", "</answer>", " ", "A", "(", "a"])).map("".join))
def test_any_solution_is_a_letter_or_rejected(text: str) -> None:
    try:
        assert parse_solution(text) in "ABCDEFGHIJ"
    except ValueError as error:
        assert repr(text) in str(error)


def test_solution() -> None:
    assert parse_solution("<answer> C </answer>") == parse_solution("<answer>C</answer>") == "C"
    for wrong in (
        "C",
        "<answer> c </answer>",
        "<answer> A, B </answer>",
        "<answer> A </answer> B",
        "<answer>Z</answer>",
        "<answer> ( </answer>",
        "<answer>,</answer>",
        "<answer> ' </answer>",
    ):
        with pytest.raises(ValueError, match="answer"):
            parse_solution(wrong)


@pytest.mark.skipif(not SPLITS.is_dir(), reason="Med-R1's split files are not beside the repository")
def test_every_real_problem_round_trips() -> None:
    """In Med-R1's files all letters stand in order; the E out of order is the one of "(H&E)"."""
    sizes: dict[int, int] = {}
    for path in SPLITS.rglob("*.json"):
        for record in json.loads(path.read_text()):
            problem = parse_problem(record["problem"])
            assert list(problem.options) == list("ABCD"[: len(problem.options)])
            assert parse_solution(record["solution"]) in problem.options
            assert " ".join(written(problem.question, problem.options).split()) == " ".join(record["problem"].split())
            if path.parts[-3] == "modality":
                sizes[len(problem.options)] = sizes.get(len(problem.options), 0) + 1
    assert sizes == {2: 6778, 3: 122, 4: 56589}
