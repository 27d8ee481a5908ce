"""NaN and infinity are refused, with the first site that has them; no result holds one."""

from collections.abc import Mapping

from torch import Tensor

from lens_scopes.calculus.trace import Trace
from lens_scopes.sites import depth


def refuse_nonfinite(run: Trace, found: Mapping[str, Tensor]) -> None:
    """Refuse numbers that are not finite, by the site that they belong to.

    Raises:
        ValueError: naming the first activation that is not finite, else the gradient's last site, and the dtype.

    """
    bad = [name for name, values in found.items() if not values.isfinite().all()]
    if not bad:
        return
    layers = run.host.n_layers
    in_order = sorted(run.sites, key=lambda name: depth(name, layers))
    where, what = next((name for name in in_order if not run.sites[name].isfinite().all()), None), "the activation"
    if where is None:  # gradients run backwards: the last site that has it is where it begins
        where, what = max(bad, key=lambda name: depth(name, layers)), "the gradient"
    dtype = str(run.sites[where].dtype).removeprefix("torch.")
    msg = f"NaN or infinity: {what} at {where} is the first that has it, in {dtype}; try float32 or bfloat16"
    raise ValueError(msg)
