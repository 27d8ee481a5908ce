"""The line between two prompts' embeddings: its ends are the prompts' own runs, on every host."""

import pytest
import torch

import tiny
from lens_scopes.calculus.line import Line
from lens_scopes.calculus.trace import trace
from lens_scopes.host import Host
from lens_scopes.sites import EMBED
from report import assert_close

pytestmark = pytest.mark.host

FIRST, SECOND = tiny.tokens(7, seed=0), tiny.tokens(7, seed=1)


@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_a_line_runs_from_one_prompt_to_the_other(pair, monkeypatch):
    host = Host(tiny.host(*pair))
    sites = [EMBED, "blocks.1.hook_mlp_out"]
    first, second = (trace(host, torch.tensor([ids]), sites, [6]) for ids in (FIRST, SECOND))
    line = Line.between(first, second)
    alphas = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    monkeypatch.setattr("lens_scopes.calculus.memory._TOKENS", 2 * len(FIRST))  # in two batches
    found = list(line.runs(alphas, sites, [6]))
    assert [(some.start, some.stop) for some, _ in found] == [(0, 2), (2, 3)]
    at = {name: torch.cat([run.sites[name] for _, run in found]).detach() for name in sites}
    ends = torch.cat([run.y for _, run in found])[:, 0].detach()
    for row, own in ((0, first), (2, second)):
        assert_close(at["blocks.1.hook_mlp_out"][row], own.sites["blocks.1.hook_mlp_out"][0], 2 * tiny.tolerance(*pair))
        assert_close(ends[row], own.y[0, 0], 2 * tiny.tolerance(*pair))
    assert_close(at[EMBED][1], 0.75 * first.sites[EMBED][0] + 0.25 * second.sites[EMBED][0], tiny.tolerance(*pair))
