import pytest
import torch

from metasae.data.planted.planted_cache import PlantedCache
from metasae.errors import UserError

TOKENS = {"train": 500, "calibration": 200, "evaluation": 130}
TABLE = {"seed": 3, "d": 16, "independent": 20, "words": 2, "sense_shares": [0.7, 0.3], "top_rate": 0.1}


def test_splits_are_of_one_world_and_unlike():
    cache = PlantedCache(TABLE, TOKENS)
    splits = {name: cache.split(name) for name in TOKENS}
    assert cache.d == 16 and {name: split.n_tokens for name, split in splits.items()} == TOKENS
    assert not torch.equal(splits["train"].x[:130], splits["evaluation"].x)
    train = splits["train"]
    torch.testing.assert_close(train.mean, train.x.double().mean(0))
    assert train.mean_square == pytest.approx(float(train.x.square().sum(1).mean()), rel=1e-6)


def test_the_same_table_gives_the_same_tokens():
    a, b = (PlantedCache(TABLE, TOKENS) for _ in range(2))
    assert a.fingerprint == b.fingerprint and torch.equal(a.split("train").x, b.split("train").x)
    other = PlantedCache(TABLE | {"seed": 4}, TOKENS)
    assert other.fingerprint != a.fingerprint and not torch.equal(other.split("train").x, a.split("train").x)


@pytest.mark.parametrize("table, words", [
    ({"independant": 3}, "unknown key 'planted.independant'; did you mean 'independent'"),
    ({"d": 4, "independent": 50, "max_cosine": 0.01}, "planted: "),
    ({"d": 8, "words": 5, "top_rate": 0.9}, "planted: "),
    ({"d": "many"}, "planted: "),
])  # fmt: skip
def test_a_wrong_table_is_one_clear_error(table, words):
    with pytest.raises(UserError, match=words):
        PlantedCache(table, TOKENS)
