"""Ranks as threads of one process: the selections meet many inputs without a process group."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from metasae.ranks.ranks import Ranks


class Room:
    """Where the threads put what they share."""

    def __init__(self, size: int):
        self.size, self.barrier, self.table = size, threading.Barrier(size, timeout=30), [None] * size

    def everything(self, rank: int, value):
        self.table[rank] = value
        self.barrier.wait()
        values = list(self.table)
        self.barrier.wait()
        return values


class ThreadRanks(Ranks):
    def __init__(self, room: Room, rank: int):
        super().__init__(rank, room.size)
        self.room = room

    def sum_(self, part):
        return part.copy_(torch.stack(self.room.everything(self.rank, part.clone())).sum(0))

    def gather(self, part):
        return torch.stack(self.room.everything(self.rank, part.clone()))

    def objects(self, value):
        return self.room.everything(self.rank, value)


def on_threads(size: int, function) -> list:
    """function(ranks) on every thread."""
    room = Room(size)

    def one(rank: int):
        try:
            return function(ThreadRanks(room, rank))
        except BaseException:
            room.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(one, range(size)))
