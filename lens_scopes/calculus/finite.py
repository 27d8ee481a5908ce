"""NaN and infinity are refused, with the first site that has them; no result holds one."""

from collections.abc import Mapping

from jaxtyping import Int
from torch import Tensor

from lens_scopes.host import Host, run_to_last_residual
from lens_scopes.sites import EMBED, FINAL, STREAM, depth


def refuse_nonfinite(
    host: Host, tokens: Int[Tensor, "batch pos"], found: Mapping[str, Tensor], what: str = "the gradient"
) -> None:
    """Refuse numbers that are not finite; the model runs once more to say where it begins.

    Args:
        host: the model.
        tokens: the prompts that were run.
        found: the numbers, by the site that they belong to.
        what: what they are.

    Raises:
        ValueError: naming the first activation that is not finite, else the last site of the numbers (gradients run
            backwards), and the dtype.

    """
    bad = [name for name, values in found.items() if not is_finite(values)]
    if not bad:
        return
    names = [EMBED, *(kind.format(layer) for layer in range(host.n_layers) for kind in STREAM.values())]
    stream = sorted((name for name in names if name in host.available), key=lambda name: depth(name, host.n_layers))
    activations = run_to_last_residual(host, tokens, stream, grad=False).sites
    first = next((name for name in stream if not activations[name].isfinite().all()), None)
    where = f"the activation at {first}"
    if first is None:
        last = max(bad, key=lambda name: depth(name, host.n_layers))
        where = "the final norm or the unembedding" if last == FINAL else f"{what} at {last}"
    dtype = str(host.dtype).removeprefix("torch.")
    msg = f"NaN or infinity: {where} is the first that has it, in {dtype}; try float32 or bfloat16"
    raise ValueError(msg)


def is_finite(values: Tensor) -> bool:
    """Whether there is neither NaN nor infinity: by the least and the largest, which NaN is where one is in them."""
    if not values.numel():
        return True
    return all(bool(end.isfinite()) for end in values.aminmax())
