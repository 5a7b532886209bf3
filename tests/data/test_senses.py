import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metasae import UserError
from metasae.data import senses, tagged
from metasae.data.senses import Occurrence, read_senses, sense_activations, sense_files, target_windows
from sources import STORIES

SHARED = Path(__file__).parents[3] / "shared" / "senses"
POINT = "blocks.1.hook_resid_pre"


def line(before="the flour", target="mill", after="of the river", sense="A", word="mill"):
    return {"word": word, "sense": sense, "before": before, "target": target, "after": after}


def write(path, lines):
    text = "".join(entry if isinstance(entry, str) else json.dumps(entry) + "\n" for entry in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def mixed(count=12):
    """Lines of two senses in sentences of many lengths, no two alike."""
    words = STORIES[2].split()
    places = [(" ".join(words[: i % 9]) + f" {i}", " ".join(words[i % 5 :][: i % 7])) for i in range(count)]
    return [line(before, "mills" if i % 3 else "mill", after, "AB"[i % 2]) for i, (before, after) in enumerate(places)]


def expected_row(host, occurrence):
    """The plain way: the sentence alone, tokens counted one by one until the target's last character is covered."""
    ids = host.tokenizer(occurrence.sentence, add_special_tokens=False)["input_ids"]
    upto = next(
        n
        for n in range(1, len(ids) + 1)
        if len(host.tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False)) >= occurrence.stop
    )
    framed = torch.tensor([[*host.frame.prefix, *ids, *host.frame.suffix]])
    return host.activations(framed, torch.ones_like(framed))[0, len(host.frame.prefix) + upto - 1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_sentences_are_before_target_and_after(tmp_path, name):
    file = write(tmp_path / name, [line(), "\n", line(before="", target="Mills", after="")])
    first, second = read_senses(file)
    assert first.sentence == "the flour mill of the river" and first.sentence[first.start : first.stop] == "mill"
    assert second == Occurrence("mill", "A", "Mills", 0, 5)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{oops\n", r"line 2 is no JSON .*; write one object a line"),
        ("[1]\n", "line 2 is a list, not an object"),
        ({"word": "mill", "sense": "A", "before": "", "target": "mill"}, "line 2 has no key 'after'"),
        (line(before=3), "line 2: 'before' must be text, not int"),
        (line(target=" "), "line 2: 'target' is empty"),
        (line(sense=""), "line 2: 'sense' is empty"),
    ],
)
def test_bad_lines_are_named_in_one_line(tmp_path, bad, says):
    with pytest.raises(UserError, match=says) as error:
        list(read_senses(write(tmp_path / "a.jsonl", [line(), bad, line()])))
    assert "\n" not in str(error.value) and "a.jsonl" in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    for name, content, says in [
        ("cut.jsonl.gz", gzip.compress(json.dumps(line()).encode())[:-12], "damaged"),
        ("not.jsonl.gz", b"plain", "damaged"),
        ("body.jsonl.gz", gzip.compress(b"x" * 99)[:10] + b"\xff" * 40, "damaged"),
        ("latin.jsonl", b'{"word": "\xe9"}', "damaged"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=says):
            list(read_senses(tmp_path / name))
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        list(read_senses(tmp_path / "nowhere.jsonl"))


def test_files_of_a_folder(tmp_path):
    for name in ("b.jsonl", "a.jsonl.gz", "notes.txt", ".hidden.jsonl"):
        write(tmp_path / name, [line()])
    assert [file.name for file in sense_files(tmp_path)] == ["a.jsonl.gz", "b.jsonl"]
    assert sense_files(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    with pytest.raises(UserError, match=r"did you mean 'b\.jsonl'"):
        sense_files(tmp_path / "bb.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no word senses"):
        sense_files(tmp_path / "empty")


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_activations_are_those_of_the_targets_last_token(load, tmp_path, monkeypatch, family, batch):
    monkeypatch.setattr(tagged, "BATCH", batch)
    host = load(family, POINT)
    file = write(tmp_path / "a.jsonl", mixed())
    (mill,) = sense_activations(host, [file], minimum=2)
    assert (mill.word, mill.senses, mill.point, mill.skipped, mill.rare) == ("mill", ("A", "B"), POINT, {}, {})
    assert (
        mill.sense.tolist() == [i % 2 for i in range(12)]
        and mill.sizes.tolist() == [6, 6]
        and mill.sentence.tolist() == list(range(12))
    )
    assert mill.x.dtype == torch.float32 and mill.n_tokens == 12
    for row, occurrence in zip(mill.x, read_senses(file), strict=True):
        assert torch.allclose(row, expected_row(host, occurrence), atol=1e-5)


def test_the_target_is_found_by_its_place_not_by_its_letters(load):
    host = load("bert", POINT)
    text = "mill mill mill mill"
    occurrences = [Occurrence("mill", "A", text, start, start + 4) for start in (0, 5, 10, 15)]
    ids = host.tokenizer(text, add_special_tokens=False)["input_ids"]
    places = [position for _, position in target_windows(host, occurrences, 64)]
    assert places == sorted(set(places)) and places[-1] == len(ids) - 1
    texts = [host.tokenizer.decode(ids[: place + 1]) for place in places]
    assert texts == ["mill", "mill mill", "mill mill mill", "mill mill mill mill"]


@pytest.mark.parametrize("target", ["naïve—Zürich", "mill", "x", "🜚🜚"])
def test_targets_of_several_tokens_and_bytes(load, target):
    host = load("gpt2", POINT)
    occurrence = Occurrence("w", "A", f"é {target} é mill", 2, 2 + len(target))
    ((window, position),) = target_windows(host, [occurrence], 64)
    assert host.tokenizer.decode(window.tokens[: position + 1]) == f"é {target}"


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("place", [0, 3, 14, 27])
def test_long_sentences_are_cut_round_the_target(load, family, place):
    host = load(family, POINT)
    parts = [str(i % 10) for i in range(28)]
    parts[place] = "mill"
    start = len(" ".join(parts[:place])) + (place > 0)
    occurrence = Occurrence("mill", "A", " ".join(parts), start, start + 4)
    ((whole, everywhere),) = target_windows(host, [occurrence], 64)
    ((window, position),) = target_windows(host, [occurrence], 20)
    room = host.frame.room(20)
    assert len(window) == room < len(whole)
    assert window.tokens.tolist() == whole.tokens[window.start : window.start + room].tolist()
    assert window.tokens[position] == whole.tokens[everywhere] and window.start + position == everywhere
    if host.causal and everywhere >= room:
        assert position == room - 1
    if not host.causal and room < everywhere < len(whole) - room:
        assert abs(position - room / 2) <= 3


def test_what_is_left_out_is_counted(load, tmp_path):
    host = load("bert", POINT)
    lines = mixed(8)
    lines += [
        lines[0],
        lines[0],
        line(target="\u00ad mill " * 40, sense="A"),
        line(sense="C"),
        line(word="dam", target="dam", sense="A"),
    ]
    said = []
    progress = type("Said", (senses.Progress,), {"say": lambda self, text: said.append(text)})(enabled=False)
    (word,) = sense_activations(host, [write(tmp_path / "a.jsonl", lines)], context=24, minimum=2, progress=progress)
    assert word.n_tokens == 8 and word.rare == {"C": 1}
    assert word.skipped == {senses.REPEATED: 2, senses.TOO_LONG: 1}
    assert said == ["'dam' has fewer than two senses with 2 examples and is left out"]


def test_a_target_without_tokens_is_counted(load, tmp_path, monkeypatch):
    host = load("bert", POINT)
    tokenizer = host.tokenizer

    class Deaf:
        is_fast = True

        def __call__(self, texts, **options):
            encoded = tokenizer(texts, **options)
            offsets = zip(texts, encoded["offset_mapping"], strict=True)
            return {
                **encoded,
                "offset_mapping": [[(0, 0)] * len(row) if "gone" in text else row for text, row in offsets],
            }

    monkeypatch.setattr(host, "tokenizer", Deaf())
    (word,) = sense_activations(host, [write(tmp_path / "a.jsonl", [*mixed(8), line(before="gone")])], minimum=2)
    assert word.n_tokens == 8 and word.skipped == {senses.NO_TOKEN: 1}


def test_two_targets_in_one_sentence_share_its_number(load, tmp_path):
    twice = [line(before="a", after="by the mill"), line(before="a mill by the", after="")]
    (word,) = sense_activations(load("bert", POINT), [write(tmp_path / "a.jsonl", [*mixed(4), *twice])], minimum=2)
    assert word.sentence.tolist() == [0, 1, 2, 3, 4, 4] and not word.skipped


def test_words_come_by_name_and_files_add_up(load, tmp_path):
    other = [{**entry, "word": "dam"} for entry in mixed(6)]
    files = [write(tmp_path / "a.jsonl", [*mixed(4), *other]), write(tmp_path / "b.jsonl.gz", mixed(8)[4:])]
    words = sense_activations(load("gpt2", POINT), files, minimum=2)
    assert [(entry.word, entry.n_tokens) for entry in words] == [("dam", 6), ("mill", 8)]


def test_nothing_to_judge_on(load, tmp_path, monkeypatch):
    host = load("bert", POINT)
    file = write(tmp_path / "a.jsonl", mixed(6))
    with pytest.raises(UserError, match=r"no word in .* has two senses with 20 examples each"):
        sense_activations(host, [file])
    monkeypatch.setattr(host, "tokenizer", type("Slow", (), {"is_fast": False})())
    with pytest.raises(UserError, match="need a fast tokenizer"):
        sense_activations(host, [file], minimum=2)


def test_activations_that_are_no_numbers_are_refused(load, tmp_path, monkeypatch):
    host = load("bert", POINT)
    file, width = write(tmp_path / "a.jsonl", mixed(6)), host.d
    monkeypatch.setattr(host, "activations", lambda ids, mask: torch.full((*ids.shape, width), torch.nan))
    with pytest.raises(UserError, match="NaN or inf"):
        sense_activations(host, [file], minimum=2)


@pytest.mark.parametrize("name", ["hard", "interest"])
def test_the_known_sets(name):
    file = SHARED / f"{name}.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"{file.name} of the senses is not on this machine")
    occurrences = list(read_senses(file))
    assert len(occurrences) > 2000 and {occurrence.word for occurrence in occurrences} == {name}
    assert all(occurrence.sentence[occurrence.start : occurrence.stop].startswith(name) for occurrence in occurrences)
    assert np.unique([occurrence.sense for occurrence in occurrences]).size == {"hard": 3, "interest": 6}[name]
