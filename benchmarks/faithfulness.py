"""All methods on all texts: the tables of docs/faithfulness_tables.md.

    python benchmarks/faithfulness.py demo --cases 60        # the embedded model's five kinds
    python benchmarks/faithfulness.py lambada                # stories260K on the LAMBADA prompts of the reference file
    python benchmarks/faithfulness.py golden                 # the authors' protocol against their own numbers
    python benchmarks/faithfulness.py paper                  # Gemma 3 270M beside the models of the paper's table (hours)

The reference data are looked for at LENS_SCOPES_REFERENCE, by default ../shared beside the checkout, the real model at
LENS_SCOPES_REAL_MODEL, where ``make real-model`` puts it. "paper" goes on where it was stopped.
"""

import argparse
import functools
import json
import os
import warnings
from pathlib import Path

import torch
from tables import markdown, write

import lens_scopes as ls
from lens_scopes import evaluate
from lens_scopes.evaluate.intervals import interval_text
from lens_scopes.evaluate.protocol import ask

PAGE = Path(__file__).parents[1] / "docs" / "faithfulness_tables.md"
REFERENCE = Path(os.environ.get("LENS_SCOPES_REFERENCE", Path(__file__).parents[2] / "shared"))
METHODS = tuple(name for name in evaluate.METHODS if name != "fisher")  # the tables have all of it
#: What the second table varies, one at a time.
SETTINGS = {
    "zero": {},
    "without position 0": {"skip": (0,)},
    "mean": {"replace": "mean"},
    "delete": {"replace": "delete"},
    "resample": {"replace": "resample"},
    "sufficiency": {"mode": "sufficiency"},
}
PAPER = {
    "semantic": "semantic",
    "temperature": "temperature",
    "fisher_low_rank_1": "fisher_low_rank_1",
    "fisher_full": "fisher_exact",
    "gradient_x_input_nll": "gradient_x_input_norm",
    "ig_nll_5": "integrated_gradients_norm",
}


# What the paper reports for LAMBADA (arXiv 2601.16407, its published per-prompt files): the area under the mean change of
# log p at 5, 10 and 20 % of the tokens, and its standard error. Rows: model, prompts; columns as in PAPER_METHODS.
PUBLISHED = {
    ("Llama-3.2-1B", 1000): (
        "-0.261",
        "-1.284 ± 0.020",
        "-1.095",
        "-1.298 ± 0.020",
        "-1.317 ± 0.019",
        "-1.320 ± 0.018",
    ),
    ("Llama-3.2-3B", 1000): (
        "-0.229",
        "-1.119 ± 0.019",
        "-0.672",
        "-1.162 ± 0.019",
        "-1.173 ± 0.019",
        "-1.175 ± 0.018",
    ),
    ("Llama-3.1-8B", 200): ("-0.294", "-1.196 ± 0.044", "-1.013", "-1.175 ± 0.043", "-1.145 ± 0.045", "-1.205 ± 0.042"),
    ("Qwen2.5-1.5B", 1000): (
        "-0.349",
        "-1.720 ± 0.022",
        "-1.714",
        "-1.682 ± 0.022",
        "-1.861 ± 0.020",
        "-1.775 ± 0.020",
    ),
    ("Qwen2.5-3B", 1000): ("-0.293", "-1.392 ± 0.019", "-1.386", "-1.336 ± 0.020", "-1.554 ± 0.018", "-1.410 ± 0.018"),
}
PAPER_METHODS = {
    "random": "random",
    "gradient_x_input_norm": "gradient × input",
    "integrated_gradients_norm": "integrated gradients",
    "semantic": "Semantic",
    "temperature": "Temperature",
    "fisher_low_rank_1": "Fisher, rank 1",
}


def remembered(name):
    """The method, computed once per prompt however many settings there are."""

    @functools.cache
    def of(ids, target):
        return evaluate.attribute(questions[ids, target], name)

    questions = {}

    def method(question):
        key = (tuple(question.ids), question.target)
        questions.setdefault(key, question)
        return of(*key)

    return method


def tables(model, texts, name):
    """The full table at zero ablation, and the mean drop in every setting, as Markdown."""
    methods = {name: remembered(name) for name in METHODS}
    with_ranks = evaluate.compare_methods(model, texts, methods, leave_one_out=True)
    found = {
        setting: evaluate.compare_methods(model, texts, methods, **options) for setting, options in SETTINGS.items()
    }
    rows = []
    for m, method in enumerate(METHODS):
        cells = []
        for table in found.values():
            i = table.measures.index("aopc")
            difference, (low, high) = table.differences[m, :, i].mean(), table.difference_intervals[:, m, i]
            star = "*" if table.p[m, i] < 0.05 else ""
            shown = (
                "baseline"
                if method == table.baseline
                else f"{difference:+.2f} {interval_text(float(low), float(high), len(texts), '+.2f')}{star}"
            )
            cells.append(f"{table.means[m, i]:.2f} ({shown})")
        rows.append([method, *cells])
    full = with_ranks.to_markdown(["0.05", "0.1", "0.2", "loo_rank_%"])
    both = f"{full}\n\n{markdown(['method', *found], rows)}"
    write(PAGE, name, f"{len(texts)} prompts.\n\n{both}")
    print(name, full, sep="\n", flush=True)


def demo(cases):
    model = ls.demo.load()
    for kind in ls.demo.KINDS:
        drawn = ls.demo.cases(kind, n=4 * cases if kind == "series" else cases)  # few numbers are met exactly
        right = [case for case in drawn if answers(model, case)]
        print(f"{kind}: {len(right)} of {len(drawn)} are answered right", flush=True)
        tables(model, [case.prompt for case in right], kind)


def answers(model, case):
    with torch.no_grad():
        top = int(model(model.to_tokens(case.prompt))[0, -1].argmax())
    return model.tokenizer.decode([top]).strip() == case.answer


def reference():
    return json.loads((REFERENCE / "golden" / "reference_scores.json").read_text(encoding="utf-8"))


def lambada():
    texts = [entry["tokens"][:-1] for entry in reference()["lambada"]]
    tables(ls.load(REFERENCE / "models" / "stories260K"), texts, "lambada")


def golden():
    model, rows = ls.load(REFERENCE / "models" / "stories260K"), []
    for group in ("stories", "lambada"):
        entries = reference()[group]
        prompts = [entry["tokens"] for entry in entries]
        effects = evaluate.leave_one_out(model, prompts, protocol="paper")
        pairs = zip(effects, entries, strict=True)
        worst = max(float((e.values - torch.tensor(entry["loo_kl"])).abs().max()) for e, entry in pairs)
        rows.append([group, "leave one out (KL)", str(sum(map(len, prompts))), f"{worst:.1e}"])
        questions = ask(model, prompts, "paper")
        for theirs, ours in PAPER.items():
            rankings = [evaluate.attribute(question, ours) for question in questions]
            deltas = evaluate.ablation_curve(model, prompts, rankings, protocol="paper").deltas
            expected = torch.tensor([list(entry["aopc_delta_logprob"][theirs].values()) for entry in entries])
            error = (deltas - expected).abs()
            rows.append([group, ours, str(error.numel()), f"{float(error.max()):.1e}"])
    text = markdown(["texts", "what", "values", "largest difference to the authors' number"], rows)
    write(PAGE, "golden", text)
    print(text)


def paper(prompts):
    """The authors' protocol on their first prompts: the areas beside theirs, and the paired differences."""
    directory = Path(os.environ.get("LENS_SCOPES_REAL_MODEL", "~/.cache/lens_scopes/gemma3-270m")).expanduser()
    model = ls.load(directory)
    lines = (REFERENCE / "data" / "lambada.jsonl").read_text(encoding="utf-8").splitlines()[:prompts]
    texts = [json.loads(line)["prompt"] for line in lines]
    areas = []
    for bos in ([], [model.tokenizer.bos_token_id]):
        ids = [bos + model.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        table = evaluate.compare_methods(
            model,
            ids,
            list(PAPER_METHODS),
            baseline="gradient_x_input_norm",
            protocol="paper",
            resume=f"build/paper-{len(texts)}-{'with' if bos else 'without'}-bos.safetensors",
        )
        five, ten, twenty = (table.values[:, :, table.measures.index(share)] for share in ("0.05", "0.1", "0.2"))
        area = 0.025 * (five + ten) + 0.05 * (ten + twenty)  # [method, prompt]; theirs too is not divided by the width
        cells = []
        for name in PAPER_METHODS:
            mine = area[table.methods.index(name)]
            cells.append(f"{mine.mean():.3f} ± {mine.std(correction=0) / len(mine) ** 0.5:.3f}")
        areas.append([f"**Gemma 3 270M, {'with' if bos else 'without'} `<bos>`**", len(texts), *cells])
    rows = [*areas, *([model, count, *cells] for (model, count), cells in PUBLISHED.items())]
    text = markdown(["model", "prompts", *PAPER_METHODS.values()], rows)
    text += "\n\nGemma with `<bos>`, change of log p:\n\n" + table.to_markdown(["0.05", "0.1", "0.2"])
    write(PAGE, "paper", text)
    print(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("demo", "lambada", "golden", "paper"))
    parser.add_argument("--cases", type=int, default=60, help="per kind of the embedded model")
    parser.add_argument("--prompts", type=int, default=200, help="of LAMBADA, for the paper's table")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments.what == "demo":
        demo(arguments.cases)
    elif arguments.what == "paper":
        paper(arguments.prompts)
    else:
        {"lambada": lambada, "golden": golden}[arguments.what]()


if __name__ == "__main__":
    main()
