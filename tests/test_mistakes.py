"""Mistakes that a user makes in Python: each is answered by what was got, what is allowed, and what to write instead."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes import evaluate, patching

pytestmark = [
    pytest.mark.host,
    pytest.mark.wrong_types,
    pytest.mark.filterwarnings("ignore:.*(have different signs|points of the path miss)"),
]

BACKEND = tiny.BACKENDS[0]
IDS, OTHER = tiny.tokens(), tiny.tokens(seed=1)
SEVEN = ls.Semantic(7)
ONES = [1.0] * tiny.D_MODEL
INNER = "blocks.0.hook_resid_post"


def model():
    return tiny.host("gpt2", BACKEND, torch.float32)


def score(prompt=IDS, scope=SEVEN, **options):
    return ls.score(model(), prompt, scope, **options)


@functools.cache
def scores():
    return score()


@functools.cache
def flow():
    return ls.flow(model(), IDS, SEVEN)


@functools.cache
def both():
    return [verb(model(), IDS, OTHER, SEVEN, sites="embed") for verb in (patching.predict, patching.measure)]


def compared():
    return patching.compare(*both())


@functools.cache
def curve():
    return ablation()


@functools.cache
def table():
    return evaluate.compare_methods(model(), [IDS], ["temperature"], baseline="last_first")


@functools.cache
def folded():
    return tiny.processed_host("gpt2", BACKEND, torch.float32)


@functools.cache
def place() -> Path:
    return Path(tempfile.mkdtemp(prefix="mistakes-", dir=tiny._ROOT.name))


def ablation(rankings=None, **options):
    return evaluate.ablation_curve(model(), [IDS], [scores().values[0]] if rankings is None else rankings, **options)


#: By name: the mistake, and what its answer says: what was got, what is allowed, what to write.
MISTAKES = {
    # The model
    "a name for a model": (
        lambda: ls.score("gpt2", IDS, SEVEN),
        ("got str", "a TransformerLens model", "lens_scopes.load(name"),
    ),
    "a Hugging Face model": (
        lambda: ls.score(tiny.hugging_face("gpt2"), IDS, SEVEN),
        ("got GPT2LMHeadModel", "HookedTransformer or TransformerBridge", "write lens_scopes.load"),
    ),
    "no such model": (lambda: ls.load("/no/such"), ("/no/such", "a name on the hub, a directory or a .gguf file", "write one")),
    "no such backend": (
        lambda: ls.load("gpt2", backend="tf"),
        ("got 'tf'", "'auto', 'bridge' or 'hooked'", "write backend='auto'"),
    ),
    # The prompt
    "several prompts": (
        lambda: score(["a", "b"]),
        ("got ['a', 'b']", "a string, a list or tensor of ids", "write score_batch"),
    ),
    "no prompt": (lambda: score(""), ("got ''", "at least one token", "write")),
    "a prompt that is too long": (lambda: score([5] * 40), ("40 tokens", "a context of 32", "write a shorter one")),
    "an id of another model": (
        lambda: score([3, 10**6]),
        ("1000000", "0 to 319", "write an id in it"),
    ),
    "a batch of ids": (
        lambda: score(torch.tensor([[1, 2], [3, 4]])),
        ("got Tensor (2, 2)", "ids [pos] or [1, pos]", "see score_batch"),
    ),
    "bools for ids": (lambda: score([True, False]), ("got [True, False]", "a list or tensor of ids", "write score_batch")),
    "a chat without a template": (
        lambda: score([{"role": "user", "content": "a"}]),
        ("no chat template", "a chat", "write the prompt as one string"),
    ),
    "half a character": (lambda: score("a\ud800"), ("'\\ud800', at 1", "whole characters", "write the whole")),
    "half a character for a target": (
        lambda: score(scope=ls.Semantic("\ud800")),
        ("'\\ud800', at 0", "whole characters", "write the whole"),
    ),
    "one prompt for a batch": (
        lambda: ls.score_batch(model(), "a", SEVEN),
        ("got 'a'", "a list of prompts", "write score("),
    ),
    "one scope for two prompts": (
        lambda: ls.score_batch(model(), [IDS, IDS], [SEVEN]),
        ("2 prompts but 1 scopes", "one for all or one per prompt", "give"),
    ),
    "two units in a batch": (
        lambda: ls.score_batch(model(), [IDS, IDS], [SEVEN, ls.Fisher(4)]),
        ("norm and in squared units", "do not fit one call", "score them separately"),
    ),
    # The scope
    "a scope's name": (lambda: score(scope="fisher"), ("got 'fisher'", "a function of the final state", "ls.Fisher()")),
    "a scope's class": (lambda: score(scope=ls.Fisher), ("the class Fisher", "a scope is made of its class", "ls.Fisher()")),
    "a word for passes": (lambda: ls.Fisher("exact"), ("got 'exact'", "None for the exact score", "write")),
    "one pass": (lambda: ls.Fisher(1), ("got 1", "one has no standard error", "write 2 or more")),
    "a bool for passes": (lambda: ls.Fisher(True), ("got True (bool)", "is an integer", "write e.g. 3")),
    "no rank": (lambda: ls.Fisher(rank=0), ("got 0", "it counts eigenvectors", "write 1 or more")),
    "a metric's name": (
        lambda: ls.Metric("entropy"),
        ("got 'entropy'", "a function of the logits [1, 1, vocab]", "write e.g. ls.Metric(lambda logits"),
    ),
    "a metric of many numbers": (
        lambda: score(scope=ls.Metric(lambda logits: logits[0, -1])),
        ("got shape (320,)", "one element", "e.g. lambda logits: logits[0, -1, 42]"),
    ),
    "a metric of nothing": (
        lambda: score(scope=ls.Metric(lambda logits: torch.ones(()))),
        ("got a constant", "depends on the logits", "write it in torch"),
    ),
    "a direction's name": (
        lambda: ls.Direction("probe"),
        ("got 'probe'", "a tensor, an array or a list of numbers", "write [d_model]"),
    ),
    "a matrix for a direction": (
        lambda: ls.Direction(np.ones((2, 3))),
        ("got shape (2, 3)", "axes [d_model]", "write a tensor of 1"),
    ),
    "a short direction": (
        lambda: score(scope=ls.Direction([1.0, 2.0])),
        ("length 2", "d_model = 16", "write [16]"),
    ),
    "a direction in every layer": (
        lambda: ls.Direction(ONES, site="resid_post"),
        ("'resid_post' is one in every layer", "one place of the residual stream", "write e.g. 'blocks.3."),
    ),
    "a direction at the heads": (
        lambda: ls.Direction(ONES, site="blocks.0.attn.hook_z"),
        ("is split by head", "one place of the residual stream", "write e.g. 'blocks.3."),
    ),
    "sources after a direction": (
        lambda: score(scope=ls.Direction(ONES, site=INNER), sites="resid_post"),
        (f"got {INNER}", "do not reach it", "write sites= of earlier ones"),
    ),
    "a fraction for a target": (lambda: ls.Semantic(1.5), ("got 1.5 (float)", "a string or an id", "write e.g. 3")),
    "a bool for a target": (lambda: ls.Semantic(True), ("got True (bool)", "a string or an id", "write e.g. 3")),
    "several tokens for a target": (
        lambda: score(scope=ls.Semantic("zebra")),
        ("'zebra'", "is not one token", "write one of their ids"),
    ),
    "a target outside the vocabulary": (
        lambda: score(scope=ls.Semantic(10**6)),
        ("1000000", "0 to 319", "write an id in it"),
    ),
    "two targets for one position": (
        lambda: score(scope=ls.Semantic([1, 2])),
        ("2 values of target", "for 1 positions", "give one, or one per position"),
    ),
    "Temperature on folded weights": (
        lambda: ls.score(folded(), IDS, ls.Temperature()),
        ("folded into the unembedding", "the sensitivity of ‖y‖", "Three ways out"),
    ),
    "a weight for a norm that has its own": (
        lambda: score(scope=ls.Temperature(ONES)),
        ("got norm_weight", "still carries its own", "write ls.Temperature()"),
    ),
    "no cotangents": (
        lambda: ls.Cotangents(torch.zeros(0, 16)),
        ("got none", "at least one vector", "write vectors [k, d_model]"),
    ),
    "a negative weight": (
        lambda: ls.Cotangents(torch.ones(1, 16), weights=[-1.0]),
        ("got [-1.0]", "finite and not negative", "write the sign into the vector"),
    ),
    "too many weights": (
        lambda: ls.Cotangents(torch.ones(1, 16), weights=[1.0, 2.0]),
        ("2 weights", "1 vectors", "write one for each"),
    ),
    # Positions, sites, directions
    "a position outside": (lambda: score(position=99), ("position 99", "has 7 tokens", "write -7 to 6")),
    "a word for a position": (lambda: score(position="last"), ("got 'last'", "a list of them or 'all'", "write e.g. -1")),
    "a fraction for a position": (lambda: score(position=[1.9]), ("got 1.9 (float)", "is an integer", "write e.g. 3")),
    "a bool for a position": (lambda: score(position=True), ("got True (bool)", "is an integer", "write e.g. 3")),
    "no positions": (lambda: score(position=[]), ("got []", "a list of them or 'all'", "write at least one")),
    "a position twice": (lambda: score(position=[2, -5]), ("[2, -5] of 7 tokens", "twice", "name each once")),
    "no such site": (lambda: score(sites="nowhere"), ("no site 'nowhere'", "it has hook_embed", "blocks.0.hook_resid_post")),
    "sites with and without heads": (
        lambda: score(sites=["z", "embed"]),
        ("'hook_embed'", "do not fit one result", "make two calls"),
    ),
    "no sites": (lambda: score(sites=[]), ("sites is empty", "every hook_resid_post", "leave it out")),
    "a layer for sites": (lambda: score(sites=3), ("got [3]", "hook names or shorthands", "write e.g. sites=")),
    "a word for a direction": (
        lambda: score(along="sideways"),
        ("got 'sideways'", "None, 'activation' or numbers", "write along='activation'"),
    ),
    "a direction of another shape": (
        lambda: score(along=np.ones((2, 3, 4))),
        ("got shape (2, 3, 4)", "[site, pos, d_model]", "write shape (3, 7, 16)"),
    ),
    "nothing that can be frozen": (
        lambda: score(freeze="everything"),
        ("got 'everything'", "norm, attention, mlp", "write e.g. freeze="),
    ),
    "a number to freeze": (lambda: score(freeze=3), ("got '3'", "norm, attention, mlp", "write e.g. freeze=")),
    "a budget in words": (
        lambda: ls.memory_budget("64MB").__enter__(),
        ("got '64MB'", "in bytes", "write e.g. 3"),
    ),
    "no budget": (lambda: ls.memory_budget(0).__enter__(), ("got 0", "in bytes", "write 1 or more")),
    # Flow
    "a source that is no token": (
        lambda: ls.flow(model(), "The cat sat", SEVEN, sources=["dog"]),
        ("got 'dog'", "'each' or a list of positions or tokens", "write one of 0 "),
    ),
    "a source that stands twice": (
        lambda: ls.flow(model(), "The cat cat sat", SEVEN, sources=[" cat"]),
        ("got ' cat'", "'each' or a list of positions or tokens", "write one of these positions"),
    ),
    "a fraction for a source": (
        lambda: ls.flow(model(), IDS, SEVEN, sources=[1.5]),
        ("got 1.5 (float)", "'each' or a list of positions or tokens", "write e.g. 3"),
    ),
    "a source outside": (
        lambda: ls.flow(model(), IDS, SEVEN, sources=99),
        ("position 99", "has 7 tokens", "write -7 to 6"),
    ),
    "a flow of two positions": (
        lambda: ls.flow(model(), IDS, SEVEN, position=[1, 2]),
        ("got [1, 2]", "one position", "write an index"),
    ),
    "edges of no head": (lambda: ls.flow(model(), IDS, SEVEN, edges=[]), ("empty list", "write edges=False")),
    "edges of one head without a list": (
        lambda: ls.flow(model(), IDS, SEVEN, edges=(1, 0)),
        ("a list of heads (layer, head), got 1 (int)", "edges=[(1, 0), (2, 3)]"),
    ),
    "edges of a layer": (
        lambda: ls.flow(model(), IDS, SEVEN, edges="1.0"),
        ("a list of heads (layer, head), got '1.0' (str)", "write e.g."),
    ),
    "edges of a head that the model lacks": (
        lambda: ls.flow(model(), IDS, SEVEN, edges=[(0, 1), (0, -1)]),
        ("edges names head 0.-1", "has layers 0 to", "heads 0 to"),
    ),
    "edges of a head twice": (
        lambda: ls.flow(model(), IDS, SEVEN, edges=[(0, 1), (0, 1)]),
        ("head 0.1 more than once", "write each head once"),
    ),
    "a change between prompts of two lengths": (
        lambda: ls.flow(model(), IDS, SEVEN, against=IDS[:-1]),
        (f"clean has {len(IDS)} tokens and corrupted {len(IDS) - 1}", "write prompts of one length"),
    ),
    "a change that is none": (lambda: ls.flow(model(), IDS, SEVEN, against=IDS), ("the same", "another against=")),
    "a change of a frozen model": (
        lambda: ls.flow(model(), IDS, SEVEN, against=IDS[::-1], freeze="norm"),
        ("freeze='norm' with against=", "leave freeze out"),
    ),
    "a change of a squared form": (
        lambda: ls.flow(model(), IDS, ls.Fisher(), against=IDS[::-1]),
        ("Fisher", "a squared form", "write a scope of one cotangent", "ls.Semantic(target, versus=other)"),
    ),
    "a change of two numbers": (
        lambda: ls.flow(model(), IDS, lambda state: torch.eye(len(state.y))[:2], against=IDS[::-1]),
        ("2 cotangents without a common sign", "write a scope of one cotangent"),
    ),
    "no points of a line": (
        lambda: ls.flow(model(), IDS, SEVEN, against=IDS[::-1], steps=0),
        ("points of the line", "got 0", "write 1 or more"),
    ),
    "points of no line": (
        lambda: ls.flow(model(), IDS, SEVEN, steps=8),
        ("steps=8 are points on the way from another prompt", "against=..."),
    ),
    "a source that does not change": (
        lambda: ls.flow(model(), IDS, SEVEN, against=[*IDS[:-1], IDS[-1] + 1], sources=[0]),
        (f"positions that change ([{len(IDS) - 1}])", "got [0]", "the same in both prompts"),
    ),
    "routes of a whole change": (
        lambda: ls.flow(model(), IDS, SEVEN, against=[*IDS[:-1], IDS[-1] + 1], steps=64).paths(),
        ("at every point of its line", "last_heads()", "flow(model, prompt, scope)"),
    ),
    "a check of a whole change": (
        lambda: ls.flow(model(), IDS, SEVEN, against=[*IDS[:-1], IDS[-1] + 1], steps=64).check(model()),
        ("against both prompts' runs already", "flow.meta['gap']"),
    ),
    "a flow to the first block": (
        lambda: ls.flow(model(), IDS, ls.Direction(ONES, site="blocks.0.hook_resid_pre")),
        ("between the embedding and blocks.0.hook_resid_pre", "there is no block", "write a later site"),
    ),
    "a flow to no place of the stream": (
        lambda: ls.flow(model(), IDS, ls.Direction(ONES, site="blocks.0.ln1.hook_normalized")),
        ("got 'blocks.0.ln1.hook_normalized'", "resid_pre, resid_mid, resid_post, attn_out, mlp_out"),
    ),
    "edges after the end of a flow": (
        lambda: ls.flow(model(), IDS, ls.Direction(ONES, site="blocks.0.hook_resid_post"), edges=[(1, 0)]),
        ("head 1.0", "on the way to the direction's site are layers 0 to 0"),
    ),
    "a source of them all": (
        lambda: flow().sel(source=1),
        ("all sources go together", "sources='each'", "run flow("),
    ),
    "no such kind of carrier": (lambda: flow().top(kind="heads"), ("top", "'heads' (str)", "write kind='head'")),
    "no such row of a flow": (lambda: flow().paths(source=99), ("no label 99", "axis 'source'", "write one of 0, 1")),
    "paths of nothing": (lambda: flow().paths(0), ("got 0", "is an integer", "write 1 or more")),
    "paths of a loaded flow": (
        lambda: ls.Flow.load(flow().save(place() / "flow.safetensors")).paths(),
        ("a loaded flow", "the live model", "run lens_scopes.flow again"),
    ),
    # Results
    "a kind of sites": (
        lambda: scores().sel(site="resid_post"),
        ("'resid_post'", "one of each of 2 layers", "write e.g. '0 resid_post'"),
    ),
    "no such axis": (lambda: scores().sel(layer=1), ("no axis 'layer'", "site, pos", "write one of")),
    "no such label": (lambda: scores().sel(pos=99), ("no label 99", "axis 'pos'", "write one of 0, 1")),
    "a fraction for a label": (lambda: scores().sel(pos=1.0), ("no label 1.0 (float)", "axis 'pos'", "write one of 0, 1")),
    "a bool for a label": (lambda: scores().sel(pos=True), ("no label True (bool)", "axis 'pos'", "write one of 0, 1")),
    "several labels": (lambda: scores().sel(pos=[1, 2]), ("no label [1, 2]", "axis 'pos'", "write one of 0, 1")),
    "a sum over nothing": (lambda: scores().sum("head"), ("no axis 'head'", "site, pos", "write one of")),
    "tokens joined to sentences": (
        lambda: scores().aggregate("verse"),
        ("'verse'", "'word'", "write"),
    ),
    "tokens joined twice": (
        lambda: scores().aggregate().aggregate(),
        ("joined by word", "aggregate joins positions", "join the scores of single tokens"),
    ),
    "an interval of what is exact": (
        lambda: scores().interval(),
        ("got Semantic(target=7)", "only estimates", "write score(..., Fisher"),
    ),
    "scores as a table": (
        lambda: scores().save(place() / "x.parquet"),
        ("got 'x.parquet'", "a .safetensors file", "write to_dataframe().to_parquet(...)"),
    ),
    "scores as a page": (
        lambda: scores().save(place() / "x.html"),
        ("got 'x.html'", "a .safetensors file", "write lens_scopes.report"),
    ),
    "a directory that is not there": (
        lambda: scores().save("/no/such/place/x"),
        ("/no/such/place", "to write x to", "make it first"),
    ),
    "a file that is not there": (
        lambda: ls.Scores.load("/no/such/file"),
        ("/no/such/file", "there is no file", "write the path that save returned"),
    ),
    "a file of another kind": (
        lambda: ls.Scores.load(flow().save(place() / "flow.safetensors")),
        ("holds a Flow", "not a Scores", "load it with Flow.load"),
    ),
    "a report the wrong way round": (
        lambda: ls.report("r.html", scores()),
        ("got Scores(", "to a path", "write report(results, 'report.html')"),
    ),
    "a report of nothing": (
        lambda: ls.report([], place() / "r.html"),
        ("got []", "takes results", "write a list with at least one result"),
    ),
    "a picture of a number": (lambda: ls.show(3), ("got 3 (int)", "take Scores, Flow", "write what score or flow")),
    "no such view": (
        lambda: ls.show(flow(), "edges"),
        ("no view 'edges'", "it has 'last', 'heads', 'stream'", "run flow(..., edges=True)"),
    ),
    "a word for the first position": (
        lambda: ls.show(scores(), first="skip"),
        ("got 'skip'", "'show', 'hide' or 'share'", "write first='hide'"),
    ),
    "no such drawing": (
        lambda: scores().plot(backend="bokeh"),
        ("got 'bokeh'", "'matplotlib' or 'plotly'", "write backend='matplotlib'"),
    ),
    "a check of what does not say what it is": (
        lambda: ls.Scores(scores().values, scores().dims, scores().coords, scores().tokens).check(model()),
        ("no 'token_ids'", "what a result says about itself", "check what score or flow returned"),
    ),
    # Jacobians
    "a jacobian of every layer": (
        lambda: ls.jacobian(model(), IDS, "resid_post"),
        ("got 'resid_post'", "one residual-stream site", "write hook names"),
    ),
    "a jacobian backwards": (
        lambda: ls.jacobian(model(), IDS, "blocks.1.hook_resid_post", INNER),
        (INNER, "not after the source", "swap them"),
    ),
    "a vector for vjp": (
        lambda: ls.jacobian(model(), IDS).vjp(ONES),
        ("got shape (16,)", "axes [k, d_out]", "write a tensor of 2"),
    ),
    "no singular vectors": (lambda: ls.jacobian(model(), IDS).svd(0), ("svd(0)", "16 x 112", "between 1 and 16")),
    # Patching
    "prompts of two lengths": (
        lambda: patching.predict(model(), IDS, IDS[:-1], SEVEN),
        ("7 tokens and corrupted 6", "position by position", "write prompts of one length"),
    ),
    "a list of places": (
        lambda: patching.measure(model(), IDS, IDS, SEVEN, where=[0]),
        ("got 0", "heads as (layer, head)", "write e.g. where="),
    ),
    "no steps": (
        lambda: patching.predict(model(), IDS, IDS, SEVEN, steps=0),
        ("got 0", "the points of the path", "write 1 or more"),
    ),
    "a path for Fisher": (
        lambda: patching.predict(model(), IDS, IDS, ls.Fisher(4), steps=3),
        ("steps=3", "a squared form", "write method='gradient'"),
    ),
    "two positions patched": (
        lambda: patching.predict(model(), IDS, IDS, SEVEN, position=[1, 2]),
        ("got [1, 2]", "one position", "write an index"),
    ),
    "a comparison with nothing": (
        lambda: patching.compare(scores(), None),
        ("measured got None", "takes Scores", "write what predict and measure returned"),
    ),
    # Numbers, words and flags
    "a word for a temperature": (
        lambda: ls.generate(model(), IDS, temperature="0"),
        ("got '0' (str)", "a number", "write e.g. 0"),
    ),
    "a cold temperature": (lambda: ls.generate(model(), IDS, temperature=-1), ("got -1", "or above", "write temperature=0")),
    "a seed without an end": (
        lambda: ls.generate(model(), IDS, seed=2**70),
        (f"got {2**70}", "is an integer", f"write {2**63 - 1} or less"),
    ),
    "a share in words": (lambda: compared().patches_to("0.9"), ("got '0.9' (str)", "a part of the total effect", "write e.g. 0.9")),
    "a share above all": (lambda: compared().summary(2), ("got 2", "at most 1", "write e.g. 0.9")),
    "a level in words": (lambda: table().verdict("temperature", level="x"), ("got 'x'", "between 0 and 1", "write e.g. 0.95")),
    "a level in percent": (lambda: curve().interval(95), ("got 95", "between 0 and 1", "write e.g. 0.95")),
    "a share of a circuit in words": (lambda: flow().circuit("0.9"), ("got '0.9'", "a share of the total", "write e.g. 0.9")),
    "a tolerance in words": (
        lambda: patching.predict(model(), IDS, OTHER, SEVEN, tol="1"),
        ("got '1'", "a share of the metric's difference", "write e.g. 0.01"),
    ),
    "a path without an end": (
        lambda: patching.predict(model(), IDS, OTHER, SEVEN, steps=2**70),
        (f"got {2**70}", "the points of the path", "write 10000 or less"),
    ),
    "singular vectors to no tolerance": (
        lambda: ls.jacobian(model(), IDS).svd(2, tol=float("nan")),
        ("got nan", "above 0", "write e.g. 0.0001"),
    ),
    "no tokens to decode": (lambda: ls.jacobian(model(), IDS).decode(2, tokens=0), ("got 0", "decode's tokens", "write 1 or more")),
    "no places to check": (lambda: scores().check(model(), places=0), ("got 0", "how many are perturbed", "write 1 or more")),
    "no heads to check": (lambda: flow().check(model(), heads=0), ("got 0", "how many are checked", "write 1 or more")),
    "fewer than no heads": (lambda: flow().check(model(), heads=-1), ("got -1", "how many are checked", "write 1 or more")),
    "no bins": (lambda: ls.profile([scores(), scores()], "site", bins=0), ("got 0", "told apart", "write 1 or more")),
    "a profile of one": (lambda: ls.profile(scores(), "site"), ("got Scores(", "a list of results", "write what score_batch")),
    "a list for a cache": (
        lambda: patching.measure(model(), IDS, OTHER, SEVEN, cache=[]),
        ("got [] (list)", "a dict of yours", "write cache = {}"),
    ),
    "a flag for a cache": (
        lambda: patching.measure(model(), IDS, OTHER, SEVEN, cache=True),
        ("got True (bool)", "a dict of yours", "write cache = {}"),
    ),
    "a word for a flag": (
        lambda: patching.measure(model(), IDS, OTHER, SEVEN, together="no"),
        ("got 'no' (str)", "True or False", "write one of them"),
    ),
    "a word for squared": (
        lambda: ls.Cotangents(torch.ones(1, tiny.D_MODEL), None, "yes"),
        ("got 'yes' (str)", "True or False", "write one of them"),
    ),
    "orders without names": (
        lambda: patching.compare(*both(), orders=[torch.zeros(3)]),
        ("got [tensor", "a dict of proposals", "write orders="),
    ),
    "an order with holes": (
        lambda: patching.compare(*both(), orders={"x": both()[0].values * torch.nan}),
        ("the order 'x'", "NaN or infinity", "write finite numbers"),
    ),
    "a number for axes": (lambda: scores().plot(ax=3), ("got 3 (int)", "matplotlib's axes", "write ax=plt.subplots")),
    "a curve on a number": (lambda: curve().plot(ax=3), ("got 3 (int)", "matplotlib's axes", "write ax=plt.subplots")),
    "a word for the first of a profile": (
        lambda: ls.profile([scores(), scores()], "site").plot(first="skip"),
        ("got 'skip'", "'show', 'hide' or 'share'", "write first='hide'"),
    ),
    "a number for a title": (
        lambda: ls.report(scores(), place() / "r.html", title=3),
        ("got 3 (int)", "a text, or None", "write title='...'"),
    ),
    "no name for a model": (lambda: ls.load(None), ("got None", "a name on the hub, a directory or a .gguf file", "write e.g. 'gpt2'")),
    "a word for a dtype": (lambda: ls.load("gpt2", dtype="float32"), ("got 'float32'", "a type of torch", "write dtype=torch.float32")),
    "no such device": (lambda: ls.load("gpt2", device="gpu9x"), ("got 'gpu9x'", "a device of torch", "write device='cpu'")),
    "a number for a file": (lambda: ls.Scores.load(3), ("got 3 (int)", "a string or a Path", "write e.g. 'scores.safetensors'")),
    "a directory for a file": (lambda: ls.Scores.load("."), ("got '.'", "a path names a file", "write e.g. 'scores.safetensors'")),
    "no folder": (lambda: ls.corpus.open(None), ("got None", "a string or a Path", "write e.g. 'runs/a'")),
    "a word for how many cases": (lambda: ls.demo.cases("ioi", n="3"), ("got '3' (str)", "the number of cases", "write e.g. 3")),
    "fewer than no cases": (lambda: ls.demo.cases("ioi", n=-1), ("got -1", "the number of cases", "write 0 or more")),
    "a list for a kind": (lambda: ls.demo.cases(["ioi"]), ("no kind ['ioi']", "write one of", "None for all")),
    "a builtin for a scope": (lambda: score(scope=all), ("got <built-in function all>", "a function of the final state", "write e.g. ls.")),
    "a number for a metric's name": (lambda: ls.Metric(torch.sum, name=3), ("got 3 (int)", "a text, or None", "write name=")),
    "a number for a direction's name": (lambda: ls.Direction(ONES, name=3), ("got 3 (int)", "a text, or None", "write name=")),
    "a list for an axis": (lambda: scores().sum(["pos"]), ("no axis ['pos']", "there is no axis", "write one of site, pos")),
    "a list for a span": (lambda: ls.Text([1], ["a"]).part(["a"]), ("no span ['a']", "in this text", "it has none")),
    "a number for a Text's tokens": (lambda: ls.Text([1], 3), ("got 3 (int)", "a list of strings", "write ['The', ' cat']")),
    "characters without names": (
        lambda: scores().aggregate({"a": (0, 1)}, chars=[(0, 1)]),
        ("got [(0, 1)]", "by name", "write chars="),
    ),
    "scores of a list": (
        lambda: ls.Scores([1.0], ("pos",), {"pos": (0,)}, ("a",)),
        ("got [1.0]", "values are a tensor", "write ('site', 'pos')"),
    ),
    "scores without labels": (
        lambda: ls.Scores(torch.ones(1), ("pos",), None, ("a",)),
        ("got None", "labels of every axis", "write {'pos': (0, 1), ...}"),
    ),
    "scores with a list of facts": (
        lambda: ls.Scores(torch.ones(1), ("pos",), {"pos": (0,)}, ("a",), []),
        ("[] (list)", "meta is a dict", "write ('a', ' b')"),
    ),
    # Evaluation
    "scopes without names": (
        lambda: evaluate.compare_methods(model(), [IDS], [SEVEN]),
        ("got [Semantic(target=7)]", "a dict of scopes and functions by name", "write {'mine':"),
    ),
    "a function that does not say what it gets": (
        lambda: evaluate.compare_methods(model(), [IDS], {"mine": lambda q: q}),
        ("with 'q'", "a method if its first parameter is called question", "write lambda question"),
    ),
    "a builtin for a skip": (lambda: ablation(skip=all), ("got <built-in function all>", "a list of positions", "write e.g. 3")),
    "a corpus for zeros": (lambda: ablation(corpus=[1]), ("replace='zero'", "what replace='resample' draws from", "leave it out")),
    "a list for a baseline": (
        lambda: evaluate.compare_methods(model(), [IDS], ["temperature"], baseline=["random"]),
        ("got ['random']", "the name of a method", "write baseline='gradient_x_input'"),
    ),
    "a number for a file to go on from": (
        lambda: evaluate.compare_methods(model(), [IDS], ["temperature"], resume=3),
        ("got 3 (int)", "a string or a Path", "write e.g."),
    ),
    "measures alone": (lambda: table().to_markdown("aopc"), ("got 'aopc'", "a list of them", "write e.g. ['aopc']")),
    "effects of nothing": (
        lambda: evaluate.rank_of_top(scores().values[0], None),
        ("got None", "that leave_one_out returned", "write its entry"),
    ),
    "a method alone": (
        lambda: evaluate.compare_methods(model(), [IDS], "semantic"),
        ("got 'semantic'", "a list of names", "write ['semantic']"),
    ),
    "no such method": (
        lambda: evaluate.compare_methods(model(), [IDS], ["semantics"]),
        ("no method 'semantics'", "functions of your own", "write one of semantic, temperature"),
    ),
    "a ranking alone": (
        lambda: ablation(scores()),
        ("got Scores(", "one ranking per prompt", "write [scores]"),
    ),
    "a ranking of every layer": (
        lambda: ablation([scores()]),
        ("got shape (3, 7)", "one number for each", "scores.sel(site=...)"),
    ),
    "shares in percent": (
        lambda: ablation(fractions=(5, 10)),
        ("got (5, 10)", "between 0 and 1", "write e.g. (0.05, 0.1, 0.2)"),
    ),
    "no such replacement": (
        lambda: ablation(replace="noise"),
        ("got 'noise'", "zero, mean, delete, resample", "write replace='zero'"),
    ),
    "no such mode": (
        lambda: ablation(mode="both"),
        ("got 'both'", "'comprehensiveness', 'sufficiency'", "write mode='sufficiency'"),
    ),
    "a skipped position outside": (lambda: ablation(skip=(99,)), ("position 99", "has 7 tokens", "write -7 to 6")),
    "no such protocol": (
        lambda: evaluate.leave_one_out(model(), [IDS], protocol="theirs"),
        ("got 'theirs'", "None (one target, the last position) or 'paper'", "write protocol=None"),
    ),
    "a prompt alone": (
        lambda: evaluate.leave_one_out(model(), "a"),
        ("got 'a'", "a list of prompts", "write [prompt]"),
    ),
    "a corpus of text": (
        lambda: ablation(replace="resample", corpus=["a"]),
        ("got 'a'", "a list of token ids", "write e.g. 3"),
    ),
}  # fmt: skip


def test_there_are_enough_of_them():
    assert len(MISTAKES) >= 40


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered(name):
    mistake, parts = MISTAKES[name]
    with pytest.raises((ValueError, TypeError, IndexError, KeyError, RuntimeError, OSError)) as refusal:
        mistake()
    error = refusal.value
    assert not isinstance(error, RecursionError | UnicodeError)
    text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    assert [part for part in parts if part not in text] == [], text
    assert len(text) < 1200
