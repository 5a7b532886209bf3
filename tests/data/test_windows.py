import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metasae import UserError
from metasae.data.text.windows import Frame, Window, cut, pad, tokenise
from sources import tokenizer_for

GPT = tokenizer_for("gpt2", bos=True)


@settings(max_examples=60, deadline=None)
# texts hold no NUL: it is taken out before they come here, as it marks special tokens
@given(
    st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=300), max_size=6),
    st.integers(4, 40),
)
def test_nothing_is_lost_or_repeated(documents, context):
    frame = Frame.of(GPT, causal=True)
    room = frame.room(context)
    for number, document, tokens in tokenise(GPT, enumerate(documents), frame):
        assert document == documents[number]
        windows = list(cut(tokens, number, room))
        assert all(0 < len(window) <= room for window in windows) and all(
            len(window) == room for window in windows[:-1]
        )
        whole = np.concatenate([window.tokens for window in windows]) if windows else np.empty(0, int)
        assert whole.tolist() == GPT(document, add_special_tokens=False)["input_ids"]
        assert GPT.decode(whole.tolist(), clean_up_tokenization_spaces=False) == document
        assert [window.start for window in windows] == list(range(0, len(whole), room))


def test_large_documents_do_not_depend_on_the_batches(monkeypatch, stories):
    once = [tokens.tolist() for _, _, tokens in tokenise(GPT, enumerate(stories), Frame())]
    monkeypatch.setattr("metasae.data.text.windows.BATCH_CHARACTERS", 500)
    assert once == [tokens.tolist() for _, _, tokens in tokenise(GPT, enumerate(stories), Frame())]


def test_padding_marks_the_documents_own_tokens():
    windows = [Window(np.array([7, 8, 9], np.int32), 0, 0), Window(np.array([5], np.int32), 1, 3)]
    ids, mask, own = pad(windows, Frame((1,), (2,)), pad_id=0)
    assert ids.tolist() == [[1, 7, 8, 9, 2], [1, 5, 2, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert own.tolist() == [[False, True, True, True, False], [False, True, False, False, False]]
    assert ids[own].tolist() == [7, 8, 9, 5]


def test_frames_by_kind_of_model():
    assert Frame.of(GPT, causal=True) == Frame((GPT.bos_token_id,))
    assert Frame.of(tokenizer_for("qwen2", bos=False), causal=True) == Frame()
    bert = tokenizer_for("bert", bos=False)
    assert Frame.of(bert, causal=False) == Frame((bert.cls_token_id,), (bert.sep_token_id,))
    with pytest.raises(UserError, match="leaves no room"):
        Frame((1,), (2,)).room(2)
