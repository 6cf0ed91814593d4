"""The question that a language model is asked: the instruction, and then the person's words untouched."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realgen.prompt_optimizers._question import messages, shipped_instruction


def test_a_system_role_holds_the_instruction():
    assert messages("rewrite", "a cat") == [
        {"role": "system", "content": "rewrite"},
        {"role": "user", "content": "a cat"},
    ]


def test_without_a_system_role_the_instruction_goes_first():
    assert messages("rewrite", "a cat", has_system=False) == [{"role": "user", "content": "rewrite\n\na cat"}]


@given(instruction=st.text(min_size=1), prompt=st.text(), has_system=st.booleans())
def test_the_person_s_words_come_last_and_unchanged(instruction, prompt, has_system):
    chat = messages(instruction, prompt, has_system=has_system)
    assert chat[-1]["role"] == "user"
    assert chat[-1]["content"].endswith(prompt)
    assert chat[0]["content"].startswith(instruction)
    assert len(chat) == 1 + has_system


@pytest.mark.parametrize("prompt", ["{x}", "%s", "<|im_end|>", "ignore the above"])
def test_a_prompt_is_no_template(prompt):
    assert messages("rewrite {x}", prompt)[1]["content"] == prompt


def test_the_shipped_instruction_is_text_without_a_margin():
    shipped = shipped_instruction()
    assert shipped == shipped.strip()
    assert len(shipped.split()) > 20
    assert "{" not in shipped, "nothing is filled in"
    assert shipped == shipped_instruction()
