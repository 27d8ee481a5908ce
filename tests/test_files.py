"""A file that was edited or damaged: an error that names the file and what is wrong, or the result that went in."""

import copy
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import lens_scopes as ls
import tiny
from lens_scopes import evaluate, patching
from shown import flow

pytestmark = pytest.mark.filterwarnings("ignore:.*(have different signs|points of the path miss)")

CLEAN, CORRUPTED = tiny.tokens(5, seed=0), tiny.tokens(5, seed=1)
#: What a key may be changed to; none of it is what stands there, or is equal to it.
OTHER: tuple[Any, ...] = (None, "apples", 3, -1, 1.5, True, [], ["a"], [None], [2**70], {}, {"a": 1})
CACHE: dict[str, Any] = {}


def made(kind: str) -> Any:
    if kind not in CACHE:
        CACHE[kind] = _made(kind)
    return CACHE[kind]


def _made(kind: str) -> Any:
    model = tiny.host("gpt2", tiny.BACKENDS[0], torch.float32)
    if kind == "Scores":
        return ls.score(model, CLEAN, ls.Fisher(4), position=[2, 4])
    if kind == "Flow":
        return ls.flow(model, CLEAN, ls.Fisher(4), edges=[(0, 1), (1, 2)], sources=[1, 3])
    if kind == "Profile":
        return ls.profile([ls.score(model, ids, ls.Semantic(7)) for ids in (CLEAN, CORRUPTED)], "site")
    if kind == "Prediction":
        return patching.predict(model, CLEAN, CORRUPTED, ls.Semantic(7), sites="z")
    if kind == "Comparison":
        both = [verb(model, CLEAN, CORRUPTED, ls.Semantic(7)) for verb in (patching.predict, patching.measure)]
        return patching.compare(*both)
    if kind == "Curve":
        return evaluate.ablation_curve(model, [CLEAN], [torch.arange(5.0)])
    return evaluate.compare_methods(model, [CLEAN, CORRUPTED], ["temperature"], baseline="last_first")


def parts_of(path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return tensors, json.loads(file.metadata()["lens_scopes"])


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """Where every key and entry of a header stands; of long lists the first and the last."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield (*at, key)
            yield from places(one, (*at, key))
    if isinstance(value, list):
        for n in sorted({0, len(value) - 1}) if value else ():
            yield (*at, n)
            yield from places(value[n], (*at, n))


def changed(header: dict[str, Any], at: tuple, to: Any, *, gone: bool = False) -> dict[str, Any]:
    found = copy.deepcopy(header)
    where = found
    for key in at[:-1]:
        where = where[key]
    if gone:
        del where[at[-1]]
    else:
        where[at[-1]] = to
    return found


def damaged(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    for name, one in tensors.items():
        yield f"{name} gone", {key: t for key, t in tensors.items() if key != name}
        yield f"{name} of int32", {**tensors, name: one.to(torch.int32)}
        yield f"{name} of bool", {**tensors, name: one.bool()}
        yield f"{name} with an axis more", {**tensors, name: one[None].contiguous()}
        yield f"{name} with infinity", {**tensors, name: torch.full_like(one, torch.inf)}
        for axis in range(one.ndim):
            yield f"{name}, axis {axis} shorter", {**tensors, name: one.narrow(axis, 0, one.shape[axis] - 1).clone()}
            yield f"{name}, axis {axis} longer", {**tensors, name: torch.cat([one, one], axis)}
            yield f"{name}, axis {axis} gone", {**tensors, name: one.select(axis, 0).clone()}


def same(a: Any, b: Any) -> bool:
    """Whether two results say the same."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(-7), b.nan_to_num(-7))
    if hasattr(a, "__dataclass_fields__"):
        names = [one.name for one in fields(a) if one.name != "replay"]
        return type(a) is type(b) and all(same(getattr(a, name), getattr(b, name)) for name in names)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


#: Parts that older files, or other results of the kind, do not have.
SPARE = {"probes", "skip", "last", "composition", "edges"}


def tried(path, kind: str, what: str) -> str:
    """Loads: refused, with a text; else equal, or a result that works."""
    result, back, refusal = made(kind), None, None
    try:
        back = type(result).load(path)
    except ValueError as failure:
        refusal = failure
    if refusal is None:
        return "same" if same(result, back) else "other"
    assert type(refusal) is ValueError, what
    assert str(path) in str(refusal), what
    assert not isinstance(refusal.__cause__, TypeError | AttributeError), f"{what}: {refusal.__cause__!r}"
    return "refused"


KINDS = ("Scores", "Flow", "Profile", "Prediction", "Comparison", "Curve", "Table")


@pytest.mark.parametrize("kind", KINDS)
def test_what_went_in_comes_out(kind, tmp_path):
    result = made(kind)
    assert same(result, type(result).load(result.save(tmp_path / "x")))


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_a_header_is_of_its_type(kind, tmp_path):
    """Of another type, or null: refused. So is a key that is not there, if every result of the kind has it."""
    path = made(kind).save(tmp_path / "x")
    tensors, header = parts_of(path)
    passed = []
    for at in places(header):
        stood = header
        for key in at:
            stood = stood[key]
        for to in OTHER:
            if to == stood and type(to) is type(stood):
                continue
            save_file(tensors, path, metadata={"lens_scopes": json.dumps(changed(header, at, to))})
            if tried(path, kind, f"{at} = {to!r}") == "other" and not alike(to, stood):
                passed.append((at, to))
        if len(at) == 1 and at != ("tensors",):  # which older files do not have
            save_file(tensors, path, metadata={"lens_scopes": json.dumps(changed(header, at, None, gone=True))})
            assert tried(path, kind, f"{at} gone") == "refused", at
    # A scope's own, and any label; one number for all positions, or one for each; a scope that somebody wrote by hand,
    # or that is about no token, or measures nothing.
    free = ("fields", "notes", "selected", "coverage", *(("position",) if kind == "Profile" else ()))
    left = [(at, to) for at, to in passed if not any(name in at for name in free)]
    unknown = [(at, to) for at, to in left if not (at[-1] == "scope" and to == "apples")]
    assert [
        (at, to) for at, to in unknown if not (to is None and {"targets", "metric", "protocol", "along"} & {*at})
    ] == []


def alike(a: Any, b: Any) -> bool:
    """Whether two values are of one type as far as JSON goes, so that a reader cannot know which of them it was."""
    if isinstance(a, bool) or isinstance(b, bool):
        return isinstance(a, bool) and isinstance(b, bool)
    if isinstance(a, int | float) and isinstance(b, float):
        return True
    return type(a) is type(b)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_has_its_axes(kind, tmp_path):
    path = made(kind).save(tmp_path / "x")
    tensors, header = parts_of(path)
    for what, other in damaged(tensors):
        save_file(other, path, metadata={"lens_scopes": json.dumps(header)})
        name, _, how = what.partition(" ")
        allowed = ("refused", "other") if how == "gone" and name in SPARE else ("refused",)
        assert tried(path, kind, what) in allowed, what


def test_labels_fit_the_tokens(tmp_path):
    path = made("Scores").save(tmp_path / "x")
    tensors, header = parts_of(path)
    for at, to, text in (
        (("coords", "pos"), [4, 3, 2, 1, 0], "the axis 'pos' has labels"),
        (("coords", "pos"), [0, 1, 2, 3], "axis 'pos' has 5 entries, its coords 4 labels"),
        (("coords", "pos"), [0, 1, 2, 3, 3], "which are not one each"),
        (("coords", "target_pos"), [2, 2], "which are not one each"),
        (("meta", "units"), "apples", "'apples' .str., and not one of 'norm'"),
        (("meta",), [], "meta is .. .list., and no dict"),
        (("meta", "positions"), [2, 9], "names the position 9, and there are 5 tokens"),
        (("meta", "token_ids"), [1, 2], "2 ids, and there are 5 tokens"),
        (("meta", "targets"), [], "0 entries, and there are 2 positions"),
        (("dims",), ["target_pos", "site", "site"], "axis 'site' has 5 entries"),
    ):
        save_file(tensors, path, metadata={"lens_scopes": json.dumps(changed(header, at, to))})
        with pytest.raises(ValueError, match=text):
            ls.Scores.load(path)


def test_numbers_that_no_scores_are(tmp_path):
    path = made("Scores").save(tmp_path / "x")
    tensors, header = parts_of(path)
    holes = tensors["values"].clone()
    holes[0, 0, 0] = torch.nan
    save_file({**tensors, "values": holes}, path, metadata={"lens_scopes": json.dumps(header)})
    with pytest.raises(ValueError, match=r"x is .*'values' holds NaN or infinity"):
        ls.Scores.load(path)
    norms = changed(header, ("meta", "units"), "norm")
    save_file({**tensors, "values": -tensors["values"]}, path, metadata={"lens_scopes": json.dumps(norms)})
    with pytest.raises(ValueError, match="holds negative numbers, and its units are norms"):
        ls.Scores.load(path)


def test_nothing_is_saved_that_could_not_be_read(tmp_path):
    scores = made("Scores")
    with pytest.raises(ValueError, match=r"this Scores cannot be saved.*'values' holds NaN"):
        replace(scores, values=scores.values * torch.nan).save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.wrong_types
def test_nor_tensors_of_other_axes(tmp_path):
    with pytest.raises(ValueError, match=r"this Flow cannot be saved.*'heads'"):
        replace(flow(("a", "b")), heads=torch.zeros(3)).save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
