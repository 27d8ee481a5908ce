"""Circuits: the fewest last heads that hold a share of a flow, what goes through on the way, and their JSON."""

import json
from itertools import combinations

import pytest
import torch

import lens_scopes as ls
from shown import flow

WORDS = ("<s>", " the", " cat", " sat", ".")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_no_smaller_set_of_last_heads_holds_the_share(seed, share):
    travel = flow(WORDS, seed=seed)
    parts = travel.last_heads().share.tolist()
    fewest = next(
        count
        for count in range(1, len(parts) + 1)
        if any(sum(some) >= share - 1e-6 for some in combinations(parts, count))
    )
    circuit = travel.circuit(share)
    chosen = [node["last"] for node in circuit.nodes if "last" in node]
    assert len(chosen) == fewest
    assert sum(chosen) == pytest.approx(circuit.share)
    assert circuit.share >= share - 1e-6
    through = travel.top(1000).set_index(["kind", "layer", "head"]).share
    for node in circuit.nodes:
        if node["kind"] == "head":
            assert node["share"] == pytest.approx(through["head", node["layer"], node["head"]])
    left = [
        size for (kind, layer, head), size in through.items() if kind == "head" and (layer, head) not in circuit.heads
    ]
    assert all(abs(size) <= 1 - share + 1e-9 for size in left)
    assert len(circuit.heads) + len(left) == 6


def test_tokens_and_positions_hold_the_share_and_the_file_is_json(tmp_path):
    travel = flow(WORDS)
    circuit = travel.circuit(0.8)
    read = json.loads(circuit.save(tmp_path / "circuit.json").read_text(encoding="utf-8"))
    assert read["nodes"] == list(circuit.nodes)
    assert read["meta"]["scope"]["text"] == "Semantic('<b>')"
    for layer, head in circuit.heads:
        maps = travel.edges[:, layer, head].abs()
        mine = [edge for edge in read["edges"] if edge["node"] == f"head {layer}.{head}"]
        held = sorted((abs(edge["influence"]) for edge in mine), reverse=True)
        assert sum(held) >= 0.8 * float(maps.sum()) - 1e-4
        assert sum(held[:-1]) < 0.8 * float(maps.sum())
        for edge in mine:
            kind = ("value", "pattern").index(edge["kind"])
            assert edge["influence"] == pytest.approx(
                float(travel.edges[kind, layer, head, edge["destination"], edge["source"]])
            )
    for depth, row in enumerate(travel.stream.sum(0)):
        mine = [place for place in read["positions"] if place["depth"] == depth]
        assert sum(abs(place["influence"]) for place in mine) >= 0.8 * float(row.abs().sum()) - 1e-4
        assert all(place["token"] == WORDS[place["pos"]] for place in mine)
    assert repr(circuit).startswith("Circuit(")
    assert flow(WORDS, edges=False).circuit().edges == ()


def test_what_a_circuit_refuses():
    for share in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            flow(WORDS).circuit(share)
    with pytest.raises(ValueError, match=r"before flow\.share"):
        flow(WORDS).share().circuit()


@pytest.mark.host
def test_the_circuit_of_a_lookup_on_the_demo_model():
    """Made heads: 0.0 brings the key to the mark, 1.0 and 1.1 match it; all others patched away change little."""
    model, (case,) = ls.demo.load(), ls.demo.cases("induction", n=1, seed=3)
    scope = ls.Semantic(case.answer, versus=case.versus)
    whole = ls.flow(model, case.prompt, scope, against=case.corrupted, steps=32)
    circuit = whole.circuit(0.9)
    assert sorted(circuit.heads) == [(0, 0), (1, 0), (1, 1)]
    rest = [(layer, head) for layer in range(4) for head in range(4) if (layer, head) not in circuit.heads]
    lost = ls.patching.measure(model, case.corrupted, case.prompt, scope, where=rest, together=True)
    assert abs(float(lost.values)) < 0.1 * float(whole.total)
    assert torch.isfinite(whole.heads).all()
