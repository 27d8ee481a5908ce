"""A raw model by name, from a Hugging Face directory or a GGUF file, in eval mode, for either host class."""

import importlib.util
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from lens_scopes.host.local import Local, pretrained
from lens_scopes.results.arguments import shown

Backend = Literal["auto", "bridge", "hooked"]


def load(
    name_or_dir: str | Path,
    *,
    backend: Backend = "auto",
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    """A TransformerLens model with its weights unprocessed (nothing folded, nothing centred), in eval mode.

    Equivalent to ``HookedTransformer.from_pretrained_no_processing(name)`` or ``TransformerBridge.boot_transformers
    (name)``, and works on a local directory in Hugging Face format for both, which HookedTransformer alone does not.

    Args:
        name_or_dir: a model name for the hub; a directory with config.json, weights and tokenizer; or a .gguf file,
            whose weights are dequantised (with the extra ``gguf``).
        backend: "bridge" (TransformerLens 3 and later), "hooked" (2 and 3), "auto": the bridge where there is one.
        device: by default CUDA where there is one, else the CPU.
        dtype: of the weights.
        options: handed to ``transformers.AutoModelForCausalLM.from_pretrained``, e.g. ``revision``.

    Raises:
        ValueError: an unknown backend, or one that this TransformerLens does not have; a directory that
            HookedTransformer cannot represent, said before weights are read; an option that transformers does not take.
        FileNotFoundError: a path that is no model directory.
        ImportError: a .gguf file without the package gguf.

    """
    if backend not in ("auto", "bridge", "hooked"):
        msg = f"backend must be 'auto', 'bridge' or 'hooked', got {backend!r}; write backend='auto'"
        raise ValueError(msg)
    if not isinstance(name_or_dir, str | Path) or not str(name_or_dir).strip():
        msg = f"a model is a name on the hub, a directory or a .gguf file, got {shown(name_or_dir)}; write e.g. 'gpt2'"
        raise TypeError(msg)
    if not isinstance(dtype, torch.dtype):
        msg = f"dtype is a type of torch, got {shown(dtype)}; write dtype=torch.float32"
        raise TypeError(msg)
    if device is not None:
        _refuse_no_device(device)
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
    if backend == "hooked":
        _refuse_quantised(options)
    local = Local.at(name_or_dir)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = (_bridge if backend == "bridge" else _hooked)(local or str(name_or_dir), device, dtype, options)
    return model.eval()


def _bridge(where: Local | str, device: str | torch.device, dtype: torch.dtype, options: Mapping[str, Any]) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(where, str):
        if not options:
            return TransformerBridge.boot_transformers(where, device=str(device), dtype=dtype)
        read = pretrained(where, dtype, options)
        return TransformerBridge.boot_transformers(where, device=str(device), dtype=dtype, hf_model=read)
    tokenizer = where.tokenizer()
    # The bridge reads a plain directory itself.
    given = {"hf_model": where.model(dtype, options)} if where.gguf or options else {}
    model = TransformerBridge.boot_transformers(
        where.path, device=str(device), dtype=dtype, tokenizer=tokenizer, **given
    )
    model.cfg.model_name = where.name
    if tokenizer is None:
        model.tokenizer = None  # the bridge puts an empty one there, which encodes everything to nothing
    return model


def _hooked(where: Local | str, device: str | torch.device, dtype: torch.dtype, options: Mapping[str, Any]) -> Any:
    from transformer_lens import HookedTransformer

    if isinstance(where, str):
        return HookedTransformer.from_pretrained_no_processing(where, device=str(device), dtype=dtype, **options)
    from transformer_lens import loading_from_pretrained as loading

    from lens_scopes.host.hooked import configured

    with configured(where, device, dtype) as (name, config):
        hf_model = where.model(dtype, options)
        weights = loading.get_pretrained_state_dict(name, config, hf_model=hf_model, dtype=dtype)
    config.model_name = where.name
    tokenizer = where.tokenizer()
    if tokenizer is None:
        config.tokenizer_name = None  # else it looks for one in the directory that is gone
    model = HookedTransformer(config, tokenizer)
    model.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return model


def _refuse_no_device(device: Any) -> None:
    """Refuse what torch knows no device by."""
    try:
        torch.device(device) if isinstance(device, str | torch.device) else torch.device(f"no device: {shown(device)}")
    except RuntimeError:
        msg = f"device is a device of torch, got {shown(device)}; write device='cpu' or 'cuda'"
        raise ValueError(msg) from None


def _refuse_quantised(options: Mapping[str, Any]) -> None:
    """A HookedTransformer copies weights into matrices of its own."""
    quantised = [name for name in options if name.startswith("load_in_") or name == "quantization_config"]
    if quantised:
        msg = f"a HookedTransformer cannot be quantised ({quantised[0]}): leave it out, or write backend='bridge'"
        raise ValueError(msg)
