"""From what users write to token ids, and from token ids to text that people can read."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lens_scopes.host.model import Host
from lens_scopes.results.arguments import Integer, integer, is_integer, listed, shown
from lens_scopes.results.text import Text, predicting

Prompt = Text | str | Sequence[Integer] | Tensor | np.ndarray | Sequence[dict[str, str]]
#: An index, several of them, "all", or the name of a span of a Text.
Positions = Integer | Sequence[Integer] | Tensor | np.ndarray | str

# Tokens decoded together to get one right: SentencePiece drops the blank of the first, a character spans up to four.
_WINDOW = 6


def encode(host: Host, prompt: Prompt) -> Int[Tensor, " pos"]:
    """Token ids of a prompt.

    A string follows the host's own BOS rule and is never cut; ids (list, tensor or Text) are taken exactly as they are;
    a list of messages goes through the chat template, with a generation prompt unless the last is the assistant's.

    Raises:
        ValueError: empty, longer than the context, ids outside the vocabulary, or text without a tokenizer.
        TypeError: none of the forms above.

    """
    ids = _ids(host, prompt)
    if len(ids) == 0:
        msg = f"the prompt is empty, got {shown(prompt)}: there is nothing to explain; write at least one token"
        raise ValueError(msg)
    if len(ids) > host.n_ctx:
        msg = (
            f"the prompt has {len(ids)} tokens, {host.name} has a context of {host.n_ctx}; prompts are never cut: "
            "write a shorter one"
        )
        raise ValueError(msg)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= host.vocab:
        raise ValueError(_outside(host, low if low < 0 else high))
    return ids.to(host.device)


def _ids(host: Host, prompt: Prompt) -> Tensor:
    if isinstance(prompt, Text):
        _refuse_another_tokenizer(host, prompt)
        return _tensor(list(prompt.ids))
    if isinstance(prompt, str):
        tokenizer_of(host, "a string prompt")
        return text_ids(host, prompt) if prompt else _tensor([])
    if isinstance(prompt, Tensor | np.ndarray):
        flat = prompt.reshape(-1)
        whole = not len(flat) or is_integer(flat[0])
        if not whole or prompt.ndim not in (1, 2) or (prompt.ndim == 2 and len(prompt) != 1):
            msg = (
                f"a tensor prompt holds ids [pos] or [1, pos], got {shown(prompt)}; for several prompts see score_batch"
            )
            raise ValueError(msg)
        return _tensor(flat.tolist())
    if isinstance(prompt, list | tuple) and all(isinstance(entry, dict) for entry in prompt) and prompt:
        return _tensor(plain_ids(host, chat_text(host, cast("list[dict[str, str]]", prompt))))
    if isinstance(prompt, list | tuple) and all(map(is_integer, prompt)):
        return _tensor([int(cast("int", entry)) for entry in prompt])
    msg = (
        f"a prompt is a string, a list or tensor of ids, a Text or a list of chat messages, got {shown(prompt)};"
        " for several prompts write score_batch"
    )
    raise TypeError(msg)


def _refuse_another_tokenizer(host: Host, text: Text) -> None:
    """Refuse ids that mean other words here: the text would be explained as one that nobody wrote."""
    if host.tokenizer is None or not text.ids or max(text.ids) >= host.vocab or min(text.ids) < 0:
        return
    for at, (own, here) in enumerate(zip(text.tokens, token_texts(host, text.ids), strict=True)):
        if own != here and not re.fullmatch(r"#\d+", own):  # a label where there was no tokenizer
            msg = (
                f"the Text's token {at} is {own!r}, and its id {text.ids[at]} is {here!r} for {host.name}: it was made "
                f"with another tokenizer; make it with this model (ls.join, ls.generate), or give the ids as a list"
            )
            raise ValueError(msg)


def _outside(host: Host, token: int) -> str:
    text = f"token id {token} is outside the vocabulary 0 to {host.vocab - 1} of {host.name}"
    return f"{text}; write an id in it, or ids of this model's own tokenizer"


def _refuse_half_characters(text: str, what: str) -> None:
    """Half of a surrogate pair is no character: it has no UTF-8, and tokenizers fail on it."""
    half = re.search("[\ud800-\udfff]", text)
    if half is not None:
        whole = "text.encode('utf-16', 'surrogatepass').decode('utf-16')"
        msg = (
            f"{what} is whole characters, got half of a surrogate pair, {half.group()!a}, at {half.start()}; write the "
            f"whole character, e.g. by {whole}"
        )
        raise ValueError(msg)


def _tensor(ids: list[int]) -> Int[Tensor, " pos"]:
    """Ids on the CPU, whatever torch's default device is."""
    return torch.tensor(ids, dtype=torch.long, device="cpu")


def spans_of(prompt: Prompt) -> Mapping[str, tuple[int, int]]:
    """The named spans that a prompt comes with."""
    return prompt.spans if isinstance(prompt, Text) else {}


def chat_text(host: Host, messages: Sequence[dict[str, str]]) -> str:
    """Messages as the chat template writes them, with a generation prompt unless the last is the assistant's.

    Raises:
        ValueError: no tokenizer, or one without a chat template.

    """
    tokenizer = tokenizer_of(host, "a chat prompt")
    if not getattr(tokenizer, "chat_template", None):
        msg = f"the prompt is a chat, and {host.name}'s tokenizer has no chat template; write the prompt as one string"
        raise ValueError(msg)
    return tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=messages[-1].get("role") != "assistant"
    )


def plain_ids(host: Host, text: str) -> list[int]:
    """The ids of a text in which special tokens are written out: nothing is added."""
    _refuse_half_characters(text, "a chat prompt")
    return host.tokenizer(text, add_special_tokens=False)["input_ids"]


def text_ids(host: Host, prompt: str) -> Int[Tensor, " pos"]:
    """The host's own rule; but a text that begins with the BOS (a rendered chat template) does not get another."""
    _refuse_half_characters(prompt, "a prompt")
    with torch.device("cpu"):  # TransformerLens makes the ids on torch's default device
        ids = host.model.to_tokens(prompt, truncate=False)[0]
    bos, text = host.tokenizer.bos_token_id, host.tokenizer.bos_token
    twice = text and prompt.startswith(text) and not prompt.startswith(text * 2) and ids[:2].tolist() == [bos, bos]
    return ids[1:] if twice else ids


def brings_its_bos(host: Host, prompt: Prompt) -> bool:
    """Whether a string begins with the BOS as text, so that the host's own is not put before it."""
    text = getattr(host.tokenizer, "bos_token", None)
    return isinstance(prompt, str) and bool(text) and prompt.startswith(text)


def tokenizer_of(host: Host, what: str) -> Any:
    """The model's tokenizer, for something that needs one.

    Raises:
        ValueError: it has none.

    """
    if host.tokenizer is None:
        msg = f"{what} needs a tokenizer, and {host.name} has none; give token ids instead"
        raise ValueError(msg)
    return host.tokenizer


def positions_of(
    asked: Positions, length: int, spans: Mapping[str, tuple[int, int]] = MappingProxyType({})
) -> tuple[int, ...]:
    """Positions of a prompt as non-negative numbers; a span's name means those that predict its tokens.

    Raises:
        ValueError: none, the same twice, another word than "all" or a span's name, or a span that begins the text,
            whose first token nothing predicts.
        TypeError: something else than an index, a list of them or a word.
        IndexError: outside the prompt.

    """
    if isinstance(asked, str) and asked in spans:
        return tuple(predicting(asked, *spans[asked]))
    if isinstance(asked, str) and asked != "all":
        known = f", 'all' or a span of the text ({', '.join(map(repr, spans))})" if spans else " or 'all'"
        msg = f"position is an index, a list of them{known}, got {asked!r}; write e.g. -1"
        raise ValueError(msg)
    numbers = list(range(length)) if isinstance(asked, str) else [integer(p, "a position") for p in listed(asked)]
    if not numbers:
        msg = f"position is an index, a list of them or 'all', got {shown(asked)}; write at least one, e.g. [-1]"
        raise ValueError(msg)
    for p in numbers:
        if not -length <= p < length:
            msg = f"position {p} is outside the prompt, which has {length} tokens: write -{length} to {length - 1}"
            raise IndexError(msg)
    found = tuple(p % length for p in numbers)
    if len(set(found)) < len(found):
        msg = f"asked for the same position twice: {numbers} of {length} tokens; name each once"
        raise ValueError(msg)
    return found


def one_position(position: Integer, length: int) -> int:
    """The position to explain, counted from the front.

    Raises:
        ValueError: a list or "all".
        TypeError: no integer.
        IndexError: outside the prompt.

    """
    if isinstance(position, str | Sequence) or getattr(position, "ndim", 0):
        msg = f"one position is explained here, got {shown(position)}; write an index and call once for each"
        raise ValueError(msg)
    return positions_of(integer(position, "a position"), length)[0]


def token_id(host: Host, token: str | Integer) -> int:
    """The id of a token given as text or id.

    Text is encoded plainly; if that is not one id, encoded after a one-character anchor, as SentencePiece needs for
    tokens that begin with a blank.

    Raises:
        ValueError: text that is not one token (its pieces and ids are listed) or unknown to the tokenizer, or an id
            outside the vocabulary.
        TypeError: neither text nor an integer.

    """
    if not isinstance(token, str):
        token = integer(token, "a token is a string or an id; an id")
        if not 0 <= token < host.vocab:
            raise ValueError(_outside(host, token))
        return token
    tokenizer = tokenizer_of(host, f"the target {token!r}")
    _refuse_half_characters(token, "a target")
    found = _one_token(tokenizer, token)
    if found is not None:
        return found
    plain = tokenizer.encode(token, add_special_tokens=False)
    pieces = list(zip(tokenizer.convert_ids_to_tokens(plain), plain, strict=True))
    twin = twin_of(host, token)
    if twin is not None:
        hint = f"; did you mean {twin[0]!r} (id {twin[1]})?"
    else:
        hint = f"; write one of their ids, e.g. {plain[0]}" if len(pieces) > 1 else ""
    if getattr(tokenizer, "unk_token_id", None) in plain:
        msg = f"{token!r} is not in the vocabulary of {host.name}: its tokenizer gives {pieces}{hint}"
    else:
        msg = f"{token!r} is not one token of {host.name} but {len(pieces)}: {pieces}{hint}"
    raise ValueError(msg)


def _one_token(tokenizer: Any, text: str) -> int | None:
    """The id of a text that is one token, else None; never the one for what is unknown, unless it is asked for."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    plain = tokenizer.encode(text, add_special_tokens=False)
    if len(plain) == 1:
        return int(plain[0]) if plain[0] != unknown or text == tokenizer.unk_token else None
    for anchor in ("a", ".", "0"):
        alone = tokenizer.encode(anchor, add_special_tokens=False)
        after = tokenizer.encode(anchor + text, add_special_tokens=False)
        if unknown not in after and after[: len(alone)] == alone and len(after) == len(alone) + 1:
            return int(after[-1])
    return None


def twin_of(host: Host, text: str) -> tuple[str, int] | None:
    """The token that differs from a text by a leading blank, and its id; None where there is none."""
    other = text.removeprefix(" ") if text.startswith(" ") else f" {text}"
    found = _one_token(host.tokenizer, other) if host.tokenizer is not None and other else None
    return None if found is None else (other, found)


def token_texts(host: Host, ids: Sequence[int]) -> tuple[str, ...]:
    r"""The text that each token adds, so that joined they are the decoded prompt.

    Special tokens stand under their names. Tokens that hold a part of a character show its bytes as \\xNN; without a
    tokenizer a token is "#id".
    """
    tokenizer = host.tokenizer
    if tokenizer is None:
        return tuple(f"#{i}" for i in ids)
    ids = list(ids)

    def decode(some: list[int]) -> str:
        return tokenizer.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    texts = _added(decode, ids, _WINDOW)
    if not any(_BROKEN in text for text in texts):
        if "".join(texts) != decode(ids):  # a decoder that looks further back than the window
            texts = _added(decode, ids, len(ids))
        return tuple(texts)
    return tuple(
        _fragment(tokenizer, i) or text if _BROKEN in decode([i]) else text for i, text in zip(ids, texts, strict=True)
    )


def special_ids(host: Host) -> frozenset[int]:
    """Ids of special tokens: those with a role (BOS, ...) and those only marked so (a chat template's headers)."""
    added = getattr(host.tokenizer, "added_tokens_decoder", {})
    return frozenset(getattr(host.tokenizer, "all_special_ids", ())) | {
        i for i, token in added.items() if token.special
    }


_BROKEN = "\N{REPLACEMENT CHARACTER}"


def _added(decode: Callable[[list[int]], str], ids: list[int], window: int) -> list[str]:
    """What each token adds to the text of the few before it."""
    texts = []
    for i in range(len(ids)):
        start = max(0, i - window)
        before = decode(ids[start:i]) if i else ""
        texts.append(decode(ids[start : i + 1])[len(before) :])
    return texts


def _fragment(tokenizer: Any, token: int) -> str | None:
    r"""A token that is not whole characters: the whole ones as text, the other bytes as \xNN."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", piece):  # SentencePiece's byte fallback
        raw = bytes.fromhex(piece[3:5])
    elif all(character in _byte_level_alphabet() for character in piece):
        raw = bytes(_byte_level_alphabet()[character] for character in piece)
    else:
        return None
    return raw.decode("utf-8", errors="backslashreplace")


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte, reversed."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}
