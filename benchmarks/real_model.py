"""What patches, checks and flows cost on a real model, in units of one bare forward + backward to the embeddings.

    python benchmarks/real_model.py [--rounds 3] [--only methods|patches|checks|flow|svd] [--oracle] [--write docs/cost.md]

Gemma 3 270M on the Bridge (its directory: --model). Each case stands between two floors on the same prompt, all of it CPU
time of one thread in one process, and the median of the ratios to the two floors' mean is quoted. "one at a time" is the
oracle: TransformerLens's own ``get_act_patch_*``, one place per forward from the tokens; it runs once. What a cost in units of
floors does not show are the numbers: the largest difference from that oracle is quoted too.
"""

import argparse
import functools
import gc
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tables
import torch
import transformer_lens.patching
from models import floor

import lens_scopes as ls
from lens_scopes.evaluate import protocol
from lens_scopes.evaluate.methods import attribute

DIRECTORY = Path.home() / ".cache" / "lens_scopes" / "gemma3-270m"
CLEAN = "The capital city of the large country of France is the famous city of"
CORRUPTED = CLEAN.replace("France", "Italy")
SCOPE = ls.Semantic(" Paris", " Rome")
SHORT = "The Eiffel Tower is in the city of"
MIDDLE = "In the summer of 1889 the tall iron tower was opened to the public, and many people came to see the city of"
LONG = "When we came back from the long journey through the mountains of the south, all that our old friends wanted to hear was the name of the great"
HEADS = 40


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def ratio(model, tokens, call, rounds: int) -> tuple[str, str, Any]:
    """Median, range and what the call returned."""
    call()  # what is tried once per model
    floor(model, tokens)
    ratios, found = [], None
    for _ in range(rounds):
        before, _ = seconds(lambda: floor(model, tokens))
        mine, found = seconds(call)
        after, _ = seconds(lambda: floor(model, tokens))
        ratios.append(2 * mine / (before + after))
    return f"{statistics.median(ratios):.1f}", f"{min(ratios):.1f}..{max(ratios):.1f}", found


def oracle(model, tokens, getter) -> tuple[str, torch.Tensor]:
    """Floors, and the effects, of one of TransformerLens's getters."""
    corrupted = model.to_tokens(CORRUPTED)

    def run():
        with torch.no_grad(), ls.patching.metric(model, CLEAN, SCOPE) as metric:
            cache = model.run_with_cache(tokens)[1]
            return getter(model, corrupted, cache, metric) - metric(model(corrupted))

    cost, effects = seconds(run)
    return f"{cost / seconds(lambda: floor(model, tokens))[0]:.1f}", effects


def truncated(model, text: str, length: int) -> list[int]:
    ids = model.to_tokens(text)[0, :length].tolist()
    assert len(ids) == length, len(ids)
    return ids


def measured(model, options) -> list[list[str]]:
    """Patches, beside TransformerLens's."""
    tokens = model.to_tokens(CLEAN)
    length = tokens.shape[1]
    generator = torch.Generator().manual_seed(0)
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    chosen = [divmod(i, heads) for i in torch.randperm(layers * heads, generator=generator)[:HEADS].tolist()]
    pair, cache = (model, CLEAN, CORRUPTED, SCOPE), {}
    differs = ls.patching.measure(*pair, sites="resid_post").values != 0
    where = torch.zeros_like(differs)
    where.view(-1)[differs.view(-1).nonzero()[: options.places, 0]] = True
    ls.patching.measure(*pair, where=chosen, cache=cache)
    cases = {
        f"measure, {int(where.sum())} places, resid_post": lambda: ls.patching.measure(
            *pair, sites="resid_post", where=where
        ),
        f"measure, {HEADS} whole heads": lambda: ls.patching.measure(*pair, where=chosen),
        "the same with the pair's cache": lambda: ls.patching.measure(*pair, where=chosen, cache=cache),
        f"the {HEADS} heads together, with the cache": lambda: ls.patching.measure(
            *pair, where=chosen, cache=cache, together=True
        ),
    }
    found = {name: ratio(model, tokens, call, options.rounds) for name, call in cases.items()}
    effects = [result.values for *_, result in found.values()]
    asides = ["", "", "", ""]
    if options.oracle:
        (cost_post, by_place), (cost_heads, by_head) = (
            oracle(model, tokens, getter)
            for getter in (_resid_post, transformer_lens.patching.get_act_patch_attn_head_out_all_pos)
        )
        picked = tuple(torch.tensor(chosen).T)
        errors = [
            ((effects[0] - by_place)[where].abs().max(), by_place.abs().max()),
            ((effects[1] - by_head)[picked].abs().max(), by_head.abs().max()),
        ]
        for n, (cost, places, (error, largest)) in enumerate(
            zip((cost_post, cost_heads), (by_place.numel(), by_head.numel()), errors, strict=True)
        ):
            asides[n] = (
                f"one at a time: {cost} for {places}; largest difference {float(error):.1e} of {float(largest):.2g}"
            )
    return [
        [name, str(length), median, span, aside]
        for (name, (median, span, _)), aside in zip(found.items(), asides, strict=True)
    ]


def _resid_post(*given: Any) -> torch.Tensor:
    """There is a getter for resid_pre, and none for resid_post."""
    return transformer_lens.patching.generic_activation_patch(
        *given, transformer_lens.patching.layer_pos_patch_setter, "resid_post", ("layer", "pos")
    )


def checked(model, options) -> list[list[str]]:
    """Finite differences at four places."""
    rows = []
    for text, length in ((SHORT, 9), (MIDDLE, 25)):
        ids = truncated(model, text, length)
        scores = ls.score(model, ids, ls.Semantic())
        call = functools.partial(scores.check, model)
        median, span, report = ratio(model, torch.tensor([ids]), call, options.rounds)
        rows.append(
            ["check of a Semantic score", str(length), median, span, f"largest error {report['max_error']:.1e}"]
        )
    return rows


def many(model, options, name: str, call: Callable[[list[int]], Any]) -> list[list[str]]:
    """Many directions of one prompt."""
    ids = truncated(model, LONG, 29)
    median, span, result = ratio(model, torch.tensor([ids]), lambda: call(ids), options.rounds)
    residual = result.residual if isinstance(result.residual, float) else float(result.residual.max())
    return [[name, "29", median, span, f"residual {residual:.1e}"]]


def methods(model, options) -> list[list[str]]:
    """The table of methods on one short prompt, and what each of its parts costs alone."""
    tokens = model.to_tokens(SHORT)
    names = [name for name in ls.evaluate.METHODS if not name.startswith("fisher")]
    (question,) = protocol.ask(model, [SHORT], None)
    calls = {f"compare_methods, {len(names)} methods": lambda: ls.evaluate.compare_methods(model, [SHORT], names)}
    calls |= {f"of it {name}": functools.partial(attribute, question, name) for name in names}
    rows = []
    for name, call in calls.items():
        median, span, _ = ratio(model, tokens, call, options.rounds)
        rows.append([name, str(tokens.shape[1]), median, span, ""])
    return rows


PARTS = {
    "methods": methods,
    "patches": measured,
    "checks": checked,
    "flow": lambda model, options: many(
        model, options, "flow(sources='each')", lambda ids: ls.flow(model, ids, ls.Semantic(), sources="each")
    ),
    "svd": lambda model, options: many(
        model, options, "jacobian(...).svd(2)", lambda ids: ls.jacobian(model, ids).svd(2)
    ),
}


def main() -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--places", type=int, default=87)
    parser.add_argument("--model", type=Path, default=DIRECTORY)
    parser.add_argument("--oracle", action="store_true", help="run TransformerLens's getters beside it: minutes")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    model = ls.load(options.model, backend="bridge", device="cpu")
    rows = [row for part in options.only or PARTS for row in PARTS[part](model, options)]
    table = tables.markdown(["case", "tokens", "time / floor (median)", "min..max", ""], rows)
    print(table)
    if options.write:
        tables.write(options.write, "real_model", table)


if __name__ == "__main__":
    main()
