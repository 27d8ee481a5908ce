"""Set up circuits in the weights that training starts from; nothing is held fixed afterwards.

A model of this size finds a dictionary entry only after it has found to look at the words before a word, by itself,
and from that many words alone it did not: within 1500 steps its choice among the values stayed a guess. So the first
layer starts with heads that look back, and the layers after it with heads that look up:

| head | looks | in short |
|---|---|---|
| 0.h | h + 1 words back, and notes that word in a corner of the stream of its own | q and k: position alone |
| 1.0 | from a word to the words that follow the same word | q: this word; k: the note of 0.0. An induction head |
| 1.1 | from a mark to the values whose key is the word before it | q: the note of 0.0; k: the note of 0.1 |
| 2.0 | from the end of a gift away from the giver | q: minus the note of 0.3; k: the word. A name mover |

A head that looks up copies the word that it finds. What is set up is therefore known, and what flow and patching say
of these heads can be held against it.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlamaForCausalLM

# Directions in which a word is noted and compared. Heads that compare words leave the fast rotary planes alone.
_NOTE = 16
_SHARPNESS = 20.0
_MATCH = 2.5
_QUIET = 0.1


def set_up(model: LlamaForCausalLM) -> None:
    """Set up the heads above, those of them that the model has layers and heads for."""
    config: Any = model.config
    # Corners of the stream, all orthogonal: the coordinate that all words share, a sketch of a word, a note per head.
    width = 1 + _NOTE * (1 + config.num_attention_heads)
    _look_back(model)
    if config.num_hidden_layers < 3 or width > config.hidden_size:
        return
    basis = torch.randn(config.hidden_size, width)
    basis[:, 0] = torch.eye(config.hidden_size)[0]
    corners = torch.linalg.qr(basis).Q.T
    sketch, *notes = corners[1:].split(_NOTE)
    with torch.no_grad():
        layers: Any = model.model.layers
        for layer in layers:  # notes are legible only where nothing else is written as loud
            layer.self_attn.o_proj.weight *= _QUIET
            layer.mlp.down_proj.weight *= _QUIET
    for head, note in enumerate(notes):
        _write_down(model, head, sketch, note)
    _look_up(model, 1, 0, query=sketch, key=notes[0])
    _look_up(model, 1, 1, query=notes[0], key=notes[1])
    _look_up(model, 2, 0, query=-notes[-1], key=sketch)


def _look_back(model: LlamaForCausalLM) -> None:
    """Set the first layer up so that its head h looks h + 1 words back, whatever the words are.

    All embeddings get a coordinate in common. Queries and keys read it into the three fastest rotary planes, where the
    keys are turned ahead by h + 1 positions.
    """
    attention: Any = model.model.layers[0].self_attn
    embedding = model.model.embed_tokens.weight
    d_head, planes = attention.head_dim, torch.arange(3)
    angle = model.model.rotary_emb.inv_freq[planes]
    # The norm scales the common coordinate to about sqrt(d_model / 2); this gives the sharpest score that is asked for.
    length = (_SHARPNESS * d_head**0.5 / len(planes) / (embedding.shape[1] / 2)) ** 0.5
    with torch.no_grad():
        embedding[:, 0] = 1.0
        for head in range(model.config.num_attention_heads):
            for weight, ahead in ((attention.q_proj.weight, 0), (attention.k_proj.weight, head + 1)):
                rows = weight[head * d_head : (head + 1) * d_head]
                rows *= 0.1
                rows[planes, 0] = length * torch.cos(ahead * angle)
                rows[planes + d_head // 2, 0] = length * torch.sin(ahead * angle)


def _write_down(
    model: LlamaForCausalLM, head: int, sketch: Float[Tensor, "note d_model"], note: Float[Tensor, "note d_model"]
) -> None:
    """Let a head of the first layer write a sketch of the word that it looks at into its note."""
    attention: Any = model.model.layers[0].self_attn
    first = head * attention.head_dim
    with torch.no_grad():
        attention.v_proj.weight[first : first + _NOTE] = sketch
        attention.o_proj.weight[:, first : first + _NOTE] = 0.4 * note.T


def _look_up(
    model: LlamaForCausalLM,
    layer: int,
    head: int,
    query: Float[Tensor, "note d_model"],
    key: Float[Tensor, "note d_model"],
) -> None:
    """Let a head look where the key equals the query, at any distance, and copy the word that it finds there."""
    attention: Any = model.model.layers[layer].self_attn
    d_head = attention.head_dim
    rows = slice(head * d_head, (head + 1) * d_head)
    # The slower half of the rotary planes: they hardly turn within a prompt.
    slow = torch.cat([torch.arange(d_head // 4, d_head // 2), torch.arange(3 * d_head // 4, d_head)])
    with torch.no_grad():
        for weight, reads in ((attention.q_proj.weight, query), (attention.k_proj.weight, key)):
            weight[rows] *= 0.1
            weight[rows.start + slow] = _MATCH * reads
        copied = torch.linalg.qr(torch.randn(query.shape[1], d_head)).Q
        copied[0] = 0  # what all words share is no word
        attention.v_proj.weight[rows] = copied.T
        attention.o_proj.weight[:, rows] = copied
