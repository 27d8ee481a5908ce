"""Which tokens of a rendered chat belong to which message: by rendering the first i messages, or not at all."""

from typing import TYPE_CHECKING, Any, cast

from lens_scopes.host.model import Host
from lens_scopes.host.prompts import Prompt, encode

if TYPE_CHECKING:
    from lens_scopes.results.provenance import Role

_AFTER = "generation prompt"


def roles_of(host: Host, prompt: Prompt) -> "list[Role] | None":
    """The messages of a chat with their tokens; a BOS before the first belongs to none.

    Message i ends where the rendering of the first i messages does. That would be a guess unless this rendering begins
    the whole one, and what it adds holds the message's own text: templates move system messages into the next one, cut
    earlier answers, or refuse a part of a chat. What the template adds for an answer is the last entry.

    Returns:
        None for a prompt that is no chat; an empty list where the template does not say where messages begin.

    """
    if not isinstance(prompt, list | tuple) or not prompt or not all(isinstance(one, dict) for one in prompt):
        return None
    tokenizer, whole = host.tokenizer, encode(host, prompt).tolist()
    start = int(bool(whole) and whole[0] == tokenizer.bos_token_id)
    roles: list[Role] = []
    for i, message in enumerate(cast("list[dict[str, str]]", prompt), 1):
        part = _rendered(tokenizer, prompt[:i])
        stop = len(part)
        if stop <= start or whole[:stop] != part or _text(message) not in tokenizer.decode(part[start:]):
            return []
        roles.append({"role": str(message.get("role")), "start": start, "stop": stop})
        start = stop
    if start < len(whole):
        roles.append({"role": _AFTER, "start": start, "stop": len(whole)})
    return roles


def _text(message: dict[str, Any]) -> str:
    return str(message.get("content", "")).strip()


def _rendered(tokenizer: Any, messages: Any) -> list[int]:
    """The ids of some messages alone; none where the template does not take them."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # a template raises what it likes
        return []
    return tokenizer(text, add_special_tokens=False)["input_ids"]
