"""Sites that nothing comes back from: zero because a user's hook cuts there, or lost because the host has its own way.

A host may leave aside what a hook returns and go on with a tensor of its own. The derivative at that site is then not
zero but unknown, and is refused.
"""

from collections.abc import Collection, Sequence

from lens_scopes.host import Host
from lens_scopes.results.warning import warn
from lens_scopes.sites import HEADS, STREAM, at_or_after, depth, layer_of


def refuse_lost(host: Host, unreached: Collection[str], end: str, held: Collection[str] = ()) -> None:
    """Say that sites before ``end`` do not reach it.

    Args:
        host: the model.
        unreached: the sites that autograd found no way from.
        end: the site that they should reach.
        held: names of the hooks that hold a part constant.

    Warns:
        UserWarning: a user's hook stands in between, which may cut: the derivative is 0 then.

    Raises:
        RuntimeError: nothing of the user's stands in between.

    """
    lost = [name for name in unreached if _leads_to(host, name, end) and not _is_held(name, held)]
    if not lost:
        return
    first = min(lost, key=lambda name: depth(name, host.n_layers))
    after = [hook for hook in host.hooked() if _may_cut(host, hook, first)]
    if not after:
        msg = (
            f"{host.name} does not go on with what the hook {first!r} returns, so its derivative cannot be had on this "
            "host; choose another site, or the other host class"
        )
        raise RuntimeError(msg)
    msg = (
        f"nothing of {first} reaches {end}: its scores are 0. A hook in force cuts it off (detach, or a value of its "
        f"own): {', '.join(after)}; without them: model.reset_hooks()"
    )
    warn(msg)


def refuse_late(host: Host, names: Sequence[str], site: str, what: str) -> None:
    """Refuse places that what is read at a site cannot feel: a score or an effect there is nothing but rounding.

    Args:
        host: the model.
        names: of the places.
        site: where a scope reads the model.
        what: stands at the places: "sources" or "patches".

    Raises:
        ValueError: naming them.

    """
    late = at_or_after(site, names, host.n_layers)
    if late:
        msg = (
            f"the direction reads {site}; {what} at or after it do not reach it, got {', '.join(late)}; write sites= "
            "of earlier ones, e.g. 'embed'"
        )
        raise ValueError(msg)


def _leads_to(host: Host, name: str, end: str) -> bool:
    layer = layer_of(name)
    beside = layer is not None and end == STREAM["mlp_out"].format(layer)
    if beside and STREAM["resid_mid"].format(layer) not in host.available:  # parallel blocks: the MLP reads resid_pre
        return name == STREAM["resid_pre"].format(layer)
    return depth(name, host.n_layers) < depth(end, host.n_layers)


def _is_held(name: str, held: Collection[str]) -> bool:
    """Queries and keys act through the pattern alone."""
    layer = layer_of(name)
    return name in (HEADS["q"].format(layer), HEADS["k"].format(layer)) and (
        f"blocks.{layer}.attn.hook_pattern" in held
    )


def _may_cut(host: Host, hook: str, site: str) -> bool:
    """Whether a hook stands at a site or after it; of torch's own hooks nobody knows."""
    return hook not in host.available or depth(hook, host.n_layers) >= depth(site, host.n_layers)
