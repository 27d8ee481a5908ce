"""A raw model by name or from a local Hugging Face directory, in eval mode, for either host class."""

import importlib.util
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

Backend = Literal["auto", "bridge", "hooked"]


def load(
    name_or_dir: str | Path,
    *,
    backend: Backend = "auto",
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """A TransformerLens model with its weights unprocessed (nothing folded, nothing centred), in eval mode.

    Equivalent to ``HookedTransformer.from_pretrained_no_processing(name)`` or ``TransformerBridge.boot_transformers
    (name)``, and works on a local directory in Hugging Face format for both, which HookedTransformer alone does not.

    Args:
        name_or_dir: a model name for the hub, or a directory with config.json, weights and tokenizer.
        backend: "bridge" (TransformerLens 3 and later), "hooked" (2 and 3), "auto": the bridge where there is one.
        device: by default CUDA where there is one, else the CPU.
        dtype: of the weights.

    Raises:
        ValueError: an unknown backend, or one that this TransformerLens does not have.
        FileNotFoundError: a path that is no model directory.

    """
    if backend not in ("auto", "bridge", "hooked"):
        msg = f"backend must be 'auto', 'bridge' or 'hooked', got {backend!r}; write backend='auto'"
        raise ValueError(msg)
    release = version("transformer-lens")
    has = {
        "bridge": importlib.util.find_spec("transformer_lens.model_bridge") is not None,
        "hooked": importlib.util.find_spec("transformer_lens.HookedTransformer") is not None,
    }
    if backend == "auto":
        backend = "bridge" if has["bridge"] else "hooked"
    if not has[backend]:
        msg = f"transformer-lens {release} has no {backend!r} backend; write backend='auto'"
        raise ValueError(msg)
    path = Path(name_or_dir)
    if path.is_dir():
        if not (path / "config.json").is_file():
            msg = f"{path} is a directory without config.json; a local model is a Hugging Face directory"
            raise FileNotFoundError(msg)
    elif path.is_absolute() or str(name_or_dir).startswith((".", "~")):
        msg = (
            f"a model is a name on the hub or a directory; there is no model directory at {path}: write one that exists"
        )
        raise FileNotFoundError(msg)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = (_bridge if backend == "bridge" else _hooked)(str(name_or_dir), path.is_dir(), device, dtype)
    return model.eval()


def _bridge(name: str, local: bool, device: str | torch.device, dtype: torch.dtype) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    if not local:
        return TransformerBridge.boot_transformers(name, device=str(device), dtype=dtype)
    model = TransformerBridge.boot_transformers(name, device=str(device), dtype=dtype, tokenizer=_tokenizer(name))
    if not _has_tokenizer(name):
        model.tokenizer = None  # the bridge puts an empty one there, which encodes everything to nothing
    return model


def _hooked(name: str, local: bool, device: str | torch.device, dtype: torch.dtype) -> Any:
    from transformer_lens import HookedTransformer

    if not local:
        return HookedTransformer.from_pretrained_no_processing(name, device=str(device), dtype=dtype)
    from transformer_lens import loading_from_pretrained as loading
    from transformers import AutoModelForCausalLM

    hf_model = AutoModelForCausalLM.from_pretrained(name, torch_dtype=dtype)
    # TransformerLens routes by what a path contains ("llama", "gemma", "bert"): it gets to see the configuration alone,
    # in a directory with a neutral name.
    with tempfile.TemporaryDirectory() as neutral:
        written = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
        if written.get("model_type") == "gpt2":
            written.setdefault("n_ctx", written.get("n_positions", 1024))
        (Path(neutral) / "config.json").write_text(json.dumps(written), encoding="utf-8")
        try:
            config = loading.get_pretrained_model_config(neutral, device=str(device), dtype=dtype)
        except NotImplementedError as failure:
            msg = (
                f"HookedTransformer knows {written.get('model_type')!r} by name only, not from a directory; write "
                "backend='bridge' (TransformerLens 3 and later)"
            )
            raise ValueError(msg) from failure
        weights = loading.get_pretrained_state_dict(neutral, config, hf_model=hf_model, dtype=dtype)
    config.model_name = Path(name).resolve().name
    sizes = {"d_model": hf_model.config.hidden_size, "n_layers": hf_model.config.num_hidden_layers}
    wrong = {size: getattr(config, size) for size, right in sizes.items() if getattr(config, size) != right}
    if wrong:
        msg = (
            f"TransformerLens builds {config.original_architecture} with sizes of its own ({wrong} instead of {sizes}),"
            " so this directory cannot become a HookedTransformer; write backend='bridge'"
        )
        raise ValueError(msg)
    tokenizer = _tokenizer(name)
    if tokenizer is None:
        config.tokenizer_name = None  # else it looks for one in the directory that is gone
    model = HookedTransformer(config, tokenizer)
    model.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return model


def _has_tokenizer(directory: str) -> bool:
    return any((Path(directory) / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def _tokenizer(directory: str) -> Any:
    if not _has_tokenizer(directory):
        return None
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return AutoTokenizer.from_pretrained(directory)
    except ValueError:
        if not (Path(directory) / "tokenizer.json").is_file():
            raise
    # Written by a newer transformers, under a class name that this one does not know; tokenizer.json says it all.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    tokenizer.init_kwargs["add_bos_token"] = True  # else HookedTransformer 2 loads it once more, by that class name
    return tokenizer
