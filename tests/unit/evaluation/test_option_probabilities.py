"""Probabilities of the options of many records at once equal those of one question that is asked."""

from __future__ import annotations

import pytest

from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.reasoning import ReasoningMode
from medr1.evaluation.option_probabilities import generate_with_option_probabilities, option_probabilities
from medr1.models.loading import ModelSpec, load_policy
from tests.integration.chat_server import TINY

RECORDS = make_records(World.TEST, 0, 1)[::2]


@pytest.mark.parametrize("mode", ReasoningMode)
def test_a_batch_has_the_probabilities_of_each_record_alone(mode: ReasoningMode) -> None:
    policy, processor = load_policy(ModelSpec(str(TINY)))
    prompts = [processor.prompt(record, mode, (record.images[0].load(84),)) for record in RECORDS]
    alone = [
        generate_with_option_probabilities(policy, processor, prompt, record.options, 32)
        for prompt, record in zip(prompts, RECORDS, strict=True)
    ]
    found = option_probabilities(
        policy, processor, prompts, [done.text for done in alone], [record.options for record in RECORDS]
    )
    assert sum(probabilities is not None for probabilities in found) >= len(RECORDS) // 2
    for done, probabilities, record in zip(alone, found, RECORDS, strict=True):
        assert (probabilities is None) == (done.probabilities is None)
        if probabilities is not None:
            assert done.probabilities is not None and list(probabilities) == list(record.options)
            assert probabilities == pytest.approx(done.probabilities, abs=1e-5)


@pytest.mark.parametrize(
    "text",
    ["", "A", "<answer></answer>", "<answer>J</answer>", "<answer>A</answer><answer>A</answer>", "<think>x</think>"],
)
def test_a_completion_without_a_readable_answer_has_no_probabilities(text: str) -> None:
    policy, processor = load_policy(ModelSpec(str(TINY)))
    (record,) = RECORDS[:1]
    prompts = [processor.prompt(record, ReasoningMode.NO_THINK, (record.images[0].load(84),))] * 2
    (found, other) = option_probabilities(
        policy, processor, prompts, [text, "<answer>B</answer>"], [record.options] * 2
    )
    assert found is None and other is not None and sum(other.values()) == pytest.approx(1)
