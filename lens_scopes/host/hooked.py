"""Which HookedTransformer a Hugging Face configuration is: TransformerLens decides by names, of paths too."""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lens_scopes.host.local import Local

#: Families that TransformerLens knows by official names alone, each with numbers written down in its code.
_BY_NAME = ("gemma", "gemma2", "gemma3_text")


@contextmanager
def configured(where: Local, device: str | torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Any]]:
    """The name under which TransformerLens converts such weights, and its configuration; no weights are read.

    Raises:
        ValueError: TransformerLens has no such model, or only one with other numbers.

    """
    from transformer_lens import loading_from_pretrained as loading
    from transformers import AutoConfig

    written = where.config()
    if written.get("model_type") == "gpt2":
        written.setdefault("n_ctx", written.get("n_positions", 1024))
    # A path is routed by what it contains ("llama", "gemma", "bert"): TransformerLens gets to see the configuration
    # alone, in a directory with a neutral name.
    with tempfile.TemporaryDirectory() as neutral:
        (Path(neutral) / "config.json").write_text(json.dumps(written), encoding="utf-8")
        hf_config = AutoConfig.from_pretrained(neutral)
        if written.get("model_type") in _BY_NAME:
            name = official_name(hf_config)
            if name is None:
                msg = (
                    f"HookedTransformer knows {written['model_type']!r} by official names only, and none of those has "
                    f"the numbers of {where.path}; write backend='bridge' (TransformerLens 3 and later)"
                )
                raise ValueError(msg)
            yield name, loading.get_pretrained_model_config(name, device=str(device), dtype=dtype)
            return
        try:
            config = loading.get_pretrained_model_config(neutral, device=str(device), dtype=dtype)
        except NotImplementedError as failure:
            msg = (
                f"HookedTransformer knows no {written.get('model_type')!r} from a directory; write backend='bridge' "
                "(TransformerLens 3 and later)"
            )
            raise ValueError(msg) from failure
        sizes = {"d_model": hf_config.hidden_size, "n_layers": hf_config.num_hidden_layers}
        wrong = {size: getattr(config, size) for size, right in sizes.items() if getattr(config, size) != right}
        if wrong:
            msg = (
                f"TransformerLens builds {config.original_architecture} with sizes of its own ({wrong} instead of "
                f"{sizes}), so this directory cannot become a HookedTransformer; write backend='bridge'"
            )
            raise ValueError(msg)
        yield neutral, config


def official_name(hf_config: Any) -> str | None:
    """The first official name whose numbers are all those of a configuration."""
    from transformer_lens import loading_from_pretrained as loading

    wanted = _numbers(hf_config)
    for name in loading.OFFICIAL_MODEL_NAMES:  # pyright: ignore[reportPrivateImportUsage]
        if "gemma" not in name.lower():
            continue
        config = loading.get_pretrained_model_config(name, device="cpu")
        known = config.original_architecture in hf_config.architectures and _windows(config) == _windows(hf_config)
        if known and not _differing(config, wanted):
            return name
    return None


def _windows(config: Any) -> list[bool]:
    """Whether each block looks no further back than a window, in either's words."""
    types = getattr(config, "attn_types", None) or getattr(config, "layer_types", None) or []
    return [kind in ("local", "sliding_attention") for kind in types]


def _numbers(hf: Any) -> Mapping[str, float | None]:
    """What a HookedTransformerConfig of the same model says, by its own names; None is "none"."""
    rope = getattr(hf, "rope_parameters", None) or {}
    every = rope.get("full_attention", rope)
    local = rope.get("sliding_attention", {}).get("rope_theta", getattr(hf, "rope_local_base_freq", None))
    window = hf.sliding_window if hf.model_type != "gemma" else None
    return {
        "n_layers": hf.num_hidden_layers,
        "d_model": hf.hidden_size,
        "n_heads": hf.num_attention_heads,
        "d_head": hf.head_dim,
        "d_mlp": hf.intermediate_size,
        "d_vocab": hf.vocab_size,
        "n_key_value_heads": hf.num_key_value_heads,
        "eps": hf.rms_norm_eps,
        "rotary_base": every.get("rope_theta", getattr(hf, "rope_theta", None)),
        "rotary_base_local": local,
        "window_size": window,
        "attn_scale": math.sqrt(getattr(hf, "query_pre_attn_scalar", None) or hf.head_dim),
        "attn_scores_soft_cap": getattr(hf, "attn_logit_softcapping", None),
        "output_logits_soft_cap": getattr(hf, "final_logit_softcapping", None),
    }


def _differing(config: Any, wanted: Mapping[str, float | None]) -> list[str]:
    found: dict[str, Any] = {name: getattr(config, name, None) for name in wanted}
    if found["n_key_value_heads"] is None:
        found["n_key_value_heads"] = config.n_heads
    found |= {name: None for name, value in found.items() if "soft_cap" in name and (value or -1) <= 0}
    return [
        name
        for name, value in wanted.items()
        if (value is None) != (found[name] is None)
        or (value is not None and not math.isclose(value, found[name], rel_tol=1e-5))
    ]
