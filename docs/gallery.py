"""Writes the tables and pictures of docs/gallery.md: cases of the Jacobian Scopes paper, on a real language model.

    python docs/gallery.py DIRECTORY_OF_GEMMA_3_270M [--only series] [--series 24]

Run it again when the numbers or the plots change. What the page says about them is written by hand, and has to be read
again then. Pillow comes with the dev requirements.
"""

import argparse
import io
import random
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

import lens_scopes as ls
from lens_scopes.evaluate.intervals import bootstrap_interval, interval_text
from lens_scopes.plot import series as draw_series

HERE = Path(__file__).resolve().parent
PAGE, PICTURES = HERE / "gallery.md", HERE / "gallery"
sys.path.insert(0, str(HERE.parent / "benchmarks"))
from tables import markdown, write

# Persona: what the words of a description do to the choice of a party.
PARTIES = ls.Semantic(" Labour", versus=" Conservatives")
UNION = "My uncle is a union man from Liverpool who reads the Guardian. In the election he will vote for the"
SWAPS = {"union man": "bank man", "Liverpool": "Surrey", "Guardian": "Telegraph"}
FRENCH = "French: La petite fille mange une pomme rouge dans le jardin.\nEnglish:"
ENGLISH = " The little girl is eating a red apple in the garden."
#: Each word of the translation that was written for one word of the source.
ALIGNED = {
    "little": "petite", "girl": "fille", "eating": "mange", "red": "rouge", "apple": "pomme", "garden": "jardin",
}  # fmt: skip
PATTERNS = {
    "hot -> cold\nbig -> small\nold -> young\nfast ->": "fast",
    "one -> two\nMonday -> Tuesday\nApril ->": "April",
    "France -> Paris\nItaly -> Rome\nJapan ->": "Japan",
    "cat -> cats\nhouse -> houses\nchild ->": "child",
    "go -> went\nsee -> saw\nbring ->": "bring",
}
# Series: two-digit values with a comma, each digit a token; the first token is <bos>.
STEPS, MOTIF, WIDTH = 40, 3, 3


def by_word(scores: ls.Scores) -> dict[str, float]:
    """Scores at the embedding, by word, without the first token."""
    words = scores.sel(site="embed").aggregate("word")
    return dict(zip(words.tokens[1:], words.values.tolist()[1:], strict=True))


def ranked(scores: ls.Scores, n: int = 5) -> str:
    """The strongest words and their scores."""
    found = sorted(by_word(scores).items(), key=lambda item: -item[1])[:n]
    return ", ".join(f"{word.strip()} {score:.2f}" for word, score in found)


def save(figure: object, name: str) -> None:
    """A small PNG."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight")
    picture = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(PICTURES / f"{name}.png", optimize=True)


def persona(model: object) -> str:
    """Which words of a description choose the party, and what each does when it is exchanged."""
    scores = ls.score(model, UNION, PARTIES)
    save(scores.plot("layers", first="hide"), "persona")
    spans, rows = scores.sel(site="embed").aggregate({old: old for old in SWAPS} | {"rest": ...}), []
    for old, new in SWAPS.items():
        predicted = ls.patching.predict(model, UNION, UNION.replace(old, new), PARTIES, sites="embed")
        whole = predicted.meta["metric"]["clean"] - predicted.meta["metric"]["corrupted"]
        rows.append(
            [
                f"{old} → {new}",
                f"{float(spans.sel(pos=old).values):.2f}",
                *(f"{float(found.sum()):+.2f}" for found in (predicted.gradient, predicted.values)),
                f"{whole:+.2f}",
            ]
        )
    return markdown(["words", "score", "of the change: by the gradient", "two-scale", "measured"], rows)


def translation(model: object) -> str:
    """Every word of a translation, and where it is read from."""
    text = ls.join(model, FRENCH, ENGLISH)
    every = ls.score(model, text, ls.Semantic("next"), position="completion", sites="embed")
    source = every.aggregate("word")
    save(every.sel(site="embed").plot("targets", first="hide"), "translation")
    given = [n for n, word in enumerate(source.tokens) if word.split(".")[0].strip() in ALIGNED.values()]
    rows = []
    for row, target in enumerate(every.meta["targets"]):
        word = target["text"].strip()
        if word not in ALIGNED:
            continue
        found = source.values[row].reshape(-1)[given]
        order = found.argsort(descending=True).tolist()
        names = [source.tokens[given[n]].split(".")[0].strip() for n in order]
        rows.append(
            [word, f"{target['p']:.0%}", ALIGNED[word], str(names.index(ALIGNED[word]) + 1), ", ".join(names[:3])]
        )
    return markdown(["written", "p", "its source word", "rank among the six", "strongest"], rows)


def patterns(model: object) -> str:
    """Questions after examples: what the answer hangs on."""
    rows = []
    for prompt in PATTERNS:
        scores = ls.score(model, prompt, ls.Semantic())
        first = scores.meta["predictions"][0][0]
        rows.append(
            [
                f"`{prompt.encode('unicode_escape').decode()}`",
                f"{first['text'].strip()} {first['p']:.0%}",
                ranked(scores),
            ]
        )
        if prompt == next(iter(PATTERNS)):
            save(scores.plot("layers", first="hide"), "pattern")
    return markdown(["prompt", "prediction", "strongest words, with their scores"], rows)


def lorenz(rng: random.Random, rho: float) -> list[float]:
    """x of the Lorenz system, every 0.12, by Runge-Kutta steps of 0.01, after a transient of 3."""

    def slope(x: float, y: float, z: float) -> tuple[float, float, float]:
        return 10 * (y - x), x * (rho - z) - y, x * y - 8 / 3 * z

    state, every, values = (rng.uniform(-10, 10), rng.uniform(-10, 10), rng.uniform(15, 35)), 12, []
    for step in range(300 + (STEPS + 1) * every):
        if step >= 300 and (step - 300) % every == 0:
            values.append(state[0])
        h, slopes = 0.01, [slope(*state)]
        for part in (h / 2, h / 2, h):
            slopes.append(slope(*(s + part * k for s, k in zip(state, slopes[-1], strict=True))))
        state = tuple(
            s + h / 6 * (a + 2 * b + 2 * c + d) for s, a, b, c, d in zip(state, *slopes, strict=True)
        )  # fmt: skip
    return [50 + 2 * value for value in values]


def logistic(rng: random.Random, rate: float) -> list[float]:
    """x ← r x (1 − x)."""
    values = [rng.uniform(0.1, 0.9)]
    for _ in range(STEPS):
        values.append(rate * values[-1] * (1 - values[-1]))
    return [99 * value for value in values]


def walk(rng: random.Random, spread: float) -> list[float]:
    """A random walk: nothing in the history says more than the last value."""
    values = [rng.uniform(30, 70)]
    for _ in range(STEPS):
        values.append(values[-1] + rng.gauss(0, spread))
    return values


#: A process and its parameter, drawn per series from a range.
PROCESSES: dict[str, tuple[Callable[[random.Random, float], list[float]], float, float]] = {
    "Lorenz, ρ from 26 to 40": (lorenz, 26, 40),
    "logistic map, r from 3.6 to 4": (logistic, 3.6, 4.0),
    "random walk": (walk, 3, 5),
}


@dataclass
class Drawn:
    """A series of two-digit values, what came next, and the stretch of it that looks most like its end."""

    values: list[int]
    following: int

    @property
    def prompt(self) -> str:
        return ",".join(f"{value:02d}" for value in self.values) + ","

    @property
    def successor(self) -> int:
        """The step after the motif that is nearest to the last three values, and does not overlap them."""
        end = self.values[-MOTIF:]
        ends = range(MOTIF, STEPS - MOTIF)  # the step after each stretch of three
        return min(ends, key=lambda at: sum(abs(a - b) for a, b in zip(self.values[at - MOTIF : at], end, strict=True)))


def draw(name: str, seed: int) -> Drawn:
    process, low, high = PROCESSES[name]
    rng = random.Random(f"{name} {seed}")
    values = [min(99, max(0, round(value))) for value in process(rng, rng.uniform(low, high))]
    return Drawn(values[:-1], values[-1])


class TensDigit:
    """The expected first digit of the next value, of the probability that digits have."""

    def __init__(self, model: object) -> None:
        self.digits = torch.tensor([model.to_single_token(str(digit)) for digit in range(10)])

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        chances = logits[0, -1, self.digits.to(logits.device)].softmax(-1)
        return (chances * torch.arange(10).to(chances)).sum()


def influence(scores: ls.Scores) -> torch.Tensor:
    """Share of each step in the sum of squares over all steps."""
    squares = scores.sel(site="embed").values.reshape(-1)[1:].square()
    steps = squares.reshape(STEPS, WIDTH)[:, :2].sum(-1)  # its two digits, without the comma
    return steps / steps.sum()


def moved(model: object, forecast: TensDigit, drawn: Drawn, step: int) -> float:
    """How far the forecast moves, in tens, when a step is moved by twenty towards the middle."""
    values = list(drawn.values)
    values[step] += 20 if values[step] < 50 else -20
    twin = Drawn(values, drawn.following)
    with torch.no_grad():
        before, after = (forecast(model(model.to_tokens(each.prompt))) for each in (drawn, twin))
    return abs(float(after - before))


def parroting(model: object, count: int) -> str:
    """Does the forecast hang on the successor of the motif that looks most like the end?"""
    forecast, rows = TensDigit(model), []
    scope = ls.Metric(forecast, name="expected first digit")
    for name in PROCESSES:
        shares, errors = [], []
        chance = random.Random(name)
        for seed in range(count):
            drawn = draw(name, seed)
            scores = ls.score(model, drawn.prompt, scope, sites="embed")
            share, at = influence(scores), drawn.successor
            others = [n for n in range(MOTIF, STEPS - MOTIF) if n not in range(at - MOTIF, at + 1)]
            rank = sum(float(share[n] > share[at]) for n in others) / len(others)
            other = chance.choice(others)
            shares.append(
                [
                    float(share[-1]),
                    float(share[-MOTIF:].sum()),
                    float(share[at]),
                    float(share[others].mean()),
                    rank,
                    moved(model, forecast, drawn, STEPS - 1),
                    moved(model, forecast, drawn, at),
                    moved(model, forecast, drawn, other),
                ]
            )
            errors.append(abs(scores.meta["notes"][0]["value"] * 10 + 4.5 - drawn.following))
            if seed == 0:
                save(draw_series(drawn.values, share.sqrt().tolist()), name.split(",")[0].split()[0].lower())
        table = torch.tensor(shares, dtype=torch.float64)
        means = table.mean(0).tolist()
        share_ends, moved_ends = (
            bootstrap_interval(table[:, one] - table[:, two]).tolist() for one, two in ((2, 3), (6, 7))
        )
        rows.append(
            [
                name,
                f"{statistics.mean(errors):.1f}",
                *(f"{mean:.1%}" for mean in means[:4]),
                interval_text(*(100 * end for end in share_ends), count, "+.1f"),
                f"{means[4]:.0%}",
                *(f"{mean:.2f}" for mean in means[5:]),
                interval_text(*moved_ends, count, "+.2f"),
            ]
        )
    columns = [
        "process", "error of the forecast", "share of the last value", "of the last three", "of the successor",
        "of another step", "difference, points", "steps above the successor", "moved: last", "successor", "another",
        "difference",
    ]  # fmt: skip
    return markdown(columns, rows)


PARTS = {
    "persona": persona,
    "translation": translation,
    "patterns": patterns,
}


def main() -> None:
    """Write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory that ls.load takes")
    parser.add_argument("--only", choices=[*PARTS, "series"], action="append")
    parser.add_argument("--series", type=int, default=24, help="of each process")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    PICTURES.mkdir(exist_ok=True)
    model = ls.load(options.model)
    for name in options.only or [*PARTS, "series"]:
        text = parroting(model, options.series) if name == "series" else PARTS[name](model)
        print(text)
        write(PAGE, name, text)


if __name__ == "__main__":
    main()
