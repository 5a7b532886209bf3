import http.server
import json
import os
import shutil
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from metasae import UserError
from metasae.data.model import loading
from metasae.data.model.host import Host
from metasae.data.model.loading import load_model, pick_dtype
from metasae.recipe import recipe
from sources import tokenizer_for

CPU = torch.device("cpu")
POINT = "blocks.1.hook_resid_pre"


class Hub(http.server.ThreadingHTTPServer):
    """A hub on this machine. repositories: name -> {revision: folder}; refusals: name -> (status, headers)."""

    def __init__(self):
        self.repositories, self.refusals = {}, {}
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        """/OWNER/NAME/resolve/REVISION/FILE, or /api/models/OWNER/NAME/revision/REVISION for a revision's commit."""
        parts = self.path.split("?")[0].removeprefix("/api/models").strip("/").split("/")
        if parts == [""]:
            return self.send(200)
        owner, name, kind, asked, *file = parts if len(parts) > 2 else [*parts, "revision", "main"]
        repository = f"{owner}/{name}"
        if repository in self.server.refusals:
            return self.send(*self.server.refusals[repository])
        if repository not in self.server.repositories:
            return self.send(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        folders = self.server.repositories[repository]
        commits = {revision: f"{number:040d}" for number, revision in enumerate(folders)}
        revision = next((name for name, commit in commits.items() if asked in (name, commit)), None)
        if revision is None:
            return self.send(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {asked}"})
        commit = commits[revision]
        if kind == "revision":
            return self.send(
                200, {"Content-Type": "application/json"}, json.dumps({"id": repository, "sha": commit}).encode()
            )
        path = folders[revision].joinpath(*file)
        if kind != "resolve" or not path.is_file():
            return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        self.send(200, {"X-Repo-Commit": commit, "ETag": f'"{commit}-{path.name}"'}, path.read_bytes())

    do_HEAD = do_GET

    def send(self, status, headers=None, body=b""):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    import transformers.utils.hub
    from huggingface_hub import constants, file_download

    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # before 1.0 the client keeps a copy of its own
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    # transformers 4 has its own
    monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr(
        transformers.utils.hub, "_hf_api", None, raising=False
    )  # made once, with the address of its time
    yield server
    server.shutdown()
    server.server_close()


def refused(says, **model):
    with pytest.raises(UserError, match=says) as error:
        Host.load(recipe.Model(**model), POINT)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


def changed(folder, to, change):
    """A copy of a model's folder with other weights: change(tensors) -> tensors."""
    shutil.copytree(folder, to)
    save_file(change(load_file(to / "model.safetensors")), to / "model.safetensors", {"format": "pt"})
    return to


def test_folders_and_packages_that_hold_no_model(tmp_path):
    refused("names no model")
    refused("does not exist", path=str(tmp_path / "nowhere"))
    refused("has no config.json", path=str(tmp_path))
    refused("pip install no-such-package", path="package:no_such_package/model")
    refused("holds no model in 'nowhere'", path="package:torch/nowhere")
    (tmp_path / "config.json").write_text("{}")
    refused("cannot load the model .*model_type", path=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "no-such-kind"}')
    refused("cannot load the model .*no-such-kind", path=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    refused("encoder-decoder", path=str(tmp_path))


@pytest.mark.parametrize(
    ("status", "code", "message", "says"),
    [
        (
            403,
            "GatedRepo",
            "You are not in the authorized list.",
            "is gated .You are not in .*ask for access at .*HF_TOKEN",
        ),
        (
            404,
            "RepoNotFound",
            "Repository not found",
            "no model 'lab/m', or it is private .Repository not found.; check model.name",
        ),
        (
            404,
            "RevisionNotFound",
            "Invalid rev id: v9",
            "has no revision 'v9' .Invalid rev id: v9.; set model.revision",
        ),
        (404, "EntryNotFound", "Entry not found", "cannot load the model 'lab/m'.*config.json.*; check model.name"),
        (403, "", "token has expired", "refuses the model 'lab/m' .token has expired.*HF_TOKEN"),
    ],
)
def test_the_hubs_reason_and_what_to_do(hub, status, code, message, says):
    hub.refusals["lab/m"] = (status, {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}))
    refused(says, name="lab/m", revision="v9")


def test_a_repository_without_weights(hub, build, tmp_path):
    shutil.copytree(build("gpt2"), tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    hub.repositories["lab/m"] = {"main": tmp_path / "bare"}
    refused("cannot load the model 'lab/m': .*model.safetensors", name="lab/m")
    refused("cannot load the model .*model.safetensors", path=str(tmp_path / "bare"))


def test_names_that_no_hub_can_have(hub):
    refused("neither a folder nor a name on the hub.*check model.name", name="my model")
    refused("neither a folder nor a name on the hub.*set model.path", name="models/gpt2/large")


def test_a_lost_connection(hub, monkeypatch):
    import transformers

    def lose(*_, **__):
        raise OSError("We couldn't connect") from ConnectionError("reset by peer")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lose)
    refused("connection to the hub failed .reset by peer.*try again", name="lab/m")


def test_revisions_and_offline_use(hub, build, tmp_path, monkeypatch):
    from huggingface_hub import constants

    other = changed(
        build("gpt2"), tmp_path / "other", lambda tensors: {name: tensor * 1.5 for name, tensor in tensors.items()}
    )
    hub.repositories["lab/m"] = {"main": build("gpt2"), "v2": other}
    by_revision = {revision: recipe.Model(name="lab/m", revision=revision, dtype="fp32") for revision in ("", "v2")}
    first, second = (Host.load(model, POINT) for model in by_revision.values())
    ids = torch.randint(5, 300, (2, 9))
    direct = Host.load(recipe.Model(path=str(other), dtype="fp32"), POINT)
    assert torch.equal(second.activations(ids, torch.ones_like(ids)), direct.activations(ids, torch.ones_like(ids)))
    assert first.fingerprint != second.fingerprint
    refused("has no revision 'v3'", name="lab/m", revision="v3")
    # what was loaded once is there without the hub, and only that
    hub.shutdown()
    hub.server_close()
    assert Host.load(by_revision["v2"], POINT).fingerprint == second.fingerprint
    refused("cannot be reached from here.*local cache lacks it; load it once online", name="lab/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Host.load(by_revision[""], POINT).fingerprint == first.fingerprint
    refused("'lab/other': HF_HUB_OFFLINE is set, and the local cache lacks it", name="lab/other")
    shutil.rmtree(next((tmp_path / "hub").rglob("snapshots")) / f"{1:040d}")
    refused("HF_HUB_OFFLINE is set", name="lab/m", revision="v2")


@pytest.mark.parametrize("name", ["smollm2", "smollm2-quick", "gemma3-270m"])
def test_recipes_of_packages_take_the_hubs_model_where_the_path_is_emptied(tmp_path, monkeypatch, name):
    """Offline, from the local cache, in which the hub's client lays its files out so."""
    import transformers
    import transformers.utils.hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(tmp_path), raising=False)
    by_name = recipe.Recipe.load(name, {"model.path": ""})
    by_path = recipe.Recipe.load(name)
    assert by_name.model_copy(update={"model": by_path.model}) == by_path
    repository = tmp_path / f"models--{by_name.model.name.replace('/', '--')}"
    snapshot, reference = repository / "snapshots" / "abc", repository / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text("abc")
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    sizes |= {"num_hidden_layers": 10, "intermediate_size": 64, "vocab_size": 400, "max_position_embeddings": 512}
    kinds = ("Gemma3TextConfig", "Gemma3ForCausalLM") if "gemma" in name else ("LlamaConfig", "LlamaForCausalLM")
    config, model = (getattr(transformers, kind) for kind in kinds)
    model(config(**sizes)).save_pretrained(snapshot)
    tokenizer_for("llama", bos=True).save_pretrained(snapshot)
    host = Host.load(by_name.model, by_name.hook.point)
    assert host.causal and host.gguf is None and host.d == 32


def test_a_models_own_code_runs_only_when_asked_for(build, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(build("gpt2"), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "ours", "architectures": ["OursForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "ours.OursConfig", "AutoModelForCausalLM": "ours.Ours"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "ours.py").write_text(
        "import os\nfrom transformers import GPT2Config, GPT2LMHeadModel\nos.environ['METASAE_TEST_RAN'] = '1'\n"
        "class OursConfig(GPT2Config):\n    model_type = 'ours'\n"
        "class Ours(GPT2LMHeadModel):\n    config_class = OursConfig\n"
    )
    refused("Python code of its own.*set model.trust_remote_code=true", path=str(folder))
    assert "METASAE_TEST_RAN" not in os.environ
    try:
        host = Host.load(recipe.Model(path=str(folder), trust_remote_code=True, dtype="fp32"), "transformer.h.1:in")
    finally:
        assert os.environ.pop("METASAE_TEST_RAN", None) == "1"
    assert host.causal and host.d == 32


def test_weights_that_the_files_lack_are_named(build, tmp_path):
    """transformers would fill them with random numbers."""
    lacking = {
        name: tensor
        for name, tensor in load_file(build("llama") / "model.safetensors").items()
        if "layers.1.mlp" not in name
    }
    folder = changed(build("llama"), tmp_path / "lacking", lambda _: lacking)
    refused(r"lack the weights 'model\.layers\.1\.mlp\.down_proj\.weight' and 2 more", path=str(folder))
    # an encoder's pooler is read by nobody here; its files often lack it
    encoder = {
        name: tensor for name, tensor in load_file(build("bert") / "model.safetensors").items() if "pooler" not in name
    }
    folder = changed(build("bert"), tmp_path / "encoder", lambda _: encoder)
    assert Host.load(recipe.Model(path=str(folder)), POINT).d == 32


def test_damaged_weights(build, tmp_path):
    shutil.copytree(build("gpt2"), tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("cannot load the model .*SafetensorError", path=str(tmp_path / "cut"))
    folder = changed(
        build("gpt2"),
        tmp_path / "shapes",
        lambda tensors: {name: tensor[:-1].clone() for name, tensor in tensors.items()},
    )
    refused("cannot load the model", path=str(folder))


def test_memory_that_does_not_suffice(build, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(loading, "_load", full)
    refused(
        "does not fit into the GPU's memory; set model.dtype=bf16 or model.device_map=auto", path=str(build("gpt2"))
    )


def test_a_device_map_needs_accelerate(build, monkeypatch):
    model = recipe.Model(path=str(build("gpt2")), device_map="auto", dtype="fp32")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UserError, match=r"device_map=auto needs accelerate: pip install accelerate"):
        load_model(model, CPU)
    with pytest.raises(UserError, match=r"device_map"):
        recipe.Recipe.load({"model": {"device_map": "balanced"}})


def test_a_device_map_changes_no_number(build):
    pytest.importorskip("accelerate")
    plain, spread = (
        Host.load(recipe.Model(path=str(build("llama")), device_map=place, dtype="fp32"), POINT)
        for place in ("", "auto")
    )
    ids = torch.randint(5, 300, (2, 9))
    mask = torch.ones_like(ids)
    assert torch.equal(plain.activations(ids, mask).cpu(), spread.activations(ids, mask).cpu())
    assert torch.equal(plain.output(ids, mask).cpu(), spread.output(ids, mask).cpu())
    assert plain.fingerprint == spread.fingerprint


def test_weights_kept_elsewhere_between_calls(load):
    """What a device map does with layers that do not fit: their parameters are on no device outside a call."""
    accelerate = pytest.importorskip("accelerate")
    plain, host = load("llama", POINT), load("llama", POINT)
    accelerate.cpu_offload(host.model, CPU)
    ids = torch.randint(5, 300, (2, 9))
    mask = torch.ones_like(ids)
    assert all(parameter.is_meta for parameter in host.model.parameters()) and host.device == CPU
    assert torch.equal(plain.activations(ids, mask), host.activations(ids, mask))
    logits = host.readout.logits(host.before_readout(ids, mask)[0], 0, 400)
    assert torch.allclose(logits, plain.output(ids, mask)[0], atol=1e-5)


def test_loading_leaves_the_settings_of_transformers_alone(load):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load("bert", "blocks.0.hook_resid_pre")
    assert before == (logging.get_verbosity(), logging.is_progress_bar_enabled())


def test_dtypes(build):
    assert pick_dtype("fp16", CPU) == torch.float16
    assert pick_dtype("auto", CPU) in (torch.bfloat16, torch.float32)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        assert Host.load(recipe.Model(path=str(build("gpt2")), dtype=name), POINT).dtype == dtype
