"""Ways to say which tokens matter: scopes, and the baselines that they have to beat.

A method is a name of ``METHODS``, a scope, or a function of a ``Question`` that returns one number per token. All
gradients are with respect to the token embeddings e_t, of one scalar: z (the target's logit) or log p (its log
probability).

| name | score of token t |
|---|---|
| semantic, temperature, fisher_low_rank_k | the scopes (arXiv 2601.16407) |
| fisher, fisher_exact | the Fisher Scope: 16 passes, unbiased; and all of it, which costs a pass per dimension |
| log_prob_scope | ‖∇_t log p‖: the Semantic Scope of the centred logit |
| gradient_x_input | ⟨∇_t log p, e_t⟩, signed |
| gradient_x_input_norm | ‖∇_t log p ⊙ e_t‖, the paper's baseline |
| integrated_gradients | ⟨mean ∇_t log p, e_t − ē⟩, signed, on the line from the mean embedding ē: 20 midpoints |
| integrated_gradients_norm | ‖mean over α of α∇_t log p(αe) ⊙ e_t‖, α = 0.2, ..., 1: the paper's IG |
| path_semantic | ‖mean over α of ∇_t z(αe) ⊙ 0.9 e_t‖, α = 0.1, ..., 1: the path integral of the Semantic Scope |
| attention_rollout | product over layers of (mean head pattern + 1)/2 (Abnar and Zuidema 2020) |
| last_first | t: the nearest token first, the reference for recency |
| first_first | −t: the first token, <bos> where there is one, first: the reference for attention sinks |
| random | uniform, seeded |
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from inspect import signature
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.calculus.line import midpoints
from lens_scopes.calculus.memory import prompts_at_once
from lens_scopes.evaluate.protocol import Question, embed, put
from lens_scopes.host import run_to_last_residual
from lens_scopes.host.model import in_place
from lens_scopes.host.readout import final_norm, raw_logits, read_out
from lens_scopes.results.arguments import vector
from lens_scopes.scopes import Fisher, Metric, Semantic, Temperature
from lens_scopes.scopes.protocol import Scope, aimed, writable
from lens_scopes.score import score
from lens_scopes.sites import EMBED

Values = Float[Tensor, " pos"]
Method = Callable[[Question], Values]


def attribute(question: Question, method: "str | Scope | Method") -> Values:
    """One number per token, by a named method, a scope, or a function of the question.

    A scope whose ``target`` is open aims at the question's target. A function is taken for a method if its first
    parameter is called ``question``, else for a scope.

    Raises:
        ValueError: an unknown name; or see ``score``.
        TypeError: neither a name, a scope nor a function.

    """
    if isinstance(method, str):
        return _named(method)(question).detach().double().cpu()
    if not callable(method):
        msg = f"a method is a name of METHODS, a scope or a function of a Question, got {method!r}"
        raise TypeError(msg)
    if _takes_question(method):
        return vector(cast(Method, method)(question), "what a method returns", "pos").double().cpu()
    scope = cast(Scope, method)
    return _scores(question, aimed(scope, question.target))


def _takes_question(method: Callable) -> bool:
    """Functions, bound methods and partials alike; what has no signature to read is none."""
    try:
        parameters = signature(method).parameters
    except (TypeError, ValueError):
        return False
    return next(iter(parameters), None) == "question"


def _named(name: str) -> Method:
    low_rank = re.fullmatch(r"fisher_low_rank_(\d+)", name)
    if low_rank:
        return lambda question: _scores(question, Fisher(rank=int(low_rank.group(1))))
    if name in METHODS:
        return METHODS[name]
    scopes = writable()
    if name in scopes:
        return lambda question: _scores(question, aimed(scopes[name](), question.target))
    msg = (
        f"there is no method {name!r}; write one of {', '.join({**METHODS, **scopes})}, fisher_low_rank_<k>, or give "
        "functions of your own by name"
    )
    raise ValueError(msg)


def _scores(question: Question, scope: Scope, along: str | None = None) -> Values:
    found = score(question.model, question.ids, scope, position=question.position, sites="embed", along=along)  # type: ignore[arg-type]
    return found.values[0, : len(question.ids)].double()  # a continuation adds tokens of its own


def _log_prob(question: Question) -> Metric:
    # In float64: the gradient is 1 − p at the target, of which float32 leaves little where the model is sure.
    return Metric(lambda logits: logits[0, -1].double().log_softmax(-1)[question.target], name="log p")


def _semantic(question: Question) -> Values:
    return _scores(question, Semantic(question.target))


def _temperature(question: Question) -> Values:
    return _scores(question, Temperature())


def _fisher(question: Question) -> Values:
    return _scores(question, Fisher(seed=question.seed))


def _fisher_exact(question: Question) -> Values:
    return _scores(question, Fisher(None))


def _log_prob_scope(question: Question) -> Values:
    return _scores(question, _log_prob(question))


def _gradient_x_input(question: Question) -> Values:
    return _scores(question, _log_prob(question), along="activation")


def _gradient_x_input_norm(question: Question) -> Values:
    embedding = embed(question.host, question.tokens)
    return (_gradients(question, embedding[None], "log p")[0] * embedding).norm(dim=-1)


def _integrated_gradients(question: Question, steps: int = 20) -> Values:
    embedding = embed(question.host, question.tokens)
    start = embedding.mean(0)
    alphas = midpoints(steps).to(embedding)[:, None, None]
    mean = _gradients(question, start + alphas * (embedding - start), "log p").mean(0)
    return (mean * (embedding - start)).sum(-1)


def _integrated_gradients_norm(question: Question) -> Values:
    embedding = embed(question.host, question.tokens)
    alphas = (torch.arange(1, 6, dtype=torch.float64, device="cpu") / 5).to(embedding)[:, None, None]
    # The authors differentiate with respect to the embedding before it is scaled: each gradient carries its α.
    mean = (alphas * _gradients(question, alphas * embedding, "log p")).mean(0)
    return (mean * embedding).norm(dim=-1)


def _path_semantic(question: Question) -> Values:
    embedding = embed(question.host, question.tokens)
    alphas = (torch.arange(1, 11, dtype=torch.float64, device="cpu") / 10).to(embedding)[:, None, None]
    return (0.9 * embedding * _gradients(question, alphas * embedding, "z").mean(0)).norm(dim=-1)


def _attention_rollout(question: Question) -> Values:
    host = question.host
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(host.n_layers)]
    with torch.no_grad():
        patterns = run_to_last_residual(host, question.tokens[None], names, grad=False).sites
    identity = torch.eye(len(question.tokens), dtype=torch.float64, device="cpu")
    rolled = identity
    for name in names:
        mean = patterns[name][0].detach().double().cpu().mean(0)
        rolled = (mean + identity) / 2 @ rolled
    return rolled[question.position]


def _last_first(question: Question) -> Values:
    return torch.arange(len(question.tokens), dtype=torch.float64, device="cpu")


def _first_first(question: Question) -> Values:
    return -_last_first(question)


def _random(question: Question) -> Values:
    key = ",".join(map(str, (question.seed, *question.ids)))
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(question.tokens), generator=generator, dtype=torch.float64, device="cpu")


#: What no attribution is needed for: what every table holds the others up against.
REFERENCES = ("last_first", "first_first")
#: The named methods. The order is that of the tables.
METHODS: Mapping[str, Method] = {
    "semantic": _semantic,
    "temperature": _temperature,
    "fisher": _fisher,
    "fisher_exact": _fisher_exact,
    "log_prob_scope": _log_prob_scope,
    "gradient_x_input": _gradient_x_input,
    "gradient_x_input_norm": _gradient_x_input_norm,
    "integrated_gradients": _integrated_gradients,
    "integrated_gradients_norm": _integrated_gradients_norm,
    "path_semantic": _path_semantic,
    "attention_rollout": _attention_rollout,
    "last_first": _last_first,
    "first_first": _first_first,
    "random": _random,
}


def _gradients(question: Question, embeddings: Float[Tensor, "point pos d"], of: str) -> Float[Tensor, "point pos d"]:
    """∂(log p or z of the target)/∂ embedding, at each of the given embeddings of the prompt."""
    host, size = question.host, prompts_at_once(question.host, len(question.tokens))
    readout = read_out(host, question.tokens[None])
    found = []
    for points in embeddings.split(size):
        tokens = question.tokens.expand(len(points), -1)
        captured = run_to_last_residual(host, tokens, ["hook_embed"], hooks=[("hook_embed", in_place(put(points)))])
        with torch.inference_mode(mode=False), torch.enable_grad(), host.frozen():
            z = readout.transform(raw_logits(host, final_norm(host, captured.last[:, question.position])))
            value = z if of == "z" else z.double().log_softmax(-1)
            (gradient,) = torch.autograd.grad(value[:, question.target].sum(), captured.sites["hook_embed"])
        refuse_nonfinite(host, tokens, {EMBED: gradient})
        found.append(gradient)
    return torch.cat(found)
