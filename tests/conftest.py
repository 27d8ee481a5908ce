"""Fixtures and rules for the whole suite: one thread, no downloads, reference data and the real model where they are."""

import gc
import json
import os
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")

import pytest
import torch

torch.set_num_threads(1)


def pytest_configure(config):
    """Other packages' warnings are their own affair; ours are errors (pyproject.toml)."""
    config.addinivalue_line("markers", "host: talks to TransformerLens itself; run again on every supported version")
    config.addinivalue_line("markers", "slow: takes long; only with -m slow")
    for text in (
        "ignore::DeprecationWarning:(?!lens_scopes)",
        "ignore:.*HookedTransformer.*:DeprecationWarning",
        "ignore::FutureWarning:(?!lens_scopes)",
        "ignore::UserWarning:(torch|transformers|transformer_lens|huggingface_hub|jaxtyping|beartype)",
    ):
        config.addinivalue_line("filterwarnings", text)


def pytest_collection_modifyitems(config, items):
    """Slow tests wait for a marker expression: ``-m slow``, or ``-m "slow or not slow"``; real ones for one that names them."""
    asked = config.getoption("markexpr")
    if "real" not in asked:
        real = pytest.mark.skip(reason="real: run with make real")
        for item in items:
            if "real" in item.keywords:
                item.add_marker(real)
    if asked:
        return
    skip = pytest.mark.skip(reason="slow: run with -m slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def quiet():
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with stories260K and the authors' scores."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("LENS_SCOPES_REFERENCE", beside))
    if not (path / "golden" / "reference_scores.json").is_file():
        pytest.skip(f"no reference data at {path}; set LENS_SCOPES_REFERENCE")
    return path


@pytest.fixture(scope="session")
def golden(reference) -> dict:
    return json.loads((reference / "golden" / "reference_scores.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def stories260k(reference) -> Path:
    return reference / "models" / "stories260K"


@pytest.fixture(scope="session")
def real_directory() -> Path:
    """The Hugging Face directory of the real model, Gemma 3 270M, which ``make real`` makes once."""
    default = Path.home() / ".cache" / "lens_scopes" / "gemma3-270m"
    path = Path(os.environ.get("LENS_SCOPES_REAL_MODEL") or default).expanduser()
    if not (path / "complete").is_file():
        pytest.skip(f"no real model at {path}; `make real` makes it where LENS_SCOPES_REFERENCE has tools/gemma3.py")
    return path


@pytest.fixture(scope="session")
def real_hf(real_directory):
    """The real model without TransformerLens, in float32, for oracles."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(real_directory, dtype=torch.float32, attn_implementation="eager")
    return hf.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def real_host(real_directory, real_hf):
    """(host class, dtype) -> the real model: a bridge from its directory, or a HookedTransformer, which knows it by name."""

    def build(backend: str, dtype: torch.dtype = torch.float32):
        import lens_scopes as ls

        if backend == "bridge":
            return ls.load(real_directory, backend="bridge", device="cpu", dtype=dtype)
        from transformer_lens import HookedTransformer
        from transformers import AutoTokenizer

        given = {"hf_model": real_hf, "tokenizer": AutoTokenizer.from_pretrained(real_directory)}
        name = "google/gemma-3-270m"
        return HookedTransformer.from_pretrained_no_processing(name, **given, device="cpu", dtype=dtype).eval()

    return build


@pytest.fixture(scope="session", params=["bridge", "hooked"])
def real_model(request, real_host):
    """The real model on each host class, one after the other: both at once are 4 GB. Tests leave it as it is."""
    gc.collect()
    return real_host(request.param)
