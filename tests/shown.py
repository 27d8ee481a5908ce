"""Results to look at, made without a model: random numbers that add up, and tokens that mean harm."""

import torch

import lens_scopes as ls

#: Each sets window.harmed, or hides something, if it is anything but text.
HOSTILE = (
    "<script>window.harmed=1</script>",
    "</script><script>window.harmed=2</script>",
    '<img/src="x"/onerror="window.harmed=3">',
    "<img src=x onerror=window.harmed=4>",
    "<s>",
    "</s>",
    "<start_of_turn>",
    "&lt;b&gt;",
    "\"'`\\",
    "\n",
    "",
    "  ",
    "🙂",
    "שלום",
    "مرحبا",
    "漢字",
    "\u202egnp.exe",
    "\u2028",
    "$x_1$",
    "x" * 60,
)


def scores(tokens, units="norm", sites=3, seed=0, values=None):
    generator = torch.Generator().manual_seed(seed)
    names = ("hook_embed", *(f"blocks.{layer}.hook_resid_post" for layer in range(sites - 1)))
    if values is None:
        values = torch.randn(sites, len(tokens), generator=generator)
        values = values if units == "signed" else values.abs()
    coords = {"site": names, "pos": tuple(range(len(tokens)))}
    return ls.Scores(values, ("site", "pos"), coords, tuple(tokens), meta(tokens, units))


def by_head(tokens, layers=2, heads=3, seed=0):
    values = torch.rand(layers, len(tokens), heads, generator=torch.Generator().manual_seed(seed))
    names = tuple(f"blocks.{layer}.attn.hook_z" for layer in range(layers))
    coords = {"site": names, "pos": tuple(range(len(tokens))), "head": tuple(range(heads))}
    return ls.Scores(values, ("site", "pos", "head"), coords, tuple(tokens), meta(tokens, "norm"))


def by_target(tokens, targets=3, seed=0):
    """The last few positions explained, at one site; what is predicted at each means harm too."""
    values = torch.rand(targets, len(tokens), generator=torch.Generator().manual_seed(seed))
    positions = tuple(range(len(tokens) - targets, len(tokens)))
    said = [[{"id": 1, "text": text, "p": 0.5}] for text in HOSTILE[:targets]]
    coords = {"target_pos": positions, "pos": tuple(range(len(tokens)))}
    about = meta(tokens, "norm") | {"positions": list(positions), "predictions": said, "targets": [None] * targets}
    return ls.Scores(values, ("target_pos", "pos"), coords, tuple(tokens), about)


def generation(tokens, prompt, sites=2, units="norm", passes=0, seed=0):
    """Every token after the first ``prompt`` ones explained, at some sites; an estimate where there are passes."""
    generator = torch.Generator().manual_seed(seed)
    positions = tuple(range(prompt - 1, len(tokens) - 1))
    shape = (max(passes, 1), len(positions), sites, len(tokens))
    causal = torch.arange(len(tokens)) <= torch.tensor(positions)[:, None]
    probes = torch.rand(shape, generator=generator, dtype=torch.float64) * causal[:, None]
    probes *= torch.arange(1, 1 + len(positions))[:, None, None] ** 2  # so far apart that rows have scales of their own
    values = probes.sum(0).to(torch.float64 if units == "squared" else torch.float32)
    names = ("hook_embed", *(f"blocks.{layer}.hook_resid_post" for layer in range(sites - 1)))
    coords = {"target_pos": positions, "site": names, "pos": tuple(range(len(tokens)))}
    targets = [{"id": p + 1, "text": tokens[p + 1], "p": 0.5, "rank": p} for p in positions]
    about = meta(tokens, units) | {"position": list(positions), "positions": list(positions), "targets": targets}
    about |= {
        "predictions": [[target] for target in targets],
        "spans": {"prompt": [0, prompt], "completion": [prompt, len(tokens)]},
        "special": [0],
        "scope": {"kind": units, "fields": {}, "text": f"{units}('</script>')"},
    }
    dims = ("target_pos", "site", "pos")
    return ls.Scores(values, dims, coords, tuple(tokens), about, probes if passes else None)


def flow(tokens, layers=2, heads=3, together=False, edges=True, seed=0):
    """Random, but for what the views rely on: rows of the stream sum to the total, edges are causal."""
    generator = torch.Generator().manual_seed(seed)
    n = len(tokens)
    rows = 1 if together else n
    total = torch.rand(rows, generator=generator) + 0.1
    stream = torch.rand(rows, layers + 1, n, generator=generator)
    stream = stream / stream.sum(-1, keepdim=True) * total[:, None, None]
    maps = torch.randn(2, layers, heads, n, n, generator=generator).tril() if edges else None
    return ls.Flow(
        total=total,
        heads=torch.randn(rows, layers, heads, generator=generator),
        mlps=torch.randn(rows, layers, generator=generator),
        skip=torch.randn(rows, layers, generator=generator),
        stream=stream,
        composition=None,
        edges=maps,
        residual=1e-7,
        last=0.1 * torch.randn(rows, layers, heads, generator=generator),
        tokens=tuple(tokens),
        sources=tuple(range(n)),
        meta=meta(tokens, "norm") | {"together": together, "method": "jvp", "position": n - 1},
    )


def meta(tokens, units):
    last = len(tokens) - 1
    return {
        "units": units,
        "scope": {"kind": "Semantic", "fields": {"target": "<b>", "versus": None}, "text": "Semantic('<b>')"},
        "model": "<i>model</i>",
        "host": "HookedTransformer",
        "dtype": "float32",
        "position": last,
        "positions": [last],
        "targets": [
            {"id": 1, "text": " <b>", "p": 0.5, "rank": 0, "versus": {"id": 2, "text": "y", "p": 0.25, "rank": 1}}
        ],
        "predictions": [[{"id": 1, "text": "<script>x</script>", "p": 0.5}, {"id": 2, "text": "y", "p": 0.25}]],
        "token_ids": list(range(len(tokens))),
        "folded": False,
        "centred": True,
        "freeze": [],
        "versions": {"lens-scopes": "0", "torch": "2"},
    }
