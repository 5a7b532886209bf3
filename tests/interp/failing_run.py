"""Scores of a planted world by a judge; run as a program, the judge is a server: URL STORE KEYS LATENTS."""

import hashlib
import json
import sys
from functools import cache

import numpy as np
from oracle import OracleJudge
from test_reader import World

from metasae.interp.asking import Asker, Limits
from metasae.interp.draws import activating_windows, with_silent
from metasae.interp.excerpts import WindowSpec
from metasae.interp.judges.server import ServerJudge
from metasae.interp.reader import Reader
from metasae.interp.replies import Ask, Reply, ReplyStore
from metasae.interp.scores import other_latents

SPEC = WindowSpec(length=8, train=20, score=20, silent=20)
UNREADABLE = 0.03


def text_for(messages):
    """The oracle's reply; to some questions, always the same, JSON that is cut off."""
    system, user = (message["content"] for message in messages)
    said = OracleJudge().answer(Ask(system, user, {})).text
    return said[:-3] if int(hashlib.sha256(user.encode()).hexdigest()[:8], 16) < UNREADABLE * 2**32 else said


class Undisturbed:
    """The same judge, in this process."""

    name = "oracle"

    def answer(self, ask):
        return Reply(text_for(ask.messages), 1, 1)


@cache
def world():
    """(planted world, windows of every covered latent)."""
    planted_world = World()
    enough, _ = activating_windows(planted_world.text, planted_world.view, SPEC, 0)
    return planted_world, [
        with_silent(planted_world.text, planted_world.view, windows, np.array([0, 1, 2]), SPEC, 0)
        for windows in enough.values()
    ]


def scored(judge, place, keys, count):
    """({key: Score}, the asker's tally)."""
    planted_world, latents = world()
    with ReplyStore(place) as store:
        asker = Asker(judge, store, limits=Limits(concurrency=16, retries=4, first_wait=0.01))
        reader = Reader(asker, planted_world.text, SPEC, 0)
        scores = {
            key: reader.scorer(key)(planted_world.view, latents[:count], other_latents(min(count, len(latents)), 0))
            for key in keys
        }
    return scores, asker.tally


if __name__ == "__main__":
    scored(ServerJudge(sys.argv[1], "oracle", timeout=1.0), sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
