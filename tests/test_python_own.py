"""A penalty and an architecture of a user's own, in the same process."""

import pytest
import torch

import metasae
from drawing import undrawn
from metasae.recipe.registry import ARCHITECTURES, PENALTIES
from metasae.sae.kernels import reference
from metasae.train.penalties.scene import Scene, charge
from sources import Planted, small_recipe
from spawned import program

QUICK = {"measure": {"critics": 1, "meta_steps": 5, "lift": False, "shifts": 0, "across": False}}


@pytest.fixture(autouse=True)
def clean_registry():
    """What a test registers is gone after it."""
    before = dict(PENALTIES), dict(ARCHITECTURES)
    yield
    for table, entries in zip((PENALTIES, ARCHITECTURES), before, strict=True):
        table.clear()
        table.update(entries)


def scene(meta=True, step=3):
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(9, 5, generator=generator), dim=1)
    kept, _ = reference.select(torch.randn(4, 9, generator=generator), 8)
    w_meta = torch.randn(3, 5, generator=generator) if meta else None
    return Scene(rows, kept, torch.linspace(0, 1, 9), step, 0, W_meta_MD=w_meta)


def train(x, penalty, arms=("solo", "joint"), **options):
    recipe = {"sae.n": 64, "train.batch": 128, "train.tokens": 128 * 40, "train.penalties": penalty, **QUICK}
    with undrawn():
        return metasae.train(x, arms, recipe, show=False, **options)


def activations(n=10):
    source = Planted(256)
    return torch.cat([source.next() for _ in range(n)])


def test_a_penalty_by_autograd_is_charged_to_joint_alone(tmp_path):
    steps = []

    @metasae.penalty("apart")
    def apart(w_dec, step):
        steps.append(step)
        cosines = w_dec @ w_dec.T
        return (cosines - torch.diag(cosines.diag())).square().mean()

    run = train(activations(), {"apart": 3.0}, out=tmp_path / "run")
    nearest = {name: float(row) for name in ("solo", "joint") for row in [_nearest(run.saes[name].W_dec)]}
    assert steps == list(range(40)) and nearest["joint"] < nearest["solo"]
    assert [row["apart"] for row in run.arms[1].metrics()][-1] > 0 and "apart" not in run.arms[0].metrics()[-1]
    # the function is as it was
    assert apart(torch.eye(4), 0) == 0
    _read_without_the_penalty(tmp_path / "run")


def _nearest(rows):
    cosines = rows @ rows.T
    return cosines.fill_diagonal_(-1).max(1).values.mean()


def _read_without_the_penalty(folder):
    """Another process, which does not know the penalty, reads the folder and cannot train by its recipe."""
    code = (
        "import metasae, pytest\n"
        f"folder = {str(folder)!r}\n"
        "assert metasae.compare(folder)['arms'] and metasae.load(folder, arm='joint', seed=0).n_latents == 64\n"
        "assert metasae.Recipe.stored(folder + '/recipe.toml').train.penalties == {'apart': 3.0}\n"
        "with pytest.raises(metasae.UserError, match=\"no penalty 'apart'\"):\n"
        "    metasae.run(folder + '/recipe.toml', out=folder + '-2', show=False)\n"
    )
    done = program(["-c", code])
    assert done.returncode == 0, done.stderr


def test_the_gradient_is_autograds():
    @metasae.penalty("mine")
    def mine(w_dec, w_meta, rates):
        return ((w_dec @ w_meta.T).square().sum(1) * rates).sum()

    s = scene()
    rows = s.W_dec_ND.clone().requires_grad_()
    ((rows @ s.W_meta_MD.T).square().sum(1) * s.rate_N).sum().backward()
    with torch.no_grad():
        value, gradient, entries = charge(PENALTIES["mine"], s)
    assert torch.allclose(gradient, rows.grad) and value.shape == () and entries is None
    with pytest.raises(metasae.UserError, match=r"asks for w_meta; set train\.lambda2 above 0"):
        PENALTIES["mine"](scene(meta=False))


def test_a_given_gradient_is_held_against_autograd_once():
    calls = []

    @metasae.penalty("right")
    def right(w_dec):
        calls.append(w_dec.requires_grad)
        return w_dec.mean(0).square().sum(), (2 / len(w_dec) * w_dec.mean(0)).expand_as(w_dec)

    @metasae.penalty("wrong")
    def wrong(w_dec):
        return w_dec.mean(0).square().sum(), w_dec.mean(0).expand_as(w_dec)

    charges = [charge(PENALTIES["right"], scene()) for _ in range(3)]
    assert calls == [True, False, False]
    assert torch.equal(charges[0].rows_ND, charges[2].rows_ND) and torch.equal(charges[0].value, charges[2].value)
    with pytest.raises(metasae.UserError, match="gradient that the penalty 'wrong' returns is not that of its value"):
        charge(PENALTIES["wrong"], scene())


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda w_dec: w_dec.sum(1), r"must return one number of torch, not a tensor of shape \[9\]"),
        (lambda w_dec: 3.0, "must return one number of torch, not float"),
        (lambda w_dec: torch.ones(()), "does not depend on w_dec in a way that autograd can follow"),
        (lambda w_dec: w_dec.sum() / 0, "is inf|is -inf|is nan"),
        (lambda w_dec: (w_dec.sum(), torch.ones(2, 2)), r"gradient of the penalty 'bad' has the shape \[2, 2\]"),
    ],
)
def test_what_a_penalty_returns_is_checked(function, words):
    metasae.penalty("bad")(function)
    with pytest.raises(metasae.UserError, match=words):
        PENALTIES["bad"](scene())


def test_names_and_arguments_are_checked():
    with pytest.raises(metasae.UserError, match="'ortsae' is a penalty that ships with metasae"):
        metasae.penalty("ortsae")(lambda w_dec: w_dec.sum())
    with pytest.raises(metasae.UserError, match="asks for 'rate'; did you mean 'rates'"):
        metasae.penalty("mine")(lambda w_dec, rate: w_dec.sum())
    with pytest.raises(metasae.UserError, match=r"must take w_dec, not only \(rates\)"):
        metasae.penalty("mine")(lambda rates: rates.sum())
    assert "mine" not in PENALTIES
    # a cell of a notebook that is run again
    for _ in range(2):
        metasae.penalty("mine")(lambda w_dec: w_dec.sum())


def test_an_architecture_of_ones_own(tmp_path):
    @metasae.architecture("fixed")
    class Fixed(metasae.Architecture):
        own_threshold = True

        def fires(self, pre, k):
            return pre > self.options.threshold

        def inference_threshold(self, weights):
            return torch.full((len(weights.W_dec_ND),), self.options.threshold)

    recipe = {"sae.n": 64, "sae.architecture": "fixed", "sae.threshold": 0.4, "train.tokens": 5000, **QUICK}
    with undrawn():
        run = metasae.train(activations(), ["solo", "joint"], recipe, out=tmp_path / "run", show=False)
    sae = run.saes["joint"]
    assert sae.config.architecture == "fixed" and len(sae.threshold.unique()) == 1
    assert run.arms[0].measures()["calibration"]["rule"] == "own"
    assert "fixed" in repr(sae)


def test_an_architecture_without_a_threshold_is_calibrated():
    @metasae.architecture("best_half")
    class BestHalf(metasae.Architecture):
        def fires(self, pre, k):
            return (pre > pre.mean(1, keepdim=True)) & (pre > 0)

    recipe = {"sae.n": 64, "sae.architecture": "best_half", "train.tokens": 3000, **QUICK}
    with undrawn():
        run = metasae.train(activations(), ["solo"], recipe, show=False)
    assert run.arms[0].measures()["calibration"]["rule"] == "rate"


def test_what_an_architecture_must_have():
    for kind, words in (
        (type("No", (), {}), "must be a subclass of metasae.Architecture"),
        (type("No", (metasae.Architecture,), {}), "must say which latents fire"),
        (
            type("No", (metasae.Architecture,), {"fires": lambda *_: None, "own_threshold": True}),
            "so it must define inference_threshold",
        ),
    ):
        with pytest.raises(metasae.UserError, match=words):
            metasae.architecture("no")(kind)
    with pytest.raises(metasae.UserError, match="'topk' is an architecture that ships"):
        metasae.architecture("topk")(metasae.Architecture)


def test_a_trainer_refuses_what_this_process_does_not_know():
    from metasae.train.trainer import Trainer

    values = small_recipe().model_dump(mode="json")
    stored = metasae.Recipe.stored(values, {"sae.architecture": "gone"})
    with pytest.raises(metasae.UserError, match="'gone' was defined in Python and this process does not know it"):
        Trainer(stored, "solo", 0, torch.zeros(16))
