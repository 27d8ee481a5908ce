"""A fingerprint of the package's numbers, to hold one commit against another: unchanged code changes no digit.

    python benchmarks/fingerprint.py > before.txt     # on one commit
    python benchmarks/fingerprint.py > after.txt      # on the other, on the same machine and libraries
    diff before.txt after.txt

A line per result, with the SHA-256 of its values: the authors' prompts on stories260K by every scope (where the
reference data are: LENS_SCOPES_REFERENCE, by default ../shared beside the checkout), and scores, flows, predicted and
measured patches, Jacobians and curves on the demo model, on every host class that there is.
"""

import hashlib
import json
import os
from pathlib import Path

import torch

import lens_scopes as ls

REFERENCE = Path(os.environ.get("LENS_SCOPES_REFERENCE", Path(__file__).parents[2] / "shared"))
BACKENDS = ("hooked", "bridge")


def say(name, *tensors):
    """One line: what it is, and a digest of its bytes, shapes and dtypes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode() if tensor is not None else b"none")
        digest.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
    print(f"{digest.hexdigest()[:32]}  {name}", flush=True)


def golden(backend):
    """Every prompt of the reference file by every scope, at the input; one of each group at every site."""
    entries = json.loads((REFERENCE / "golden" / "reference_scores.json").read_text(encoding="utf-8"))
    model = ls.load(REFERENCE / "models" / "stories260K", backend=backend)
    for group in ("stories", "lambada"):
        for n, entry in enumerate(entries[group]):
            scopes = {"semantic": ls.Semantic(entry["target"]), "temperature": ls.Temperature(), "fisher": ls.Fisher()}
            scopes |= {f"fisher_{k}": ls.Fisher(rank=k) for k in (1, 4)} | ({"exact": ls.Fisher(None)} if n < 3 else {})
            for name, scope in scopes.items():
                sites = None if n == 0 else "embed"
                scores = ls.score(model, entry["tokens"], scope, position=entry["position"], sites=sites)
                say(f"{backend} {group}[{n}] {name}", scores.values, scores.probes)


def demo(backend):
    """What the demo's tables are made of, on two cases of each kind."""
    model = ls.demo.load(backend)
    for kind in ls.demo.KINDS:
        for n, case in enumerate(ls.demo.cases(kind, n=2)):
            name = f"{backend} {kind}[{n}]"
            scope = ls.Semantic(case.answer, case.versus)
            loss = ls.Metric(lambda logits: logits[0, -1].log_softmax(-1)[7], name="log p")
            for made in (scope, ls.Semantic(), ls.Temperature(), ls.Fisher(), ls.Fisher(8, seed=3), loss):
                say(f"{name} score {made}", (s := ls.score(model, case.prompt, made)).values, s.probes)
            for along in ("activation",):
                say(f"{name} along", ls.score(model, case.prompt, scope, along=along, sites="z").values)
            say(f"{name} positions", ls.score(model, case.prompt, ls.Semantic(), position="all").values)
            say(f"{name} frozen", ls.score(model, case.prompt, scope, freeze=("norm", "attention", "mlp")).values)
            for made in (scope, ls.Fisher(6)):
                flow = ls.flow(model, case.prompt, made, sources="each", edges=True)
                parts = (flow.total, flow.heads, flow.mlps, flow.stream, flow.composition, flow.edges)
                say(f"{name} flow {made}", *parts, torch.tensor(flow.residual))
            paths = ls.flow(model, case.prompt, scope).paths(5)
            say(f"{name} paths", torch.tensor(paths.influence.tolist()))
            for made in (scope, ls.Fisher(6), ls.Temperature(), loss):
                options = {"sites": ["embed", "blocks.2.hook_resid_post"]}
                say(
                    f"{name} predict {made}",
                    ls.patching.predict(model, case.prompt, case.corrupted, made, **options, method="gradient").values,
                )
                say(
                    f"{name} measure {made}",
                    ls.patching.measure(model, case.prompt, case.corrupted, made, **options).values,
                )
            for method in ("fixed", "two-scale"):
                path = ls.patching.predict(model, case.prompt, case.corrupted, scope, sites="z", method=method, steps=5)
                say(f"{name} {method}", path.values, torch.tensor(path.meta["gap"]))
            say(f"{name} jacobian", ls.jacobian(model, case.prompt, "blocks.2.hook_resid_pre").svd(2).S)
    prompts = [case.prompt for case in ls.demo.cases(n=6)]
    table = ls.evaluate.compare_methods(model, prompts, tuple(ls.evaluate.METHODS), leave_one_out=True)
    say(f"{backend} table", table.values, table.intervals, table.difference_intervals)
    say(f"{backend} table, p", table.p)
    curve = ls.evaluate.compare_methods(model, prompts, ["semantic"], replace="resample", seed=2).curve("semantic")
    say(f"{backend} curve", curve.deltas, curve.interval())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for backend in BACKENDS:
        if (REFERENCE / "golden").is_dir():
            golden(backend)
        demo(backend)
