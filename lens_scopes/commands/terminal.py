"""What the commands share: their common options, how they speak and how they fail.

What the user asked for goes to stdout, everything else (errors, what other libraries say while loading) to stderr. An
error is one line and exit code 2.
"""

import codecs
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from enum import Enum
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import lens_scopes as ls
from lens_scopes.scopes.protocol import writable

#: What the package raises for a user's mistake, and what reading and writing files raises.
_ERRORS = (ValueError, TypeError, IndexError, KeyError, RuntimeError, OSError, ImportError)


class Backend(str, Enum):
    """The host classes, and the choice between them."""

    auto = "auto"
    bridge = "bridge"
    hooked = "hooked"


Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A name on the hub or a Hugging Face directory. (default: the demo model)"),
]
WhichBackend = Annotated[
    Backend, typer.Option(help="The host: HookedTransformer, TransformerBridge, or what there is.")
]

_PROMPT = "The text whose next token is explained; - reads it from stdin."
Prompt = Annotated[str, typer.Argument(help=_PROMPT)]
PromptOrFile = Annotated[str | None, typer.Argument(help=f"{_PROMPT} (or: --prompts)")]
Continued = Annotated[
    str | None, typer.Option("--continuation", help="An answer after the prompt: its tokens are explained as one.")
]
Generated = Annotated[int | None, typer.Option("--generate", help="Explain so many tokens that the model itself says.")]
#: The scopes that need no argument can be written on a command line.
Scope = Annotated[
    str | None,
    typer.Option(
        metavar=f"[{'|'.join(writable())}]",
        help="What is explained. (default: semantic; with --continuation or --generate: continuation)",
    ),
]
Target = Annotated[str | None, typer.Option(help="semantic: a token, or #id. (default: what the model predicts)")]
Versus = Annotated[str | None, typer.Option(help="semantic: the token whose logit is subtracted, or #id.")]
Passes = Annotated[
    str | None, typer.Option(help="fisher: how many backward passes to spend, or 'exact'. (default: 16)")
]
Rank = Annotated[int | None, typer.Option(help="fisher: the paper's truncation to this rank instead.")]


def model_of(name: str | None, backend: Backend) -> Any:
    """The model that the options name."""
    return ls.demo.load(backend.value) if name is None else ls.load(name, backend=backend.value)


def text_of(model: Any, prompt: Any, continued: str | None, generated: int | None) -> Any:
    """The prompt that the options make: a text of its own, or one that goes on."""
    whole = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    if continued is not None and generated is not None:
        msg = "--continuation and --generate are two ways to go on after the prompt: give one of them"
        raise ValueError(msg)
    if continued is not None:
        return ls.join(model, whole, continued)
    return whole if generated is None else ls.generate(model, whole, max_new_tokens=generated)


def scope_of(name: str | None, target: str | None, versus: str | None, passes: str | None, rank: int | None) -> Any:
    """The scope that the options describe."""
    options = {"target": target, "versus": versus, "passes": passes, "rank": rank}
    given = {option: value for option, value in options.items() if value is not None}
    known, name = writable(), name or "semantic"
    if name not in known:
        msg = f"--scope is one of {', '.join(map(repr, known))}, got {name!r}"
        raise ValueError(msg)
    kind = known[name]
    takes = [f"--{option}" for option in signature(kind).parameters if option in options]
    wrong = [f"--{option}" for option in given if f"--{option}" not in takes]
    if wrong:
        msg = f"--scope {name} takes {' and '.join(takes) or 'no further options'}, not {', '.join(wrong)}"
        raise ValueError(msg)
    if passes is not None and rank is not None:
        msg = "--passes and --rank are two ways to spend a budget: give one of them"
        raise ValueError(msg)
    return kind(**{option: _READ.get(option, lambda value: value)(value) for option, value in given.items()})


def names_in(text: str) -> list[str]:
    """Names that stand between commas."""
    return [name.strip() for name in text.split(",")]


def token(text: str) -> str | int:
    """#42 is the token with id 42, as tokens are written where there is no tokenizer."""
    return int(text[1:]) if text.startswith("#") and text[1:].isdigit() else text


def integer(text: str, option: str, word: str) -> int:
    """A whole number out of an option that also takes a word."""
    try:
        return int(text)
    except ValueError:
        msg = f"{option} got {text!r}, which is not a number; write a whole number or {word!r}"
        raise ValueError(msg) from None


#: How an option's text becomes a scope's argument.
_READ: dict[str, Callable[[Any], Any]] = {
    "target": token,
    "versus": token,
    "passes": lambda text: None if text == "exact" else integer(text, "--passes", "exact"),
}


def say_as_it_can() -> None:
    """What stdout's encoding lacks is written by other signs, and not an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_SAID)


def say(*parts: Any) -> None:
    """Print to stdout: text as it is, tables to the width of the terminal; what its encoding lacks, by other signs."""
    say_as_it_can()
    console = Console(soft_wrap=False, highlight=False)
    # Without a terminal there is no width to fit: a log or a pipe gets whole lines.
    if not console.is_terminal:
        console.width = 120
    for part in parts:
        console.print(part, markup=False, soft_wrap=isinstance(part, str))


def say_where(*paths: Path | None) -> None:
    """Which files were written; on stderr where stdout is one of them."""
    written = [str(path.resolve()) for path in paths if path is not None and str(path) != "-"]
    if not written:
        return
    text = f"written: {', '.join(written)}"
    if any(str(path) == "-" for path in paths):
        typer.echo(text, err=True)
    else:
        say(text)


#: What tables and texts are written with, one character for one, where a terminal has ASCII alone.
_PLAIN = {
    "█": "#", "▒": "-", "▸": ">", "→": ">", "␣": "_", "·": ".", "…": "~", "“": '"', "”": '"', "’": "'", "±": "~",
    "×": "x", "Δ": "d", "–": "-", "−": "-", "↵": "|", "⇥": "|", "␍": "|", "∅": "0",
}  # fmt: skip
_SAID = "lens_scopes.said"


def _said(failure: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding lacks: something like them, else a question mark."""
    if not isinstance(failure, UnicodeEncodeError):
        raise failure
    lacking = failure.object[failure.start : failure.end]
    return "".join(_PLAIN.get(one, "?") for one in lacking), failure.end


codecs.register_error(_SAID, _said)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Other libraries say on stderr what they say on stdout, and their deprecations are not the user's."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextlib.contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """A user's mistake is one line on stderr, which names the help of its command, and exit code 2."""
    try:
        yield
    except _ERRORS as error:
        if os.environ.get("LENS_SCOPES_TRACEBACK"):
            raise
        # A KeyError prints its text as a Python string.
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        if isinstance(error, OSError) and error.strerror and error.filename:
            text = f"{error.filename}: {error.strerror}"
        text = " ".join(text.split()) or type(error).__name__
        typer.echo(f"lens-scopes: {text} (lens-scopes {command} --help)", err=True)
        raise typer.Exit(2) from None
