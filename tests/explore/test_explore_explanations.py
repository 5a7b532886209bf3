"""Explanations found again in the judge's replies, and the text of tokens that are parts of characters."""

import json

import numpy as np
import pytest
from explored import random_firings, write_arm

from metasae.errors import UserError
from metasae.explore.pages.queries import Explorer
from metasae.explore.store.build import build
from metasae.explore.store.firing_rows import token_texts
from metasae.interp import prompts
from metasae.interp.asking import Asker, Limits
from metasae.interp.draws import activating_windows, with_silent
from metasae.interp.excerpts import Text, WindowSpec
from metasae.interp.reader import Reader
from metasae.interp.replies import Reply, ReplyStore
from metasae.measures.cofiring.partners import top_partners
from metasae.measures.firing.by_latent import by_latent
from sources import tokenizer_for

FIRINGS = random_firings(3, lengths=(120,) * 12, vocabulary=40)
SPEC, SEED = WindowSpec(length=8, train=4, score=4, silent=2, strata=2), 5


def strings(places):
    return [f" w{int(number)}" for number in FIRINGS.tokens[places]]


def interp(explanations, judge):
    return {
        "conditions": {"windows": vars(SPEC), "seed": SEED},
        "scores": {"detection": {"chance": 0.5}},
        "latents": {str(latent): {"explanation": text, "judge": judge} for latent, text in explanations.items()},
    }


class Yes:
    """A judge that names every latent alike but for a number, and says yes to everything."""

    name = "yes"

    def __init__(self):
        self.asked = []

    def answer(self, ask):
        self.asked.append(ask)
        if ask.system == prompts.EXPLAIN:
            return Reply(json.dumps({"explanation": f"kind {len(self.asked)}"}))
        return Reply(json.dumps({"answers": [True] * (ask.user.count("\n") - 1)}))


def test_replies_of_the_judge_are_found_for_every_latent(tmp_path):
    """The very questions of a real run of detection, of each latent its own."""
    view, judge = by_latent(FIRINGS), Yes()
    text = Text(FIRINGS.documents, FIRINGS.tokens, FIRINGS.positions, strings, SEED)
    covered, _ = activating_windows(text, view, SPEC, SEED)
    near = top_partners(FIRINGS, 5).latents
    windows = [with_silent(text, view, of_latent, near[latent], SPEC, SEED) for latent, of_latent in covered.items()]
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        score = Reader(Asker(judge, store, limits=Limits(concurrency=1)), text, SPEC, SEED).scorer("detection")(
            view, windows, None
        )
    write_arm(tmp_path, "solo-s0", FIRINGS, interp=interp(dict(zip(covered, score.explanations, strict=True)), "yes"))
    build(tmp_path, strings=strings)
    explorer = Explorer(tmp_path)
    pages = [explorer.latent("solo-s0", latent) for latent in covered]
    assert all(page["replies"] for page in pages)
    for page in pages:
        assert page["explanation"]["judge"] == "yes"
        assert all(
            of_latent["question"].startswith(f"Explanation: {page['explanation']['text']}\n")
            for of_latent in page["replies"]
        )
    shown = [of_latent["question"] for page in pages for of_latent in page["replies"]]
    asked = [ask.user for ask in judge.asked if ask.system == prompts.DETECT and not ask.repeat]
    assert sorted(shown) == sorted(asked)


def test_a_file_that_holds_no_replies_is_one_line(tmp_path):
    write_arm(tmp_path, "solo-s0", FIRINGS, interp=interp({3: "about rivers"}, "yes"))
    (tmp_path / "replies.sqlite").write_bytes(b"nothing" * 1000)
    with pytest.raises(UserError, match="cannot be used as a store of replies"):
        build(tmp_path, strings=strings)


def test_explanations_are_shown_and_searched(tmp_path):
    write_arm(tmp_path, "solo-s0", FIRINGS, interp=interp({3: "about <b> the\\n river", 5: None}, "a model"))
    build(tmp_path, strings=strings)
    explorer = Explorer(tmp_path)
    assert explorer.latent("solo-s0", 3)["explanation"] == {"text": "about <b> the\\n river", "judge": "a model"}
    assert explorer.latent("solo-s0", 5)["explanation"] is None
    (group,) = explorer.search("river")["groups"]
    assert [row["latent"] for row in group["rows"] if row["where"] == "explanation"] == [3]


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_tokens_read_as_the_text_they_come_from(family):
    tokenizer = tokenizer_for(family, True)
    whole = "The river ran past naïve gulls"
    assert (
        "".join(token_texts(tokenizer, tokenizer(f" {whole}", add_special_tokens=False)["input_ids"])).strip() == whole
    )


def test_a_part_of_a_character_is_shown_as_its_bytes():
    tokenizer = tokenizer_for("gpt2", True)
    ids = tokenizer("\U0001f9ea", add_special_tokens=False)["input_ids"]
    assert "".join(token_texts(tokenizer, np.array(ids))) == "<0xF0><0x9F><0xA7><0xAA>"
    assert token_texts(tokenizer, np.array([], int)) == []
