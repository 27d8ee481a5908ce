"""From text to ids and back: the host's BOS rule, exact ids, chat templates, targets, and what tokens are called."""

import warnings
from dataclasses import replace

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes.calculus.trace import trace
from lens_scopes.host import Host, encode, token_id, token_texts

pytestmark = pytest.mark.host

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def with_tokenizer(tokenizer, backend):
    model = tiny.fresh_host("llama", backend, torch.float32)
    model.set_tokenizer(tokenizer) if hasattr(model, "set_tokenizer") else setattr(model, "tokenizer", tokenizer)
    return model


@pytest.fixture(params=tiny.BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def model(backend):
    return tiny.host("llama", backend, torch.float32)


@pytest.fixture
def sentencepiece(backend):
    return with_tokenizer(tiny.sentencepiece_tokenizer(), backend)


# Prompts


def test_a_string_follows_the_hosts_own_rule(model):
    expected = model.to_tokens("The cat sat")[0].tolist()
    scores = ls.score(model, "The cat sat", ls.Semantic())
    assert scores.meta["token_ids"] == expected
    assert expected[0] == model.tokenizer.bos_token_id
    assert scores.tokens[0] == model.tokenizer.bos_token
    assert "".join(scores.tokens[1:]) == "The cat sat"
    assert scores.meta["special"] == [0]


@pytest.mark.parametrize(
    "make", [list, torch.tensor, lambda ids: torch.tensor([ids]), lambda ids: torch.tensor(ids).int()]
)
def test_ids_are_taken_exactly(model, make):
    ids = tiny.tokens(5)
    scores = ls.score(model, make(ids), ls.Semantic(7))
    assert scores.meta["token_ids"] == ids
    assert torch.equal(scores.values, ls.score(model, ids, ls.Semantic(7)).values)


def test_chat_messages_go_through_the_template(backend):
    model = with_tokenizer(tiny.byte_level_tokenizer(chat_template=TEMPLATE), backend)
    user = {"role": "user", "content": "The cat"}
    scores = ls.score(model, [user], ls.Semantic())
    assert "".join(scores.tokens) == "<|user|>The cat<|assistant|>"
    assert scores.meta["token_ids"].count(model.tokenizer.bos_token_id) == 0, "something was added to the template"
    answered = ls.score(model, [user, {"role": "assistant", "content": " sat"}], ls.Semantic())
    assert "".join(answered.tokens) == "<|user|>The cat<|assistant|> sat"
    assert scores.meta["special"] == [0, len(scores.tokens) - 1]


def test_chat_without_a_template(model):
    with pytest.raises(ValueError, match="no chat template"):
        ls.score(model, [{"role": "user", "content": "a"}], ls.Semantic())


# Targets


def test_a_plain_target(model):
    target = model.tokenizer.encode(" cat", add_special_tokens=False)
    assert len(target) == 1
    scores = ls.score(model, "The cat sat", ls.Semantic(" cat"))
    (found,) = scores.meta["targets"]
    assert (found["id"], found["text"]) == (target[0], " cat")
    p = model(model.to_tokens("The cat sat"))[0, -1].detach().double().softmax(-1)
    assert found["p"] == pytest.approx(float(p[target[0]]), rel=1e-5)
    assert found["rank"] == int((p > p[target[0]]).sum())


def test_sentencepiece_needs_an_anchor(sentencepiece):
    """Encoded plainly, every text there begins with a blank of its own."""
    host = Host(sentencepiece)
    vocabulary = sentencepiece.tokenizer.get_vocab()
    assert token_id(host, "cat") == vocabulary["▁cat"]  # plainly: a word at the beginning
    assert token_id(host, "at") == vocabulary["at"]
    assert len(sentencepiece.tokenizer.encode(" cat", add_special_tokens=False)) == 2
    assert token_id(host, " cat") == vocabulary["▁cat"]
    assert token_id(host, " s") == vocabulary["▁s"]
    with pytest.raises(ValueError, match="'catsat' is not one token"):
        token_id(host, "catsat")


def test_special_tokens_are_targets(model):
    assert token_id(Host(model), "<|user|>") == model.tokenizer.convert_tokens_to_ids("<|user|>")


def test_an_empty_target_is_an_error(model):
    with pytest.raises(ValueError, match="not one token"):
        ls.score(model, "cat", ls.Semantic(""))


# Texts


TEXTS = (
    "The cat sat on the mat.",
    "  two blanks",
    "tab\tand\nnewline\n\n",
    "naïve café",
    "🙂",
    "a🙂b🙃🙂c",
    "日本語",
    "x <b>y</b> & z",
    "’ it’s",
    " ",
)


@pytest.mark.parametrize("text", TEXTS)
def test_joined_tokens_are_the_prompt_byte_level(model, text):
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    tokens = token_texts(Host(model), ids)
    assert len(tokens) == len(ids)
    whole = _unescape("".join(tokens))
    assert whole == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(tokens)


@pytest.mark.parametrize("text", TEXTS)
def test_joined_tokens_are_the_prompt_sentencepiece(sentencepiece, text):
    ids = sentencepiece.tokenizer.encode(text, add_special_tokens=False)
    tokens = token_texts(Host(sentencepiece), ids)
    assert len(tokens) == len(ids)
    assert _unescape("".join(tokens)) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(tokens)


def _unescape(text: str) -> str:
    r"""Bytes written as \xNN back to characters."""
    raw = text.encode("utf-8").decode("latin-1")
    import re

    return re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), raw).encode("latin-1").decode("utf-8")


def test_partial_characters_show_their_bytes(model, sentencepiece):
    for one in (model, sentencepiece):
        ids = one.tokenizer.encode("🙂", add_special_tokens=False)
        tokens = token_texts(Host(one), ids)
        assert "".join(tokens).endswith(r"\xf0\x9f\x99\x82")
    half = ids[:-2]
    assert "".join(token_texts(Host(sentencepiece), half)).endswith(r"\xf0\x9f")


def test_a_replacement_character_of_the_users_own_is_kept(model):
    text = "a\N{REPLACEMENT CHARACTER}b"
    tokens = token_texts(Host(model), model.tokenizer.encode(text, add_special_tokens=False))
    assert _unescape("".join(tokens)) == text


def test_words_at_the_beginning_and_in_the_middle_keep_their_blanks(sentencepiece):
    ids = sentencepiece.tokenizer.encode("cat cat sat")
    tokens = token_texts(Host(sentencepiece), ids)
    assert "".join(tokens) == sentencepiece.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    words = [sentencepiece.tokenizer.convert_tokens_to_ids("▁cat")] * 2
    assert token_texts(Host(sentencepiece), words) == ("cat", " cat"), "the first blank is not in the text"
    with_bos = [sentencepiece.tokenizer.bos_token_id, *words]
    assert "".join(token_texts(Host(sentencepiece), with_bos)) == sentencepiece.tokenizer.decode(
        with_bos, clean_up_tokenization_spaces=False
    )


def test_specials_stand_under_their_names(sentencepiece):
    vocabulary = sentencepiece.tokenizer.get_vocab()
    ids = [vocabulary[piece] for piece in ("<s>", "▁cat", "▁cat", "</s>")]
    assert "".join(token_texts(Host(sentencepiece), ids)).replace(" ", "") == "<s>catcat</s>"
    assert token_texts(Host(sentencepiece), ids)[0] == "<s>"
    assert token_texts(Host(sentencepiece), ids)[-1] == "</s>"


def test_ids_without_a_tokenizer(backend):
    model = tiny.fresh_host("llama", backend, torch.float32)
    model.tokenizer = None
    assert token_texts(Host(model), [3, 14]) == ("#3", "#14")
    assert encode(Host(model), [3, 14]).tolist() == [3, 14]


def test_the_vocabulary_can_be_wider_than_the_tokenizer(backend):
    """Padded embeddings: ids that no text has still have a name."""
    model = with_tokenizer(tiny.byte_level_tokenizer(270), backend)
    known = len(model.tokenizer)
    assert known < tiny.VOCAB
    scores = ls.score(model, [5, known, tiny.VOCAB - 1], ls.Semantic(tiny.VOCAB - 1))
    assert len(scores.tokens) == 3


# What was meant


def test_what_is_unknown_is_no_target():
    """The demo model's tokenizer knows whole words, and has one token for all others."""
    host = Host(ls.demo.load())
    vocabulary = host.tokenizer.get_vocab()
    assert token_id(host, "sees") == vocabulary["sees"]
    assert token_id(host, "<unk>") == vocabulary["<unk>"]  # asked for by name
    for text in ("Wolkenkratzer", "sees the", "Wolken kratzer"):
        with pytest.raises(ValueError, match=r"is not (in the vocabulary|one token) of "):
            token_id(host, text)


def test_a_word_without_its_blank_is_doubted_where_the_other_is_likelier(model):
    """ " cat" and "cat" are two tokens of a byte-level tokenizer."""
    ids = model.tokenizer.encode("The cat sat", add_special_tokens=False)
    state = trace(Host(model), torch.tensor([ids]), [], [len(ids) - 1]).state(0, 0)
    (twin,), (bare,) = (model.tokenizer.encode(text, add_special_tokens=False) for text in (" cat", "cat"))
    likely = replace(state, logits=torch.zeros_like(state.logits).index_fill(0, torch.tensor([twin]), 3.0))
    with pytest.warns(
        UserWarning, match=rf"'cat' \(id {bare}, .* differs by a blank from ' cat' \(id {twin}, p .*likelier"
    ):
        found = ls.Semantic("cat")(likely)
    assert found.notes == {"target": bare}  # what was written is what is explained
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ls.Semantic(" cat")(likely)
        ls.Semantic(bare)(likely)
        ls.Semantic("cat")(replace(state, logits=torch.zeros_like(state.logits)))


def test_a_string_of_several_tokens_is_told_its_twin(model):
    pieces = model.tokenizer.encode("dog", add_special_tokens=False)
    (twin,) = model.tokenizer.encode(" dog", add_special_tokens=False)
    assert len(pieces) > 1
    with pytest.raises(ValueError, match=rf"'dog' is not one token .*; did you mean ' dog' \(id {twin}\)\?"):
        token_id(Host(model), "dog")


def test_meta_says_that_a_text_brought_its_bos(model):
    text = f"{model.tokenizer.bos_token}The cat"
    for prompt, brought in ((text, True), ("The cat", False), (tiny.tokens(4), False)):
        assert ls.score(model, prompt, ls.Semantic(7), sites="embed").meta["own_bos"] is brought
    assert ls.flow(model, text, ls.Semantic(7)).meta["own_bos"]
    predicted = ls.patching.predict(model, "The cat", text, ls.Semantic(7), sites="embed")
    assert predicted.meta["own_bos"]
    several = ls.score_batch(model, ["The cat", text], ls.Semantic(7), sites="embed")
    assert [scores.meta["own_bos"] for scores in several] == [False, True]


def test_a_rendered_template_gets_one_bos(model):
    bos = model.tokenizer.bos_token
    ids = encode(Host(model), f"{bos}The cat")
    assert ids.tolist() == [model.tokenizer.bos_token_id, *model.tokenizer.encode("The cat", add_special_tokens=False)]
