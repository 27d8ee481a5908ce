"""Text, generate and join: ids that are exactly those that the model saw or would have seen, and spans as positions."""

import pickle

import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes.host import Host, encode, token_texts
from lens_scopes.host.prompts import positions_of
from test_prompts import with_tokenizer

pytestmark = pytest.mark.host

BACKEND = tiny.BACKENDS[-1]
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


def model(architecture="llama"):
    return tiny.host(architecture, BACKEND)


def greedy(m, ids: list[int], n: int) -> list[int]:
    """By the model's own forward, one token at a time."""
    for _ in range(n):
        ids = [*ids, int(m(torch.tensor([ids]))[0, -1].argmax())]
    return ids


def test_a_text_is_its_ids_with_names():
    text = ls.Text(torch.tensor([7, 9, 11]), ["a", "b", "c"], {"prompt": (0, 1), "completion": (1, 3)})
    assert text.ids == (7, 9, 11)
    assert (str(text), len(text), text.part("completion")) == ("abc", 3, "bc")
    assert list(text.predicting("completion")) == [0, 1]
    assert pickle.loads(pickle.dumps(text)) == text
    assert hash(text) == hash(pickle.loads(pickle.dumps(text)))
    assert repr(text) == "Text('abc', 3 tokens, prompt 0:1, completion 1:3)"
    with pytest.raises(TypeError):
        text.spans["x"] = (0, 1)
    with pytest.raises(KeyError, match="no span 'answer' in this text; it has 'prompt', 'completion'"):
        text.part("answer")
    with pytest.raises(ValueError, match=r"token 0 is 'a', and its id 7 is .* made with another tokenizer"):
        encode(Host(model()), text)
    assert encode(Host(model()), ls.Text(text.ids, [f"#{i}" for i in text.ids])).tolist() == [7, 9, 11]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (([1, 2], ["a"]), "one text per id, got 2 ids and 1 tokens"),
        (([1, 2], ["a", "b"], {"x": (1, 3)}), r"'x' is \(1, 3\), the text has 2 tokens"),
        (([1, 2], ["a", "b"], {"x": (1, 1)}), r"'x' is \(1, 1\)"),
        (([1, 2], ["a", "b"], {"all": (0, 1)}), "cannot be called 'all'"),
    ],
)
def test_what_is_no_text_is_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        ls.Text(*arguments)


@pytest.mark.wrong_types
@pytest.mark.parametrize("wrong", [1.0, 1.9, True, "1", None])
def test_only_integers_are_ids_and_ends(wrong):
    """1.9 was 1 in silence, and True the token of that id."""
    with pytest.raises(TypeError, match="a Text's ids are integers; one is an integer, got"):
        ls.Text([7, wrong], ["a", "b"])
    for span in ((0, wrong), (wrong, 2)):
        with pytest.raises(TypeError, match=r"span 'x'.*integer"):
            ls.Text([7, 9], ["a", "b"], {"x": span})


def test_a_span_is_the_positions_that_predict_its_tokens():
    spans = {"prompt": (0, 4), "completion": (4, 6)}
    assert positions_of("completion", 6, spans) == (3, 4)
    assert positions_of("all", 6, spans) == tuple(range(6))
    with pytest.raises(ValueError, match=r"'prompt' begins the text, and nothing predicts .* write range\(3\)"):
        positions_of("prompt", 6, spans)
    with pytest.raises(ValueError, match=r"'all' or a span of the text \('prompt', 'completion'\), got 'answer'"):
        positions_of("answer", 6, spans)
    with pytest.raises(ValueError, match="an index, a list of them or 'all', got 'completion'"):
        positions_of("completion", 6)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_generate_is_the_model_s_own_argmax(architecture, backend):
    m, prompt = tiny.host(architecture, backend), tiny.tokens(5)
    text = ls.generate(m, prompt, max_new_tokens=4)
    assert list(text.ids) == greedy(m, prompt, len(text) - 5)
    assert dict(text.spans) == {"prompt": (0, 5), "completion": (5, len(text))}
    again = ls.generate(m, text, max_new_tokens=2)
    assert dict(again.spans) == {"prompt": (0, len(text)), "completion": (len(text), len(text) + 2)}


def test_generation_ends_after_the_end_token_and_keeps_it():
    m = model("gpt2")
    forced = m.tokenizer.eos_token_id

    def end(logits, hook):
        logits[:, -1] = 0
        logits[:, -1, forced] = 50
        return logits

    plain = ls.generate(m, tiny.tokens(5), max_new_tokens=3)
    handle = m.unembed.register_forward_hook(lambda _, args, out: end(out, None))
    try:
        text = ls.generate(m, tiny.tokens(5), max_new_tokens=3)
    finally:
        handle.remove()
    assert text.ids[5:] == (forced,)
    assert len(plain) == 8


def test_sampling_has_a_seed_of_its_own():
    m, prompt = model(), tiny.tokens(5)
    before = torch.get_rng_state()
    drawn = [ls.generate(m, prompt, max_new_tokens=6, temperature=3.0, seed=seed).ids for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn[0] == drawn[1] != drawn[2]
    logits = m(torch.tensor([prompt]))[0, -1].double()
    generator = torch.Generator().manual_seed(0)
    assert drawn[0][5] == int(torch.multinomial((logits / 3).softmax(-1), 1, generator=generator))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is an integer, got 0; write 1 or more"),
        ({"temperature": -1.0}, "got -1.0; write temperature=0"),
        ({"max_new_tokens": 28}, "write max_new_tokens=27 or less"),
    ],
)
def test_what_cannot_be_generated_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        ls.generate(model(), tiny.tokens(5), **options)


def test_generate_leaves_the_model_and_refuses_nan():
    m = tiny.fresh_host("gpt2", BACKEND)
    with torch.no_grad():
        m.unembed.register_forward_hook(lambda _, args, out: out * float("nan"))
    with pytest.raises((ValueError, RuntimeError), match=r"NaN|reproduce"):
        ls.generate(m, tiny.tokens(5))


def byte_level():
    return with_tokenizer(tiny.byte_level_tokenizer(chat_template=TEMPLATE), BACKEND)


def sentencepiece():
    return with_tokenizer(tiny.sentencepiece_tokenizer(), BACKEND)


@pytest.mark.parametrize(
    ("make", "prompt", "added"),
    [
        (byte_level, "The cat", " sat on"),
        (byte_level, "The cat sat", ". A dog"),
        (sentencepiece, "The", " cat sat"),
        (sentencepiece, "cat", "s"),
        (sentencepiece, "The cat", "sat"),
    ],
)
def test_join_takes_the_ids_of_the_whole(make, prompt, added):
    m = make()
    text = ls.join(m, prompt, added)
    assert list(text.ids) == encode(Host(m), prompt + added).tolist()
    start = len(encode(Host(m), prompt))
    assert dict(text.spans) == {"prompt": (0, start), "completion": (start, len(text))}
    assert text.part("completion") == added
    # The same prompt as its ids, and the continuation as ids: one text, three ways to say it.
    assert ls.join(m, list(text.ids[:start]), list(text.ids[start:])) == text
    assert ls.join(m, prompt, torch.tensor(text.ids[start:])) == text


def test_joining_to_ids_goes_by_their_text():
    m = byte_level()
    ids = encode(Host(m), "The cat").tolist()
    assert ls.join(m, ids, " sat").ids == ls.join(m, "The cat", " sat").ids
    named = ls.Text(ids, token_texts(Host(m), ids), {"subject": (1, 2), "completion": (0, 1)})
    assert set(ls.join(m, named, " sat").spans) == {"subject", "prompt", "completion"}
    apart = [*encode(Host(m), "c").tolist(), *encode(Host(m), "a").tolist()[-1:], *encode(Host(m), "t").tolist()[-1:]]
    with pytest.raises(ValueError, match=r"prompt's ids are not those .* give the continuation as ids"):
        ls.join(m, apart, " sat")
    assert ls.join(m, apart, [9]).ids == (*apart, 9)


def test_a_chat_gets_its_generation_prompt():
    m = byte_level()
    text = ls.join(m, [{"role": "user", "content": "The cat"}], " sat")
    assert str(text) == "<|user|>The cat<|assistant|> sat"
    assert text.part("completion") == " sat"


def test_a_seam_that_is_another_token_is_refused_with_the_ways_out():
    m = sentencepiece()
    with pytest.raises(ValueError, match=r"ends in .* across the seam; move the blank .* 'The' and ' cat'; or give"):
        ls.join(m, "The ", "cat")
    with pytest.raises(ValueError, match=r"\(' ', 'c'\), and the whole has \(' cat',\) across the seam; give") as told:
        ls.join(m, "a c", "at")
    assert "move the blank" not in str(told.value)


def test_what_cannot_be_joined_is_refused():
    m = sentencepiece()
    for empty in ("", []):
        with pytest.raises(ValueError, match="the continuation is empty"):
            ls.join(m, "The", empty)
    with pytest.raises(TypeError, match="text or token ids; an id is an integer, got True"):
        ls.join(m, "The", [True])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        ls.join(m, "The", [10**6])
    with pytest.raises(ValueError, match="context of 32"):
        ls.join(m, "The", list(range(5, 60)))
    demo = ls.demo.load()
    prompt = ls.demo.cases("translation", n=1)[0].prompt
    with pytest.raises(ValueError, match="does not know"):
        ls.join(demo, prompt, " qwertz")
    bos = demo.tokenizer.bos_token
    assert demo.tokenizer.bos_token_id != demo.tokenizer.eos_token_id
    with pytest.raises(ValueError, match="begins with the BOS token"):
        ls.join(demo, prompt, bos)


def test_ids_need_no_tokenizer():
    m = tiny.fresh_host("gpt2", BACKEND)
    m.tokenizer = None
    text = ls.join(m, [7, 9], [11])
    assert text.tokens == ("#7", "#9", "#11")
    with pytest.raises(ValueError, match="needs a tokenizer"):
        ls.join(m, [7, 9], " x")
