"""What a call asks: which ids run, at which positions a scope explains them, and the scope bound to that text.

The one place where prompts, positions and what a scope adds to a prompt meet: every verb asks here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor

from lens_scopes.calculus.trace import Trace
from lens_scopes.host import Host, encode, token_id
from lens_scopes.host.joining import extended, ids_after
from lens_scopes.host.prompts import Positions, Prompt, brings_its_bos, positions_of, spans_of
from lens_scopes.results.arguments import is_integer
from lens_scopes.results.provenance import Meta
from lens_scopes.scopes.protocol import Scope, resolve, said_by, spans_positions, text_of


@dataclass(frozen=True, eq=False)
class Asked:
    """A text, the positions explained and what explains them."""

    ids: Int[Tensor, " pos"]
    positions: tuple[int, ...]
    scope: Scope
    several: bool
    """Whether each of a list of positions is explained, which gives results an axis for them."""
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    own_bos: bool = False
    """Whether the prompt came with its BOS as text."""

    @classmethod
    def again(cls, host: Host, meta: Meta, scope: Scope, positions: Sequence[int] | None = None) -> "Asked":
        """What a result was the answer to; or the same about fewer positions.

        Raises:
            ValueError: ids outside the vocabulary: a result of another model.

        """
        at = tuple(meta["positions"] if positions is None else positions)
        ids = [token_id(host, token) for token in meta["token_ids"]]
        return cls(torch.tensor(ids, device=host.device), at, scope, several=False)

    @property
    def tokens(self) -> Int[Tensor, "1 pos"]:
        """The ids as a batch of one."""
        return self.ids[None]

    def alone(self, verb: str) -> "Asked":
        """The same, if there is one output: a single position, or a scope that spans them.

        Raises:
            ValueError: several positions, each on its own.

        """
        if not spans_positions(self.scope) and len(self.positions) > 1:
            msg = (
                f"{verb} explains one position, got {list(self.positions)}; write an index and call once for "
                "each, or explain their tokens as one with ls.Continuation()"
            )
            raise ValueError(msg)
        return replace(self, several=False)

    def resolved(self, run: Trace) -> "Asked":
        """The same with the scope's tokens fixed to what they are on a run of one prompt."""
        if spans_positions(self.scope):
            return self  # its tokens are the text's own
        return replace(self, scope=resolve(self.scope, run.state(0, 0)))


def ask(host: Host, prompt: Prompt, scope: Scope, position: Positions = -1) -> Asked:
    """The question that a prompt, a scope and a position make.

    Raises:
        ValueError: no such position or span, no completion, or a continuation that cannot be joined.
        IndexError: a position outside the prompt.
        TypeError: not a prompt.

    """
    ids, spans, own_bos = encode(host, prompt), spans_of(prompt), brings_its_bos(host, prompt)
    continues = said_by(scope, "continues")
    if continues is None:
        several = not is_integer(position) and not spans_positions(scope)
        return Asked(ids, positions_of(position, len(ids), spans), scope, several, spans, own_bos)
    before = ids.tolist()
    bound, added = continues(lambda after: tuple(ids_after(host, prompt, before, after)))
    if not added:
        if is_integer(position) and position == -1:
            position = _completion(scope, spans)
        at = positions_of(position, len(ids), spans)
        return Asked(ids, at, bound, several=False, spans=spans, own_bos=own_bos)
    if positions_of(position, len(ids), spans) != (len(ids) - 1,):
        msg = (
            f"{text_of(scope)} adds its tokens to the end of the prompt and explains those; leave position out, or "
            f"explain tokens of the text itself with ls.Continuation() at position={position!r}"
        )
        raise ValueError(msg)
    text = extended(host, prompt, before, added)
    positions = tuple(range(len(ids) - 1, len(text) - 1))
    return Asked(ids.new_tensor(text.ids), positions, bound, several=False, spans=text.spans, own_bos=own_bos)


def _completion(scope: Scope, spans: Mapping[str, tuple[int, int]]) -> str:
    if "completion" not in spans:
        have = f"it has the spans {', '.join(map(repr, spans))}" if spans else "it has no named spans"
        msg = (
            f"{text_of(scope)} explains the 'completion' of a Text, and this prompt has none ({have}); write "
            "ls.generate(model, prompt), ls.join(model, prompt, answer), ls.Continuation(answer), or position=..."
        )
        raise ValueError(msg)
    return "completion"
