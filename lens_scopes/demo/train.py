"""Train the demo model from nothing: `python -m lens_scopes.demo.train [--config demo|tiny] [--out DIR]`.

The data are made on the way, one stream of drafts for each kind, seeded. The loss is the cross-entropy of every next
word, with weight 1 where the word is determined by what comes before it, 0.1 where it is not, and 0 where it cannot
be learnt at all. The weights are stored in float16.

Some heads are set up instead of learnt (see `start`); nothing is held fixed afterwards.

Training has two stages. After the first the model is right, and sensitive to everything: a small change of any
embedding, in a direction that no word has, moves its answer. In the second stage noise is added to all embeddings, so
that an answer stays unless a word that it hangs on becomes another; and jumps are penalised on the line between the
embeddings of a prompt and its twin, which noise alone would make: an integral along that line needs a path that can
be followed. The second stage starts from the stored weights of the first (`--harden` does it alone).
"""

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import TextIO

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lens_scopes.demo.answers import padded
from lens_scopes.demo.draft import Draft
from lens_scopes.demo.generators import GENERATORS
from lens_scopes.demo.start import set_up
from lens_scopes.demo.vocabulary import BOS, EOS, PAD, vocabulary

MODEL_DIR = Path(__file__).parent / "model"

# Neighbouring points of a line that is to be integrated by 50 midpoints.
_WINDOW = torch.arange(13) / 50


@dataclass(frozen=True)
class Config:
    """The size of a model and the length of its training.

    `batch` says how many documents of each kind make a step. In the second stage `noise` is the largest standard
    deviation on a coordinate of an embedding, and `gentleness` the weight of what `slopes` exceed `steepest` by.
    """

    name: str
    batch: dict[str, int]
    steps: int
    noisy_steps: int = 0
    noise: float = 0.3
    steepest: float = 6.75
    gentleness: float = 0.5
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 50
    layers: int = 4
    heads: int = 4
    d_model: int = 128
    d_mlp: int = 384
    context: int = 128
    seed: int = 0
    log_every: int = 100


CONFIGS = {
    "demo": Config(
        name="demo",
        batch={"induction": 40, "ioi": 64, "translation": 24, "persona": 12, "series": 24},
        steps=1200,
        noisy_steps=500,
    ),
    "tiny": Config(
        name="tiny",
        batch={"persona": 64},
        steps=200,
        learning_rate=5e-3,
        warmup=20,
        layers=2,
        d_model=48,
        d_mlp=96,
        context=64,
        log_every=50,
    ),
}


def train(config: str | Config, out_dir: str | Path) -> Path:
    """Train a model and write it to `out_dir` as a Hugging Face directory, with its log; return the directory.

    Deterministic on one machine under `config.seed`; the global random state of torch is left as it was.

    Args:
        config: a name in `CONFIGS`, or a `Config`.
        out_dir: where config.json, model.safetensors, the tokenizer's files and train.log are written.
    """
    from lens_scopes.demo.tokenizer import build_tokenizer, save_tokenizer

    config = _config(config)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]), (out / "train.log").open("w") as log:
        torch.manual_seed(config.seed)
        model = build_model(config)
        print(f"config {asdict(config)}", f"parameters {model.num_parameters()}", sep="\n", file=log, flush=True)
        set_up(model)
        _fit(model, config, log, config.steps)
        _store(model, config, out, log)
    save_tokenizer(build_tokenizer(config.context), out)
    return harden(config, out) if config.noisy_steps else out


def harden(config: str | Config, out_dir: str | Path) -> Path:
    """Train on, with noise on the embeddings, from the weights that the first stage stored; return the directory."""
    config = _config(config)
    out = Path(out_dir)
    with torch.random.fork_rng(devices=[]), (out / "train.log").open("a") as log:
        torch.manual_seed(config.seed + 1)
        model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
        later = replace(config, seed=config.seed + 1, learning_rate=config.learning_rate / 2)
        print(f"second stage: {asdict(later)}", file=log, flush=True)
        _fit(model, later, log, config.noisy_steps, noisy=True)
        _store(model, config, out, log)
    return out


def _store(model: LlamaForCausalLM, config: Config, out: Path, log: TextIO) -> None:
    model.eval()
    model.half().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    model.float()
    print("held-out accuracy of the stored weights (series: mean absolute error)", file=log)
    for kind, value in held_out_scores(model, config, n=500, seed=1).items():
        print(f"{kind} {value:.4f}", file=log)


def build_model(config: Config) -> LlamaForCausalLM:
    """An untrained model of the Llama architecture, with a tied embedding."""
    words = vocabulary()
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=config.d_model,
            intermediate_size=config.d_mlp,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.context,
            initializer_range=config.d_model**-0.5,
            tie_word_embeddings=True,
            pad_token_id=words.index(PAD),
            bos_token_id=words.index(BOS),
            eos_token_id=words.index(EOS),
        )
    )


def held_out_scores(model: LlamaForCausalLM, config: Config, n: int, seed: int) -> dict[str, float]:
    """For each kind, the share of n held-out cases answered right; for series the mean absolute error."""
    from lens_scopes.demo import cases
    from lens_scopes.demo.answers import accuracy, mean_error

    measure = {kind: mean_error if kind == "series" else accuracy for kind in config.batch}
    return {kind: measure[kind](model, cases(kind, n=n, seed=seed)) for kind in config.batch}


def _config(config: str | Config) -> Config:
    if isinstance(config, Config):
        return config
    if config not in CONFIGS:
        msg = f"there is no configuration {config!r}; write one of {', '.join(CONFIGS)}, or give a Config"
        raise ValueError(msg)
    return CONFIGS[config]


def _fit(model: LlamaForCausalLM, config: Config, log: TextIO, steps: int, *, noisy: bool = False) -> None:
    from tqdm import trange

    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.warmup, steps))
    streams = {kind: _stream(kind, size, config.seed) for kind, size in config.batch.items()}
    twins = _twins(config.seed)
    begin, running = time.perf_counter(), defaultdict[str, float](float)
    model.train()
    for step in trange(1, steps + 1, desc=f"training {config.name}"):
        for kind, stream in streams.items():
            loss, graded = _loss(model, *next(stream), config.noise if noisy else 0.0)
            (loss / len(streams)).backward()
            running[kind] += graded / config.log_every
        if noisy:
            window = torch.rand(()) * (1 - _WINDOW[-1]) + _WINDOW
            slope = slopes(model, next(twins), window).abs()
            (config.gentleness * (slope - config.steepest).relu().mean()).backward()
            running["steepest"] += slope.max().item() / config.log_every
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % config.log_every == 0 or step == steps:
            losses = " ".join(f"{kind} {value:.4f}" for kind, value in running.items())
            model.eval()
            held_out = " ".join(f"{kind} {value:.3f}" for kind, value in held_out_scores(model, config, 200, 2).items())
            model.train()
            line = f"step {step} seconds {time.perf_counter() - begin:.0f} loss {losses} | held out {held_out}"
            print(line, file=log, flush=True)
            running.clear()


def _rate(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _loss(
    model: LlamaForCausalLM, tokens: Int[Tensor, "batch pos"], weights: Float[Tensor, "batch pos"], noise: float
) -> tuple[Tensor, float]:
    """The weighted cross-entropy, and its mean over the determined words alone.

    With noise, every prompt's embeddings get as much of it as chance says, up to `noise` per coordinate.
    """
    embedded = model.get_input_embeddings()(tokens[:, :-1])
    if noise:
        embedded = embedded + noise * torch.rand(len(tokens), 1, 1) * torch.randn_like(embedded)
    logits = model(inputs_embeds=embedded).logits
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    determined = weights == 1
    return (each * weights).sum() / weights.sum(), each.detach()[determined].mean().item()


def slopes(
    model: LlamaForCausalLM, drafts: Sequence[Draft], points: Float[Tensor, " point"]
) -> Float[Tensor, "draft point-1"]:
    """How fast the answer becomes that of the twin on the line between the two prompts' embeddings.

    The slope of the logit difference from point to point; the points are in units of the line, 0 at the twin, and
    slopes in units of the whole difference. A straight line has 1; a jump is as steep as its points are close.
    """
    ids = {word: index for index, word in enumerate(vocabulary())}
    last = torch.tensor([len(draft.words) for draft in drafts])
    twin, prompt = (
        model.get_input_embeddings()(padded([[ids[BOS], *(ids[word] for word in words)] for words in prompts]))
        for prompts in ([draft.twin for draft in drafts], [draft.words for draft in drafts])
    )
    where = torch.cat([torch.tensor([0.0, 1.0]), points])[:, None, None]
    line = torch.lerp(twin[:, None], prompt[:, None], where)
    states = model.model(inputs_embeds=line.flatten(0, 1)).last_hidden_state.unflatten(0, line.shape[:2])
    states = states[torch.arange(len(drafts)), :, last]
    words = model.lm_head.weight
    direction = words[[ids[draft.answer] for draft in drafts]] - words[[ids[str(draft.versus)] for draft in drafts]]
    difference = torch.einsum("npd,nd->np", states, direction)
    # At least one logit: prompts that the model does not tell apart yet have no difference to divide by.
    whole = (difference[:, 1:2] - difference[:, :1]).clamp(min=1)
    return difference[:, 2:].diff(dim=1) / points.diff() / whole


def _stream(kind: str, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    ids = {word: index for index, word in enumerate(vocabulary())}
    rng = Random(f"train {kind} {seed}")
    while True:
        drafts = [GENERATORS[kind](rng, False) for _ in range(size)]
        tokens = padded([[ids[BOS], *(ids[word] for word in draft.document), ids[EOS]] for draft in drafts])
        weights = torch.zeros(tokens.shape)
        for row, draft in zip(weights, drafts, strict=True):
            row[: len(draft.document) + 2] = torch.tensor(_weights(draft))
        yield tokens, weights


def _twins(seed: int, each: int = 16) -> Iterator[list[Draft]]:
    """Yield drafts of the one kind in which noise alone makes a jump."""
    rng = Random(f"twins {seed}")
    while True:
        yield [GENERATORS["ioi"](rng, False) for _ in range(each)]


def _weights(draft: Draft) -> list[float]:
    weights = [0.1] * (len(draft.document) + 2)
    for index in draft.unknowable:
        weights[index + 1] = 0.0
    for index in draft.graded:
        weights[index + 1] = 1.0
    return weights


def main() -> None:
    """Train a model as the command line says."""
    parser = argparse.ArgumentParser(description="Trains the demo model from nothing.")
    parser.add_argument("--config", default="demo", choices=CONFIGS)
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--harden", action="store_true", help="the second stage alone, from the weights in OUT")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    (harden if args.harden else train)(args.config, args.out)


if __name__ == "__main__":
    main()
