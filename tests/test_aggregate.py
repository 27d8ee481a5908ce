"""Tokens joined to words, sentences, lines, roles and named spans: who belongs where, what the numbers are, what is shown."""

import re
from collections import Counter
from itertools import pairwise

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes.results.spans import layout
from report import assert_close
from test_prompts import TEMPLATE, with_tokenizer

TOKENS = ("<s>", " The", " ca", "t", " sat", ".", " It", " pur", "red", "!", "\n", "Dogs", " bark", ".")
TEXT = "".join(TOKENS)


def made(tokens=TOKENS, units="norm", *, probes=False, sites=2, heads=0, seed=0, **meta) -> ls.Scores:
    generator = torch.Generator().manual_seed(seed)
    shape = (sites, len(tokens), *([heads] if heads else []))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = values if units == "signed" else values.abs()
    drawn = torch.rand(4, *shape, generator=generator, dtype=torch.float64) if probes else None
    names = ("hook_embed", *(f"blocks.{n}.hook_resid_post" for n in range(sites - 1)))
    coords = {"site": names, "pos": tuple(range(len(tokens))), **({"head": tuple(range(heads))} if heads else {})}
    facts = {"units": units, "special": [0], "model": "toy", "position": len(tokens) - 1, **meta}
    return ls.Scores(values if drawn is None else drawn.sum(0), tuple(coords), coords, tuple(tokens), facts, drawn)


def by_hand(scores: ls.Scores, groups) -> torch.Tensor:
    """Site by group, one number at a time."""
    rows = []
    for row in scores.values.tolist():
        parts = [[row[i] for i in group] for group in groups]
        rows.append([sum(p**2 for p in some) ** 0.5 if scores.units == "norm" else sum(some) for some in parts])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("units", ["norm", "squared", "signed"])
@pytest.mark.parametrize(
    ("by", "chars", "groups", "names"),
    [
        ("sentence", None, [[0], [1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13]], None),
        ("line", None, [[0], [*range(1, 11)], [11, 12, 13]], None),
        ({"cat": " cat sat", "last": (11, 14)}, None, [[2, 3, 4], [11, 12, 13]], ("cat", "last")),
        ({"rest": ..., "cat": (1, 6)}, None, [[0, *range(6, 14)], [1, 2, 3, 4, 5]], ("rest", "cat")),
        ({"rest": ...}, {"a": (0, 4), "b": (4, 8)}, [[0, *range(4, 14)], [1], [2, 3]], ("rest", "a", "b")),
        (None, {"a": (4, 8)}, [[2, 3]], ("a",)),
    ],
)
def test_spans_are_summed_as_their_units_say(units, by, chars, groups, names):
    scores = made(units=units)
    joined = scores.aggregate(by, chars=chars)
    assert joined.meta["joined"] == groups
    assert_close(joined.values, by_hand(scores, groups), 1e-12)
    assert joined.tokens == (names or tuple("".join(TOKENS[i] for i in group) for group in groups))
    assert joined.coords["pos"] == tuple(group[0] for group in groups)
    assert joined.meta["straddling"] == []
    assert joined.meta["joined_tokens"] == list(TOKENS)
    assert joined.meta["aggregated"] == (by if isinstance(by, str) else "span")


def test_heads_and_probes_are_joined_too():
    scores = made(units="squared", probes=True, heads=3)
    joined = scores.aggregate({"a": (0, 3), "b": (3, 14)})
    expected = torch.stack([scores.probes[:, :, :3].sum(2), scores.probes[:, :, 3:].sum(2)], 2)
    assert_close(joined.probes, expected, 1e-12)
    m = 4
    assert_close(joined.stderr, (m / (m - 1) * (expected - expected.mean(0)).square().sum(0)).sqrt(), 1e-12)
    assert not torch.allclose(joined.stderr[:, 0], scores.stderr[:, :3].square().sum(1).sqrt(), rtol=0.05)


@pytest.mark.parametrize("seed", range(30))
def test_a_token_belongs_to_the_span_with_most_of_its_visible_characters(seed):
    """Against counting each token's characters one by one, on random tokens and random borders."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))  # noqa: E731
    tokens = ["<s>"]
    for _ in range(20):
        tokens.append(" " * draw(0, 2) + "abcdefgh"[: draw(1, 8)])
    text = "".join(tokens[1:])
    cuts = sorted({draw(1, len(text)) for _ in range(3)} | {0, len(text)})
    chars = {f"s{n}": (a, b) for n, (a, b) in enumerate(pairwise(cuts)) if n != 1}
    owner = {i: name for name, (a, b) in chars.items() for i in range(a, b)}
    expected, straddling, at = {name: [] for name in chars}, [], 0
    for i, token in enumerate(tokens[1:], 1):
        mine = Counter(owner.get(at + n) for n, c in enumerate(token) if c != " ")
        at += len(token)
        if len(mine) > 1:
            straddling.append(i)
        most = max(mine.values())
        candidates = [name for name in [*chars, None] if mine.get(name) == most]
        if candidates[0] is not None:
            expected[candidates[0]].append(i)
    scores = made(tokens)
    if not all(expected.values()):
        with pytest.raises(ValueError, match="has no token"):
            scores.aggregate(chars=chars)
        return
    joined = scores.aggregate(chars=chars)
    assert dict(zip(joined.tokens, joined.meta["joined"], strict=True)) == expected
    assert joined.meta["straddling"] == straddling


def test_characters_of_several_bytes_are_whole():
    tokens = ("<s>", "a", " \\xf0\\x9f", "\\x99\\x82", "é", " \\x", "b")
    text, places = layout(tokens[1:])
    assert text == "a 🙂é \\xb"
    assert [text[a:b] for a, b in places] == ["a", " 🙂", "🙂", "é", " \\x", "b"]
    joined = made(tokens).aggregate({"smile": "🙂", "rest": ...}, chars={"é": (3, 4)})
    assert joined.meta["joined"] == [[2, 3], [0, 1, 5, 6], [4]]
    broken = ("\\xf0", "x")  # no text: as it is written
    assert layout(broken) == ("\\xf0x", [(0, 4), (4, 5)])


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (("Mr", ".", "X", "?”", " Yes"), [[0, 1, 2, 3], [4]]),
        (("3", ".", "14", " is", " pi", "."), [[0, 1, 2, 3, 4, 5]]),
        (("Why", "?!", "\n\n", "So", "…", " x"), [[0, 1, 2], [3, 4], [5]]),
        (("你好。", "再见", "。"), [[0], [1, 2]]),
        (("a", ".\nB", "c"), [[0, 1], [2]]),
        (("", "a.", " b"), [[0, 1], [2]]),
    ],
)
def test_where_sentences_end(tokens, expected):
    joined = made(tokens, special=[]).aggregate("sentence")
    assert joined.meta["joined"] == expected
    assert sorted(i for group in joined.meta["joined"] for i in group) == list(range(len(tokens)))


def test_a_token_across_the_end_of_a_sentence_is_listed():
    assert made(("a", ".\nB", "c"), special=[]).aggregate("sentence").meta["straddling"] == [1]


def test_special_tokens_stand_alone_in_lines():
    tokens = ("<s>", "a", "\n", "b", "</s>", "c")
    assert made(tokens, special=[0, 4]).aggregate("line").meta["joined"] == [[0], [1, 2], [3], [4], [5]]


def test_the_spans_that_a_prompt_came_with():
    scores = made(spans={"prompt": [1, 6], "completion": [6, 14]})
    for joined in (scores.aggregate("span"), scores.aggregate(scores.meta["spans"])):
        assert joined.tokens == ("prompt", "completion")
        assert joined.meta["joined"] == [[*range(1, 6)], [*range(6, 14)]]
        assert joined.meta["spans"] == {"prompt": [1, 6], "completion": [6, 14]}
    with pytest.raises(ValueError, match="no named spans of its own"):
        made().aggregate("span")


def test_named_spans_are_picked_by_name():
    joined = made().aggregate({"cat": (1, 4), "rest": ...})
    assert torch.equal(joined.sel(pos="rest").values, joined.values[:, 1])
    assert torch.equal(joined.sel(pos=1).values, joined.values[:, 0])
    with pytest.raises(KeyError, match=r"no label 'dog' .*'cat', 'rest'"):
        joined.sel(pos="dog")
    with pytest.raises(KeyError, match="no label ' horse'"):
        made().sel(pos=" horse")


def test_positions_are_picked_by_the_text_of_their_token():
    scores = made(("<s>", " a", "a", " cat", " dog", " dog"))
    for text, at in ((" a", 1), ("a", 2), (" cat", 3), ("cat", 3), ("<s>", 0)):
        found = scores.sel(pos=text)
        assert torch.equal(found.values, scores.values[:, at])
        assert found.meta["selected"] == {"pos": at}
    with pytest.raises(KeyError, match=r"' dog' stands at 4, 5; write one of these positions, sel\(pos=4\)"):
        scores.sel(pos=" dog")
    with pytest.raises(KeyError, match="no axis 'pos'"):
        scores.sel(pos=1).sel(pos=" cat")


@pytest.mark.parametrize(
    ("by", "chars", "text"),
    [
        ({"a": "zebra"}, None, r"'zebra', stands 0 times"),
        ({"a": "."}, None, r"'.', stands 2 times in the prompt and has to stand once; give more"),
        ({"a": "aa"}, None, r"stands 2 times"),
        ({"a": ""}, None, r"stands 0 times"),
        ({"a": (0, 3), "b": (2, 4)}, None, r"'a' and 'b' overlap at token 2"),
        ({"a": (2, 4), "b": " cat"}, None, r"'a' and 'b' overlap at token 2"),
        ({"a": "cat s", "b": "sat"}, None, r"'a' and 'b' overlap at character 12"),
        ({"a": (3, 3)}, None, r"tokens 3 to 3, and there are 15"),
        ({"a": (-2, 3)}, None, r"tokens -2 to 3"),
        ({"a": (0, 16)}, None, r"0 <= start < stop <= 15"),
        ({"a": (0, 15), "b": ...}, None, r"'b' has no token"),
        ({"a": ..., "b": ...}, None, r"'a' and 'b' are both"),
        ({"a": "T"}, None, r"the span 'a' has no token"),
        ({}, None, "no span to join"),
        ({"a": (0, 2)}, {"a": (0, 3)}, "'a' is named twice"),
        ("word", {"a": (0, 3)}, "leave one of the two out"),
        (None, {"a": (0, 99)}, "characters 0 to 99, and there are 39"),
        ("role", None, "no list of chat messages"),
        ("paragraph", None, "'sentence', 'line', 'role', 'span' and a mapping"),
    ],
)
def test_what_cannot_be_joined(by, chars, text):
    with pytest.raises(ValueError, match=text):
        made((*TOKENS, " aaa")).aggregate(by, chars=chars)


@pytest.mark.wrong_types
@pytest.mark.parametrize("span", [3, (1, 2, 3), (1.0, 2.0), (True, 3), None, {"start": 1}])
def test_a_span_is_a_range_a_text_or_the_rest(span):
    with pytest.raises(TypeError, match=r"the span 'a' is .*; write \(start, stop\)"):
        made().aggregate({"a": span})


def test_what_was_joined_is_not_joined_again():
    with pytest.raises(ValueError, match="were joined by word"):
        made().aggregate().aggregate({"a": (0, 2)})
    with pytest.raises(ValueError, match=r"have the axes \('site',\)"):
        made().sum("pos").aggregate("line")


def test_tables_and_files_have_the_lengths(tmp_path):
    joined = made().aggregate({"cat": (1, 4), "rest": ...})
    frame = joined.to_dataframe()
    assert list(frame.columns) == ["site", "pos", "pos_token", "length", "score"]
    assert [*zip(frame.pos_token, frame.length, strict=True)][:2] == [("cat", 3), ("rest", 11)]
    back = ls.Scores.load(joined.save(tmp_path / "x.safetensors"))
    assert dict(back.meta) == dict(joined.meta)
    assert back.to_dataframe().equals(frame)
    assert "length" not in joined.sel(pos="cat").to_dataframe().columns


def test_a_dataset_has_the_lengths():
    pytest.importorskip("xarray")
    assert made().aggregate({"cat": (1, 4), "rest": ...}).to_xarray().length.values.tolist() == ["3", "11"]


def test_a_target_position_keeps_its_own_token():
    scores = made()
    both = ls.Scores(scores.values, ("target_pos", "pos"), {"target_pos": (3, 5), "pos": scores.coords["pos"]}, TOKENS)
    frame = both.aggregate({"a": (0, 4), "rest": ...}).to_dataframe()
    assert frame.target_pos_token.tolist() == ["t", "t", ".", "."]


def cells(html: str) -> list[str]:
    return re.findall(r'<td style="[^"]*" title="([^"]*)"', html)


def test_every_view_shows_how_many_tokens():
    joined = made(("<s>", "\n", "B.C", " d")).aggregate({"cat": (0, 3)})
    for view in ("layers", "tokens"):
        static = ls.show(joined, view).static
        assert "3× cat" in static
        assert "×: of so many tokens; 1 of 4 tokens are in no span" in static
    assert "3× cat" in ls.show(joined, "layers").document
    words = made().aggregate("word")
    assert "3×" not in ls.show(words).static
    assert "2× cat" in ls.show(words).static
    astride = made().aggregate(chars={"a": (0, 5), "b": (5, 14)})
    assert "partly outside" not in ls.show(astride).static
    assert "partly outside of its span: ␣pur at 7" in ls.show(made().aggregate({"a": "The cat sat. It pu"})).static


def test_plots_show_how_many_tokens():
    pytest.importorskip("matplotlib")
    joined = made().aggregate({"cat": (1, 4), "rest": ...})
    assert [text.get_text() for text in joined.plot("layers").axes[0].get_xticklabels()] == ["3× cat", "11× rest"]
    assert {"3× cat", "11× rest"} <= {text.get_text() for text in joined.plot("tokens").axes[0].texts}


def test_a_span_at_the_beginning_is_no_attention_sink():
    """Position 0 alone may run off the scale or be hidden; a span that begins there may not."""
    values = torch.tensor([[50.0, 50.0, 1.0, 1.0]])
    coords = {"site": ("hook_embed",), "pos": (0, 1, 2, 3)}
    scores = ls.Scores(values, ("site", "pos"), coords, ("<s>", "a", "b", "c"), {"units": "squared"})
    alone = ls.show(scores.aggregate({"bos": (0, 1), "rest": (2, 4)})).static
    assert "position 0 reaches 50" in alone
    span = ls.show(scores.aggregate({"system": (0, 2), "rest": (2, 4)})).static
    assert "position 0" not in span
    assert "100" in re.findall(r"title=\"([^\"]*)\"", span)[0]
    hidden = ls.show(scores.aggregate({"system": (0, 2), "rest": (2, 4)}), first="hide").static
    assert "position 0 is part of the first column and stays" in hidden
    assert "system" in hidden


def test_a_report_shows_the_prompt_and_not_the_names(tmp_path):
    path = ls.report(made().aggregate({"cat": (1, 4), "rest": ...}), tmp_path / "x.html")
    assert re.search(r'<p class="prompt">([^<]*)</p>', path.read_text(encoding="utf-8"))[1].startswith(
        "&lt;s&gt; The cat"
    )


def test_files_of_0_1_0_with_words(tmp_path):
    from lens_scopes.results.old_schemas import from_schema_1

    old = {"meta": {"aggregated": "word", "spans": [[0], [1, 2]]}, "kind": "Scores"}
    assert from_schema_1(old)["meta"] == {"aggregated": "word", "joined": [[0], [1, 2]]}


# Chats

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "The cat"},
    {"role": "assistant", "content": " sat"},
    {"role": "user", "content": "A dog"},
]
ROLES = TEMPLATE.replace("'<|' + m['role'] + '|>'", "'<|user|>' if m['role'] == 'user' else '<|assistant|>'")


def chat(template: str, messages=CHAT) -> ls.Scores:
    tokenizer = tiny.byte_level_tokenizer(chat_template=template)
    return ls.score(with_tokenizer(tokenizer, tiny.BACKENDS[0]), messages, ls.Semantic(7), sites="embed")


@pytest.mark.host
def test_roles_are_the_tokens_of_each_message():
    scores = chat(ROLES)
    joined = scores.aggregate("role")
    assert joined.tokens == ("system", "user 1", "assistant", "user 2", "generation prompt")
    texts = ["".join(scores.tokens[i] for i in span) for span in joined.meta["joined"]]
    heads = ["<|assistant|>", "<|user|>", "<|assistant|>", "<|user|>"]
    assert texts == [*(head + one["content"] for head, one in zip(heads, CHAT, strict=True)), "<|assistant|>"]
    assert sorted(i for span in joined.meta["joined"] for i in span) == list(range(len(scores.tokens)))
    assert_close(joined.values, by_hand(scores, joined.meta["joined"]), 1e-6)


@pytest.mark.host
def test_a_bos_belongs_to_no_role():
    scores = chat("<|endoftext|>" + ROLES, CHAT[1:2])
    assert scores.aggregate("role").tokens == ("<|endoftext|>", "user", "generation prompt")


@pytest.mark.host
@pytest.mark.parametrize(
    "template",
    [
        # The system message goes into the next one, as Gemma's template has it.
        "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] %}{% endif %}<|user|>"
        "{% for m in messages[1:] %}{{ first if loop.first }}{{ m['content'] }}<|assistant|>{% endfor %}",
        # An earlier answer is cut, as templates of models that think aloud do.
        "{% for m in messages %}<|user|>{{ m['content'] if loop.last or m['role'] == 'user' else '' }}{% endfor %}",
        # A part of a chat is refused.
        "{% if messages|length < 4 %}{{ raise_exception('alternate') }}{% endif %}" + ROLES,
        # A message is not where its rendering ends.
        "{% for m in messages|reverse %}<|user|>{{ m['content'] }}{% endfor %}",
    ],
    ids=["moved", "cut", "refused", "reversed"],
)
def test_where_a_template_hides_its_messages_roles_are_an_error(template):
    scores = chat(template)
    assert scores.meta["roles"] == []
    with pytest.raises(ValueError, match="does not say where messages begin"):
        scores.aggregate("role")


@pytest.mark.host
def test_a_text_has_no_roles():
    model = tiny.host("llama", tiny.BACKENDS[0], torch.float32)
    assert "roles" not in ls.score(model, "The cat", ls.Semantic(7)).meta
