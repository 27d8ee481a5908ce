"""What the page asked, as Python that asks it again: the same calls in the same batches, and so the same numbers."""

from collections.abc import Callable, Sequence
from typing import Any

import lens_scopes as ls
from lens_scopes.host import Host
from lens_scopes.serve.asks import Ask, Tokens
from lens_scopes.serve.calls import Call, plain_prompt

_MASK = '''
def mask(shape, places):
    """True at some places of a table."""
    found = torch.zeros(shape, dtype=torch.bool)
    for place in places:
        found[place] = True
    return found

'''
_NEXT = '''
def next_tokens(prompt, position):
    """The probabilities of all tokens after a position."""
    found = []

    def look(state):
        found.append(state.logits.double().softmax(-1))
        return state.y

    ls.score(model, prompt, look, position=position, sites="embed")
    return found[0]

'''


def recipe(asks: Sequence[Ask], host: Host, result: Callable[[Call], Any]) -> str:
    """A script; ``answers`` holds what its calls find, in order.

    Args:
        asks: what the page asked.
        host: the model.
        result: what calls have found, since some say which the next ones are.

    """
    lines, cached = [], ""
    for ask in asks:
        if isinstance(ask, Tokens):
            lines.append(f"next_tokens({plain_prompt(ask.prompt)!r}, {ask.position})")
        for call in ask.calls(result):
            measuring = call.verb == "patching.measure"
            if measuring and cached != repr(call.prompts):
                lines.append("cache = {}")
                cached = repr(call.prompts)
            lines.append(call.source("cache=cache" if measuring else ""))
    body = "\n".join(line if line.startswith("cache") else f"answers.append({line})" for line in lines)
    helpers = (_MASK if "mask(" in body else "") + (_NEXT if "next_tokens(" in body else "")
    where = _where(host)
    loading = "ls.demo.load()" if where == str(ls.demo.MODEL_DIR) else f"ls.load({where!r})"
    versions = f"lens_scopes {ls.__version__}, {host.name} as {type(host.model).__name__}, {host.dtype}"
    return (
        f'"""What the page of lens_scopes asked ({versions})."""\n\n'
        f"import torch\n\nimport lens_scopes as ls\n\nmodel = {loading}  # or the model that the page was served with\n"
        f"{helpers}\nanswers = []\n{body}\n"
    )


def _where(host: Host) -> str:
    """The directory that the model came from, where its tokenizer still knows; else its name."""
    directory = str(getattr(host.tokenizer, "name_or_path", None) or "")
    known = directory == str(ls.demo.MODEL_DIR) or directory.rstrip("/").endswith(f"/{host.name}")
    return directory if known else str(host.cfg.model_name)
