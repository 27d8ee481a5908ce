"""One integer and one vector at every door: of Python, numpy or torch they mean the same; a bool is no number."""

import numpy as np
import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes import evaluate, patching
from lens_scopes.results import arguments

BACKEND = tiny.BACKENDS[0]
IDS = tiny.tokens()
OTHER = [*IDS[:2], 9, *IDS[3:]]
#: Ways to write an integer, all of which mean it.
INTEGERS = {
    "numpy": np.int64,
    "small numpy": np.uint8,
    "an array without axes": np.array,
    "a tensor without axes": torch.tensor,
    "a small tensor": lambda n: torch.tensor(n, dtype=torch.uint8),
}
NO_INTEGERS = [
    True,
    np.True_,
    torch.tensor(True),
    1.0,
    np.float64(1),
    torch.tensor(1.0),
    "1",
    None,
    [1],
    torch.tensor([1]),
]


def model():
    return tiny.host("gpt2", BACKEND, torch.float32)


@pytest.mark.parametrize("write", INTEGERS.values(), ids=INTEGERS)
def test_an_integer_is_an_integer(write):
    assert arguments.is_integer(write(7))
    found = arguments.integer(write(7), "a number")
    assert found == 7
    assert type(found) is int


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
def test_what_is_no_integer_is_none(value):
    assert not arguments.is_integer(value)
    with pytest.raises(TypeError, match=r"a number is an integer, got .*; write"):
        arguments.integer(value, "a number")


def test_an_integer_may_have_a_least_value():
    assert arguments.integer(2, "a number", 2) == 2
    with pytest.raises(ValueError, match="got 1; write 2 or more"):
        arguments.integer(1, "a number", 2)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([1, 2.5], torch.float64),
        ((1, 2.5), torch.float64),
        (np.array([1, 2.5]), torch.float64),
        (np.array([1, 2.5], dtype=np.float32), torch.float32),
        (np.array([1, 2.5], dtype=">f4"), torch.float64),
        (np.array([2.5, 1])[::-1], torch.float64),
        (torch.tensor([1, 2.5]), torch.float32),
        (torch.tensor([1, 2.5], requires_grad=True), torch.float32),
        ([torch.tensor(1.0), torch.tensor(2.5)], torch.float32),
    ],
    ids=str,
)
def test_a_vector_is_a_tensor_outside_any_graph(value, dtype):
    found = arguments.vector(value, "a vector", "d")
    assert found.tolist() == [1, 2.5]
    assert found.dtype == dtype or value.dtype == np.dtype(">f4")
    assert not found.requires_grad


@pytest.mark.parametrize(
    "value",
    ["probe", None, [True, False], np.array([True]), torch.tensor([True]), [1j], ["a"], [[1], [1, 2]], {"a": 1}],
    ids=str,
)
def test_what_is_no_vector_is_refused(value):
    with pytest.raises(TypeError, match=r"a vector is a tensor, an array or a list of numbers, got .*; write"):
        arguments.vector(value, "a vector", "d")


def test_arrays_are_copied():
    values = np.zeros(3)
    found = arguments.vector(values, "a vector", "d")
    values[0] = 1
    assert found[0] == 0


#: Every door that takes an integer: what comes out is the same for every way to write it.
DOORS = {
    "target": lambda n: ls.score(model(), IDS, ls.Semantic(n)).values,
    "versus": lambda n: ls.score(model(), IDS, ls.Semantic(7, versus=n)).values,
    "targets": lambda n: ls.score(model(), IDS, ls.Semantic([n, 5]), position=[1, 2]).values,
    "position": lambda n: ls.score(model(), IDS, ls.Semantic(7), position=n).values,
    "positions": lambda n: ls.score(model(), IDS, ls.Semantic(7), position=[0, n]).values,
    "ids": lambda n: ls.score(model(), [n, 5, n], ls.Semantic(7)).values,
    "passes": lambda n: ls.score(model(), IDS, ls.Fisher(n)).values,
    "rank": lambda n: ls.score(model(), IDS, ls.Fisher(rank=n)).values,
    "seed": lambda n: ls.score(model(), IDS, ls.Fisher(4, seed=n)).values,
    "sources": lambda n: ls.flow(model(), IDS, ls.Semantic(7), sources=[0, n]).heads,
    "source": lambda n: ls.flow(model(), IDS, ls.Semantic(7), sources=n).heads,
    "flow": lambda n: ls.flow(model(), IDS, ls.Semantic(7), position=n).heads,
    "row": lambda n: ls.flow(model(), IDS, ls.Semantic(7), sources="each").sel(source=n).heads,
    "top": lambda n: torch.tensor(ls.flow(model(), IDS, ls.Semantic(7)).top(n).influence),
    "paths": lambda n: torch.tensor(ls.flow(model(), IDS, ls.Semantic(7)).paths(n, budget=8).influence),
    "label": lambda n: ls.score(model(), IDS, ls.Semantic(7)).sel(pos=n).values,
    "head": lambda n: ls.score(model(), IDS, ls.Semantic(7), sites="z").sel(head=n).values,
    "jacobian": lambda n: ls.jacobian(model(), IDS, position=n).dense(),
    "svd": lambda n: ls.jacobian(model(), IDS).svd(n).S,
    "predict": lambda n: patching.predict(model(), IDS, OTHER, ls.Semantic(7), position=n).values,
    "steps": lambda n: patching.predict(model(), IDS, OTHER, ls.Semantic(7), steps=n).values,
    "measure": lambda n: patching.measure(model(), IDS, OTHER, ls.Semantic(7), position=n).values,
    "skip": lambda n: evaluate.ablation_curve(model(), [IDS], [list(range(7))], skip=[n]).deltas,
    "corpus": lambda n: (
        evaluate.ablation_curve(model(), [IDS], [list(range(7))], replace="resample", corpus=[n, 5]).deltas
    ),
}


@pytest.mark.wrong_types
@pytest.mark.parametrize("door", DOORS)
def test_integers_at_every_door(door):
    number = 2 if door in ("passes", "rank", "sources", "source", "row", "head", "paths") else 3
    expected = DOORS[door](number)
    for write in (np.int64, torch.tensor):
        torch.testing.assert_close(DOORS[door](write(number)), expected, rtol=0, atol=0, equal_nan=True)
    for wrong in (True, np.True_, torch.tensor(True), 2.0):
        with pytest.raises((TypeError, KeyError)):
            DOORS[door](wrong)


@pytest.mark.host
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_what_the_model_itself_says_is_a_target(backend):
    """The line that everybody writes first."""
    host = tiny.host("gpt2", backend, torch.float32)
    top = host(torch.tensor([IDS]))[0, -1].argmax()
    assert ls.Semantic(top) == ls.Semantic(int(top))
    scores = ls.score(host, torch.tensor(IDS), ls.Semantic(top))
    assert scores.meta["targets"][0]["rank"] == 0
    assert scores.meta["scope"]["text"] == f"Semantic(target={int(top)})"


def test_lists_of_positions_and_ids_are_arrays_and_tensors_too():
    expected = ls.score(model(), IDS, ls.Semantic([7, 5]), position=[1, 3])
    for write in (np.array, torch.tensor, tuple):
        found = ls.score(model(), write(IDS), ls.Semantic(write([7, 5])), position=write([1, 3]))
        assert torch.equal(found.values, expected.values)
        assert found.coords == expected.coords
        assert found.meta == expected.meta
    alone = ls.score(model(), IDS, ls.Semantic(7), position=np.int64(3))
    assert alone.dims == ("site", "pos")


def test_vectors_at_every_door():
    numbers = torch.linspace(-1, 1, tiny.D_MODEL)
    rows = torch.stack([numbers, numbers.flip(0)])
    along = torch.randn(3, 7, tiny.D_MODEL, generator=torch.Generator().manual_seed(0))
    tangents = along[:2]
    jacobian = ls.jacobian(model(), IDS)
    folded = tiny.processed_host("gpt2", BACKEND, torch.float32)
    predicted = patching.predict(model(), IDS, OTHER, ls.Semantic(7))
    where = predicted.values.abs() > predicted.values.abs().median()
    measured = patching.measure(model(), IDS, OTHER, ls.Semantic(7), where=where)
    doors = {
        "direction": lambda write: ls.score(model(), IDS, ls.Direction(write(numbers))).values,
        "along": lambda write: ls.score(model(), IDS, ls.Semantic(7), along=write(along)).values,
        "norm": lambda write: ls.score(folded, IDS, ls.Temperature(write(numbers + 2), write(numbers))).values,
        "scope": lambda write: ls.score(model(), IDS, lambda state: write(numbers)).values,
        "vjp": lambda write: jacobian.vjp(write(rows)),
        "jvp": lambda write: jacobian.jvp(write(tangents)),
        "where": lambda write: patching.measure(model(), IDS, OTHER, ls.Semantic(7), where=write(where)).values,
        "order": lambda write: torch.tensor(
            patching.compare(predicted, measured, orders={"x": write(along[..., 0])}).patches_to()["x"]
        ),
        "ranking": lambda write: evaluate.ablation_curve(model(), [IDS], [write(along[0, :, 0])]).deltas,
        "method": lambda write: (
            evaluate.compare_methods(
                model(), [IDS], {"own": lambda question: write(along[0, :, 0])}, baseline="last_first"
            ).values
        ),
    }
    for name, door in doors.items():
        expected = door(lambda tensor: tensor)
        for write in (lambda tensor: tensor.numpy(), lambda tensor: tensor.tolist()):
            if name in ("where", "vjp", "jvp") and isinstance(write(numbers), list):
                continue  # a mask is no list of numbers, and nobody writes a Jacobian's vectors by hand
            torch.testing.assert_close(door(write), expected, rtol=1e-6, atol=1e-7, equal_nan=True, msg=name)


@pytest.mark.wrong_types
def test_arrays_and_lists_of_cotangents():
    """Annotated as tensors, since they are tensors ever after."""
    rows, weights = torch.linspace(-1, 1, 2 * tiny.D_MODEL).reshape(2, -1), torch.tensor([1.0, 2.0])
    expected = ls.score(model(), IDS, lambda state: ls.Cotangents(rows, weights)).values
    for write in (lambda tensor: tensor.numpy(), lambda tensor: tensor.tolist()):
        found = ls.score(model(), IDS, lambda state, write=write: ls.Cotangents(write(rows), write(weights))).values
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
