"""TransformerLens's own activation patching, with many places in one forward."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from lens_scopes.host.model import Edit, Host, in_place
from lens_scopes.host.undo import undone
from lens_scopes.sites import HEADS, STREAM, layer_of


def patching_name(site: str) -> str | None:
    """What ``transformer_lens.patching`` calls a site; None where it has no name for it."""
    layer = layer_of(site)
    return next((kind for kind, form in {**STREAM, **HEADS}.items() if form.format(layer) == site), None)


def run_patched(
    host: Host,
    tokens: Int[Tensor, "batch pos"],
    jobs: Sequence[tuple[str, Edit]],
    read: Callable[[int, Tensor], None],
) -> None:
    """One forward per job, each with one site edited in place, through TransformerLens where it can.

    ``generic_activation_patch`` is what all its getters are made of. It wants one number per forward; ``read`` takes
    the logits instead, so that every row of the batch can hold a patch of its own.

    Args:
        host: the model.
        tokens: what runs, the same for every job.
        jobs: the site and the edit of each; sites of one kind.
        read: called with the number of the job and its logits.

    """
    import pandas as pd
    from tqdm.auto import tqdm
    from transformer_lens.patching import generic_activation_patch

    kind = patching_name(jobs[0][0])
    if kind is None:
        for job, (site, edit) in enumerate(tqdm(jobs, desc=jobs[0][0])):
            with host.hooks([(site, in_place(edit))]):
                read(job, host.run(tokens))
        return
    order = iter(range(len(jobs)))

    def metric(logits: Tensor) -> Tensor:
        read(next(order), logits)
        return logits.new_zeros(())

    def setter(activation: Tensor, index: Sequence[int], _: object) -> Tensor:
        jobs[index[1]][1](activation)
        return activation

    nothing: Mapping[str, Tensor] = {
        site: torch.empty(0, device="cpu") for site, _ in jobs
    }  # the edits bring what they put there
    index = pd.DataFrame({"layer": [layer_of(site) for site, _ in jobs], "job": range(len(jobs))})
    with undone(host.as_now()), undone(host.notes()):
        generic_activation_patch(host.model, tokens, nothing, metric, setter, activation_name=kind, index_df=index)  # type: ignore[arg-type]
