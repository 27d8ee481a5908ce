"""Ask a Hugging Face model for the next word of many prompts at once, and count what it gets right."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lens_scopes.demo.draft import Case
from lens_scopes.demo.vocabulary import vocabulary


def next_words(model: nn.Module, prompts: Sequence[Sequence[str]], batch: int = 256) -> list[str]:
    """The model's first choice after each prompt; a prompt is its tokens, "<bos>" included."""
    words = vocabulary()
    ids = {word: index for index, word in enumerate(words)}
    result = []
    for start in range(0, len(prompts), batch):
        rows = [[ids[token] for token in prompt] for prompt in prompts[start : start + batch]]
        last = torch.tensor([len(row) - 1 for row in rows])
        with torch.no_grad():
            # Padding stands to the right of the prompt, and attention looks to the left.
            logits = model(padded(rows)).logits[torch.arange(len(rows)), last]
        result += [words[choice] for choice in logits.argmax(-1).tolist()]
    return result


def accuracy(model: nn.Module, cases: Sequence[Case]) -> float:
    """The share of cases whose answer is the model's first choice."""
    answers = next_words(model, [case.tokens for case in cases])
    return sum(word == case.answer for word, case in zip(answers, cases, strict=True)) / len(cases)


def mean_error(model: nn.Module, cases: Sequence[Case]) -> float:
    """The mean absolute error of the model's first choice in series; a word that is no number counts as 99."""
    answers = next_words(model, [case.tokens for case in cases])
    errors = [
        abs(int(word) - int(case.answer)) if word.isdigit() else 99 for word, case in zip(answers, cases, strict=True)
    ]
    return sum(errors) / len(errors)


def padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "batch pos"]:
    """The rows as one tensor, filled up with 0 to the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
