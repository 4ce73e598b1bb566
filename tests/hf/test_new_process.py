"""A saved folder loads in a new process, with `trust_remote_code=True` or after `import maw`, and is saved again."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from families import TOKENS, attach, build
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from toys import encoder

import maw

TEXTS = ["meaning of river", "This passage explains what an engine is."]

TRUSTING = """
import sys, torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer
TEXTS, TOKENS = torch.load("inputs.pt")
where, to = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(f"{where}/full")
for load in (SentenceTransformer, AutoModel.from_pretrained):
    try:
        load(f"{where}/full", trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    else:
        raise AssertionError("loaded without maw")
assert "maw" not in sys.modules
out = {}
for name in ("full", "lora", "merged", "router"):
    model = SentenceTransformer(f"{where}/{name}", trust_remote_code=True, device="cpu")
    out[name] = torch.tensor(model.encode(TEXTS))
    model.save(f"{to}/{name}")
bare = AutoModel.from_pretrained(f"{where}/bare", trust_remote_code=True).eval()
out["bare"] = bare(TOKENS).last_hidden_state.detach()
bare.save_pretrained(f"{to}/bare")
assert AutoConfig.from_pretrained(f"{where}/bare", trust_remote_code=True).maw_config.depth == 5
torch.save(out, f"{to}/out.pt")
"""

IMPORTING = """
import sys, torch
import maw
from sentence_transformers import SentenceTransformer
from transformers import AutoModel
TEXTS, TOKENS = torch.load("inputs.pt")
where, to = sys.argv[1:]
out = {}
for name in ("full", "lora", "merged", "router"):
    out[name] = torch.tensor(SentenceTransformer(f"{where}/{name}", device="cpu").encode(TEXTS))
out["bare"] = AutoModel.from_pretrained(f"{where}/bare").eval()(TOKENS).last_hidden_state.detach()
torch.save(out, f"{to}/out.pt")
"""


def in_a_new_process(code, folder, *arguments, **environment):
    """What it says; without network, and with a cache of its own for code from folders."""
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of each kind, and what the model in it gives."""
    folder = tmp_path_factory.mktemp("saved")
    expected, first = {}, folder / "first"

    def keep(name, model):
        expected[name] = torch.tensor(model.encode(TEXTS))
        model.save(str(first / name))

    config = maw.MAWConfig(depth=5)
    keep("full", encoder(config))
    model = encoder(config)
    model.add_adapter(maw.lora_config(model, init_lora_weights=False))
    keep("lora", model)
    maw.merge_lora(model)
    keep("merged", model)
    model = encoder(config)
    other = encoder(maw.MAWConfig(layers="all", depth=4, views="ones"))
    router = Router.for_query_document([model[0]], [other[0]], default_route="query")
    keep("router", SentenceTransformer(modules=[router, model[1]], device="cpu"))
    bare = attach(build("bert"))
    bare.save_pretrained(first / "bare")
    expected["bare"] = bare(TOKENS).last_hidden_state.detach()
    torch.save((TEXTS, TOKENS), folder / "inputs.pt")
    return folder, expected


def test_a_folder_loads_with_trust_remote_code_and_saves_again(saved):
    folder, expected = saved
    done = in_a_new_process(TRUSTING, folder, "first", "second")
    assert done.returncode == 0, done.stderr
    out = torch.load(folder / "second" / "out.pt")
    assert out.keys() == expected.keys()
    assert all(torch.equal(out[name], expected[name]) for name in expected)
    for path in (folder / "first").rglob("*"):  # the second can be loaded as the first was
        if path.name in ("config.json", "modeling_maw.py", "modules.json", "router_config.json"):
            assert (folder / "second" / path.relative_to(folder / "first")).read_text() == path.read_text()
    files = {path.name for path in (folder / "second" / "bare").iterdir()}
    assert files == {"config.json", "model.safetensors", "modeling_maw.py"}


@pytest.mark.slow
def test_a_folder_loads_after_import_maw(saved):
    folder, expected = saved
    done = in_a_new_process(IMPORTING, folder, "first", "first")
    assert done.returncode == 0, done.stderr
    out = torch.load(folder / "first" / "out.pt")
    assert all(torch.equal(out[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_the_card_says_how_its_folder_is_loaded(saved):
    """A new process runs the card's own code; a card of a model without MAW has nothing of it."""
    folder, _ = saved
    card = (folder / "first" / "full" / "README.md").read_text()
    [code] = [block.split("```")[0] for block in card.split("```python\n")[1:]]
    assert 'SentenceTransformer("sentence_transformers_model_id", trust_remote_code=True)' in code
    assert "pip install maw-attention" in code
    code = code.replace("sentence_transformers_model_id", "first/full")
    done = in_a_new_process(code, folder)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "(3, 48)"), done.stderr
    plain = encoder()
    plain._model_card_text = None  # write one anew
    plain.save(str(folder / "plain"))
    assert "maw" not in (folder / "plain" / "README.md").read_text().lower()


WITHOUT = """
import sys
sys.modules["maw"] = None  # not installed
from sentence_transformers import SentenceTransformer
try:
    SentenceTransformer("first/full", trust_remote_code=True)
except ImportError as error:
    print(error)
"""


@pytest.mark.slow
def test_where_maw_is_not_installed_the_folder_says_what_to_install(saved):
    folder, _ = saved
    done = in_a_new_process(WITHOUT, folder)
    assert done.returncode == 0, done.stderr
    assert "pip install maw-attention" in done.stdout
    assert "pip install maw`" not in done.stdout, "another package"


def test_only_what_a_folder_needs_is_in_its_config_json(tmp_path):
    """Also where the config alone is saved, and where it came from a hub, whose name Transformers puts before ours."""
    config = attach(build("bert")).config
    config.save_pretrained(tmp_path)
    assert (tmp_path / "modeling_maw.py").is_file()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["auto_map"] == {"AutoConfig": "modeling_maw.MAWModelConfig", "AutoModel": "modeling_maw.MAWModel"}
    again = maw.MAWModel.config_class(**{**written, "auto_map": {"AutoModel": "user/model--modeling_maw.MAWModel"}})
    assert again.to_diff_dict() == config.to_diff_dict()
