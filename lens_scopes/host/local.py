"""Models on this machine: a Hugging Face directory, or a GGUF file that transformers turns into one."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Local:
    """Where the configuration, the weights and the tokenizer of one model are."""

    directory: Path
    gguf: str | None = None
    """The file in it, where it is all in one."""

    @classmethod
    def at(cls, place: str | Path) -> "Local | None":
        """What stands at a path; None for a name of the hub.

        Raises:
            FileNotFoundError: a path that is no model.
            ImportError: a .gguf file without the package that reads it.

        """
        path = Path(place)
        if path.is_dir():
            if not (path / "config.json").is_file():
                msg = f"{path} is a directory without config.json; a local model is a Hugging Face directory"
                raise FileNotFoundError(msg)
            return cls(path)
        if path.is_file() and path.suffix == ".gguf":
            if importlib.util.find_spec("gguf") is None:
                msg = f"reading {path.name} needs the package gguf: pip install 'lens-scopes[gguf]'"
                raise ImportError(msg)
            return cls(path.parent, path.name)
        if path.is_absolute() or path.suffix == ".gguf" or str(place).startswith((".", "~")) or path.is_file():
            kind = "file" if path.suffix == ".gguf" else "directory"
            msg = (
                f"a model is a name on the hub, a directory or a .gguf file; there is no model {kind} at {path}: write "
                "one that exists"
            )
            raise FileNotFoundError(msg)
        return None

    @property
    def path(self) -> str:
        """What the user wrote."""
        return str(self.directory / self.gguf if self.gguf else self.directory)

    @property
    def name(self) -> str:
        """What the model is called."""
        return Path(self.gguf).stem if self.gguf else self.directory.resolve().name

    def config(self) -> dict[str, Any]:
        """The configuration as Hugging Face writes it. No weights are read."""
        if self.gguf is None:
            return json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        from transformers import AutoConfig, AutoModelForCausalLM

        read = AutoConfig.from_pretrained(self.directory, gguf_file=self.gguf)
        written = json.loads(read.to_json_string(use_diff=False))
        # A GGUF file names no class.
        kind: Any = AutoModelForCausalLM._model_mapping[type(read)]
        return written | {"architectures": [kind.__name__]}

    def model(self, dtype: torch.dtype, options: Mapping[str, Any]) -> Any:
        """The Hugging Face model."""
        extra = {"gguf_file": self.gguf} if self.gguf else {}
        return pretrained(str(self.directory), dtype, {**extra, **options})

    def tokenizer(self) -> Any:
        """The tokenizer, None where there is none."""
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        if self.gguf is not None:
            tokenizer = AutoTokenizer.from_pretrained(self.directory, gguf_file=self.gguf)
            tokenizer.init_kwargs["add_bos_token"] = True  # else HookedTransformer loads it once more, as a directory
            return tokenizer
        files = ("tokenizer.json", "tokenizer.model", "vocab.json")
        if not any((self.directory / name).is_file() for name in files):
            return None
        try:
            return AutoTokenizer.from_pretrained(self.directory)
        except ValueError:
            if not (self.directory / "tokenizer.json").is_file():
                raise
        # Written by a newer transformers, under a class name that this one does not know; tokenizer.json says it all.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(self.directory)
        tokenizer.init_kwargs["add_bos_token"] = True  # else HookedTransformer 2 loads it once more, by that class name
        return tokenizer


def pretrained(name: str, dtype: torch.dtype, options: Mapping[str, Any]) -> Any:
    """A model of transformers whose attention is in the open.

    Raises:
        ValueError: an option that it does not take; the text names it.

    """
    from transformers import AutoModelForCausalLM

    given = {"attn_implementation": "eager", **options}
    try:
        return AutoModelForCausalLM.from_pretrained(name, torch_dtype=dtype, **given)
    except TypeError as failure:
        named = [option for option in options if repr(option) in str(failure)]
        if not named:
            raise
        way = f"; write quantization_config=transformers.BitsAndBytesConfig({named[0]}=...)"
        msg = f"transformers does not take {named[0]}{way if named[0].startswith('load_in_') else ''}"
        raise ValueError(msg) from failure
