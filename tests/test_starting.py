"""Runs that start in the middle end as whole runs do, on every host; those that cannot are run whole."""

from typing import Any

import pytest
import torch

import tiny
from lens_scopes.host import Host, is_causal, run_to_last_residual, starting_at, starts_at
from lens_scopes.sites import STREAM

pytestmark = pytest.mark.host

HOSTS = (*tiny.HOSTS, *tiny.OTHER_HOSTS)
TOKENS = torch.tensor([tiny.tokens(7)])


def streams(host: Host) -> list[torch.Tensor]:
    names = [STREAM["resid_pre"].format(layer) for layer in range(host.n_layers)]
    whole = run_to_last_residual(host, TOKENS, names, grad=False)
    return [*(whole.sites[name].detach() for name in names), whole.last]


def last(host: Host, rows: int = 1, **rest) -> torch.Tensor:
    return run_to_last_residual(host, TOKENS.expand(rows, -1), grad=False, **rest).last


def counted(host: Host, layer: int) -> tuple[list, tuple]:
    """A hook of ours that counts the runs of a block."""
    ran = []
    return ran, (f"blocks.{layer}.hook_attn_out", lambda activation, hook: ran.append(1))


@pytest.mark.parametrize("pair", HOSTS, ids=tiny.host_id)
def test_a_late_start_ends_as_the_whole_run_bit_for_bit(pair):
    host = Host(tiny.host(*pair))
    kept = streams(host)
    for layer in range(host.n_layers):
        ran, hook = counted(host, max(layer - 1, 0))
        with starting_at(host, layer, kept[layer]):
            assert torch.equal(last(host, hooks=[hook]), kept[-1])
            assert not ran or layer == 0
            torch.testing.assert_close(last(host, 3), kept[-1].expand(3, -1, -1))
        moved = kept[layer] + torch.eye(kept[layer].shape[-1])[0].to(kept[layer])
        with starting_at(host, layer, moved):
            assert layer == 0 or not torch.allclose(last(host), kept[-1])
    assert all(starts_at(host, layer) for layer in range(1, host.n_layers))
    assert not starts_at(host, 0)
    assert is_causal(host) == (not host.hooked())


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_model_is_left_as_it_came_also_after_an_exception(backend):
    host = Host(tiny.fresh_host("llama", backend))
    kept = streams(host)
    own = host.model.blocks[0].forward
    host.model.blocks[0].__dict__["forward"] = own  # somebody else's
    before = [dict(block.__dict__) for block in host.model.blocks]

    def interrupt(activation, hook):
        assert host.model.blocks[0].__dict__["forward"] is not own
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), starting_at(host, 1, kept[1]):
        last(host, hooks=[("blocks.1.hook_resid_pre", interrupt)])
    assert [dict(block.__dict__) for block in host.model.blocks] == before
    assert not host.hooked()
    assert not any(point.fwd_hooks for point in host.model.hook_dict.values())
    assert torch.equal(last(host), kept[-1])


@pytest.mark.parametrize("backend", tiny.BACKENDS)
@pytest.mark.parametrize("at", ["blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"])
def test_a_hook_of_the_users_acts_once(backend, at):
    host = Host(tiny.fresh_host("deep-llama", backend))
    plain = last(host)
    host.model.add_hook(at, lambda activation, hook: activation + 1)
    kept = streams(host)
    assert not torch.allclose(kept[-1], plain)
    with starting_at(host, 1, kept[1]):
        assert torch.equal(last(host), kept[-1])
    assert starts_at(host, 1)
    assert not is_causal(host)  # it may count on the prompt's length


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_hooks_before_and_behind_may_talk_past_the_stream(backend):
    """One notes what another puts in: a run without the first would put in what an older run left."""
    host, noted = Host(tiny.fresh_host("deep-llama", backend)), []
    host.model.add_hook("blocks.0.hook_attn_out", lambda activation, hook: noted.append(activation.mean()))
    assert starts_at(host, 1)
    host.model.add_hook("blocks.2.hook_attn_out", lambda activation, hook: activation + noted[-1])
    assert [starts_at(host, layer) for layer in range(3)] == [False] * 3
    kept, ran = streams(host), len(noted)
    with starting_at(host, 1, kept[1]):
        assert torch.equal(last(host), kept[-1])
    assert len(noted) == ran + 1


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_blocks_that_exchange_more_than_the_stream_are_run_whole(backend):
    """The second block adds what the first one left behind: no stream between them has it."""
    host, left = Host(tiny.fresh_host("deep-llama", backend)), []
    first, second = (block.forward for block in host.model.blocks[:2])

    def leaving(*args, **kwargs):
        out = first(*args, **kwargs)
        left[:] = [out if isinstance(out, torch.Tensor) else out[0]]
        return out

    def adding(*args, **kwargs):
        out = second(*args, **kwargs)
        return out + left[0] if isinstance(out, torch.Tensor) else (out[0] + left[0], *out[1:])

    for block, forward in zip(host.model.blocks[:2], (leaving, adding), strict=True):
        block.__dict__["forward"] = forward
    kept, ran = streams(host), counted(host, 0)
    assert not starts_at(host, 1)
    assert not starts_at(host, 2)
    with starting_at(host, 1, kept[1]):
        last(host, hooks=[ran[1]])
    assert ran[0] == [1]


@pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="attention_dir is HookedTransformer's")
def test_bidirectional_attention_is_not_causal():
    host = Host(bidirectional())
    assert starts_at(host, 1)
    assert not is_causal(host)
    host.cfg.attention_dir = "causal"  # the configuration alone is not believed
    assert not is_causal(host)


def bidirectional():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    sizes: Any = {"n_layers": 2, "d_model": 8, "d_head": 4, "n_heads": 2, "d_mlp": 12, "d_vocab": 11, "n_ctx": 9}
    config = HookedTransformerConfig(
        **sizes, act_fn="relu", attention_dir="bidirectional", dtype=torch.float64, device="cpu"
    )
    return HookedTransformer(config).eval()
