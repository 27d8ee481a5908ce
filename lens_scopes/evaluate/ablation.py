"""Taking tokens out of a prompt, in four ways, and reading what the model then says.

| replace | a token taken out is |
|---|---|
| "zero" | its embedding times 0 (the paper's) |
| "mean" | the mean embedding over all prompts of the call |
| "delete" | not there; the tokens after it move up |
| "resample" | another token drawn from a corpus (by default the prompts of the call), the same for all methods |

In the first, second and fourth, position embeddings and the attention to the position stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_scopes.calculus.memory import prompts_at_once
from lens_scopes.evaluate.protocol import Question, embed, run
from lens_scopes.host import token_id
from lens_scopes.results.arguments import Integer, integer, listed

Replace = Literal["zero", "mean", "delete", "resample"]


@dataclass(frozen=True, eq=False)
class Ablation:
    """One way of taking tokens out, prepared for all prompts of a call."""

    replace: Replace
    mean: Float[Tensor, " d"] | None
    substitutes: tuple[Int[Tensor, " pos"], ...]

    @classmethod
    def of(
        cls, questions: Sequence[Question], replace: Replace, corpus: Sequence[Integer] | None, seed: int
    ) -> "Ablation":
        """Compute what the replacement needs.

        Args:
            questions: all prompts.
            replace: see above.
            corpus: token ids that "resample" draws from; None: those of all prompts.
            seed: of the draws.

        Raises:
            ValueError: an unknown replacement; a corpus without ids, or with ids outside the vocabulary.
            TypeError: a corpus of something else than ids.

        """
        if replace not in get_args(Replace):
            msg = f"replace is one of {', '.join(get_args(Replace))}, got {replace!r}; write replace='zero'"
            raise ValueError(msg)
        mean, substitutes = None, ()
        if replace == "mean":
            mean = torch.cat([embed(q.host, q.tokens) for q in questions]).mean(0)
        if replace == "resample":
            pool = torch.cat([q.tokens.cpu() for q in questions]) if corpus is None else _ids(questions[0], corpus)
            generator = torch.Generator().manual_seed(seed)
            draws = (torch.randint(len(pool), (len(q.tokens),), generator=generator, device="cpu") for q in questions)
            substitutes = tuple(pool[draw].to(q.tokens) for draw, q in zip(draws, questions, strict=True))
        return cls(replace, mean, substitutes)

    def log_probs(self, question: Question, number: int, out: Bool[Tensor, "row pos"]) -> Float[Tensor, "row vocab"]:
        """log p at the position with the marked tokens taken out, row by row; rows that are the same are run once.

        Args:
            question: the prompt.
            number: which one of the prompts it is.
            out: the tokens to take out, in every row.

        """
        different, which = out.unique(dim=0, return_inverse=True)
        if self.replace == "delete":
            found = torch.cat([self._without(question, row) for row in different])
        else:
            size = prompts_at_once(question.host, len(question.tokens))
            found = torch.cat([self._replaced(question, number, rows) for rows in different.split(size)])
        return found[which.to(found.device)]

    def _replaced(self, q: Question, number: int, out: Bool[Tensor, "row pos"]) -> Float[Tensor, "row vocab"]:
        out = out.to(q.tokens.device)
        tokens = q.tokens.expand(len(out), -1)
        if self.replace == "resample":
            return run(q.host, torch.where(out, self.substitutes[number], tokens), q.position)
        embedding = embed(q.host, q.tokens)
        other = torch.zeros_like(embedding[0]) if self.mean is None else self.mean.to(embedding)
        return run(q.host, tokens, q.position, torch.where(out[..., None], other, embedding))

    def _without(self, q: Question, out: Bool[Tensor, " pos"]) -> Float[Tensor, "1 vocab"]:
        kept = ~out.to(q.tokens.device)
        kept[q.position] = kept[q.position] | ~kept[: q.position + 1].any()  # one token must remain
        return run(q.host, q.tokens[kept][None], int(kept[: q.position + 1].sum()) - 1)


def _ids(question: Question, corpus: Sequence[Integer]) -> Int[Tensor, " token"]:
    ids = [token_id(question.host, integer(one, "corpus is a list of token ids; an id")) for one in listed(corpus)]
    if not ids:
        msg = "corpus is empty: there is no token to draw; give ids, or None for those of the prompts"
        raise ValueError(msg)
    return torch.tensor(ids, device="cpu")
