"""A prompt and what comes after it as one text, whose ids are those that the model would have seen.

Texts are tokenised together: the ids of the whole have to begin with those of the prompt, or the prompt that is
explained would not be the one that was written. Where they do not, that is said, with the ways out; ids are never put
one after the other in silence, for that is a tokenisation that the model has hardly seen.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lens_scopes.host.model import Host
from lens_scopes.host.prompts import Prompt, chat_text, encode, plain_ids, spans_of, text_ids, token_texts, tokenizer_of
from lens_scopes.results.arguments import Integer, integer, listed
from lens_scopes.results.text import Text

#: What comes after a prompt: text, or exactly these ids.
Continued = str | Integer | Sequence[Integer] | Tensor | np.ndarray


def join(model: Any, prompt: Prompt, continuation: Continued) -> Text:
    """A prompt and an answer that is given, as one text with the spans "prompt" and "completion".

    Text is tokenised together with the prompt; a chat gets its generation prompt. Ids are appended as they are.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompt: see ``score``.
        continuation: what comes after it: text (its leading blank is its own), or token ids.

    Returns:
        The Text. Spans that the prompt came with are kept, but for "prompt" and "completion".

    Raises:
        ValueError: nothing to join; the ids of the whole do not begin with those of the prompt (a blank at the prompt's
            end, a word cut in two: the text names the token and the ways out); a continuation that begins with the
            BOS token or has a token that the tokenizer does not know; longer than the context; or see ``score``.
        TypeError: not a model or a prompt.

    Example:
        >>> import lens_scopes as ls
        >>> model, case = ls.demo.load(), ls.demo.cases("translation", n=1)[0]
        >>> text = ls.join(model, case.prompt, f" {case.answer} the")
        >>> ls.score(model, text, ls.Continuation()).meta["value"] < 0  # log p of both words
        True

    """
    return joined(Host(model), prompt, continuation)


def joined(host: Host, prompt: Prompt, continuation: Continued) -> Text:
    """``join`` for a host."""
    before = encode(host, prompt).tolist()
    return extended(host, prompt, before, ids_after(host, prompt, before, continuation))


def extended(host: Host, prompt: Prompt, before: Sequence[int], added: Sequence[int]) -> Text:
    """The ids of a prompt and those that were added, as a Text.

    Raises:
        ValueError: together longer than the context, or ids outside the vocabulary.

    """
    ids = [*before, *added]
    encode(host, ids)  # refuses what is too long or unknown
    start, stop = len(before), len(ids)
    spans = {name: span for name, span in spans_of(prompt).items() if name not in ("prompt", "completion")}
    return Text(ids, token_texts(host, ids), spans | {"prompt": (0, start), "completion": (start, stop)})


def ids_after(host: Host, prompt: Prompt, before: list[int], continuation: Continued) -> list[int]:
    """The ids that a continuation adds to a prompt with these ids.

    Raises:
        ValueError: see ``join``.

    """
    added = _given(continuation)
    if added is None:
        text, encoded = _written(host, prompt, before)
        added = _added(host, text, str(continuation), before, encoded)
        unknown = getattr(host.tokenizer, "unk_token_id", None)
        if unknown in added and host.tokenizer.unk_token not in str(continuation):
            msg = f"{continuation!r} has a token that {host.name}'s tokenizer does not know; write it otherwise"
            raise ValueError(msg)
    if not added:
        msg = "the continuation is empty: there is nothing to explain"
        raise ValueError(msg)
    begin, end = (getattr(host.tokenizer, f"{name}_token_id", None) for name in ("bos", "eos"))
    if added[0] == begin != end:
        msg = (
            f"the continuation begins with the BOS token (id {begin}), which belongs to the prompt alone; leave it out"
        )
        raise ValueError(msg)
    return added


def _given(continuation: Continued) -> list[int] | None:
    """Ids as they were given; None for text."""
    if isinstance(continuation, str):
        return None
    return [integer(one, "a continuation is text or token ids; an id") for one in listed(continuation)]


def _written(host: Host, prompt: Prompt, before: list[int]) -> tuple[str, Callable[[str], list[int]]]:
    """The prompt as text, and the rule by which its text becomes its ids."""
    tokenizer = tokenizer_of(host, "a continuation given as text")

    def as_prompt(text: str) -> list[int]:
        return text_ids(host, text).tolist()

    def plainly(text: str) -> list[int]:
        return plain_ids(host, text)

    if isinstance(prompt, str):
        return prompt, as_prompt
    if isinstance(prompt, list | tuple) and isinstance(prompt[0], dict):
        return chat_text(host, prompt), plainly  # type: ignore[arg-type]
    text = tokenizer.decode(before, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    for rule in (as_prompt, plainly):
        if rule(text) == before:
            return text, rule
    msg = (
        f"the prompt's ids are not those that {host.name}'s tokenizer gives their text {text[-40:]!r}, so that no text "
        "can be joined to them; give the continuation as ids"
    )
    raise ValueError(msg)


def _added(host: Host, prompt: str, text: str, before: list[int], encoded: Callable[[str], list[int]]) -> list[int]:
    """What the text adds to the prompt's ids when both are tokenised together."""
    whole = encoded(prompt + text) if text else before
    if whole[: len(before)] == before:
        return whole[len(before) :]
    same = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(whole))
    was = token_texts(host, before)[same:]
    across = token_texts(host, whole[: same + 1])[same:]
    bare = prompt.rstrip()
    moved = prompt[len(bare) :] + text
    base = encoded(bare) if bare and bare != prompt else None
    repairs = base is not None and encoded(bare + moved)[: len(base)] == base
    way = f"move the blank to the continuation: {bare[-20:]!r} and {moved!r}; or " if repairs else ""
    msg = (
        f"together {prompt[-20:]!r} and {text[:20]!r} are other tokens than apart: the prompt ends in {was!r}, and the "
        f"whole has {across!r} across the seam; {way}give the continuation as ids"
    )
    raise ValueError(msg)
