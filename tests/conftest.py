"""Fixtures and rules for the whole suite: one thread, no downloads, reference data where it is."""

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
    """Slow tests wait for a marker expression: ``-m slow``, or ``-m "slow or not slow"`` for everything."""
    if config.getoption("markexpr"):
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
