"""Several threads on one model get the numbers that one thread gets, and leave the model as it came."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import lens_scopes as ls
import tiny
from report import assert_close

pytestmark = pytest.mark.host

CALLS = 125


def jobs(model):
    """Different calls on one model: each a function that returns its numbers."""
    prompts = [tiny.tokens(5 + n % 4, seed=n) for n in range(8)]
    pairs = [(ids, [*ids[:2], (ids[2] + 1) % tiny.VOCAB, *ids[3:]]) for ids in prompts]
    return [
        lambda: ls.score(model, prompts[0], ls.Semantic(9)).values,
        lambda: ls.score(model, prompts[1], ls.Fisher(4), sites="z").values,
        lambda: ls.score(model, prompts[2], ls.Entropy(), freeze="attention").values,
        lambda: ls.flow(model, prompts[3], ls.Semantic(7)).heads,
        lambda: ls.patching.predict(model, *pairs[4], ls.Semantic(7), sites="embed", method="gradient").values,
        lambda: ls.patching.measure(model, *pairs[5], ls.Semantic(7), sites="embed").values,
        lambda: ls.jacobian(model, prompts[6]).vjp(torch.ones(1, tiny.D_MODEL, dtype=torch.float64)),
        lambda: ls.score(model, prompts[7], ls.Temperature(), position="all").values,
    ]


@pytest.mark.parametrize("workers", [2, 8])
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_threads_get_the_serial_numbers(backend, workers):
    threads_agree(backend, workers, CALLS)


@pytest.mark.slow
@pytest.mark.parametrize("workers", range(2, 9))
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_five_hundred_calls_of_two_to_eight_threads(backend, workers):
    threads_agree(backend, workers, 500)


def threads_agree(backend, workers, calls):
    model = tiny.fresh_host("llama", backend)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    every = jobs(model)
    expected = [job() for job in every]
    torch.set_num_threads(1)
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda n: every[n % len(every)](), range(calls)))
    for n, values in enumerate(found):
        # The order in which gradients are summed, and so the last digit, is autograd's own affair.
        assert_close(values, expected[n % len(every)], 1e-12, f"call {n} of {len(found)}")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(not point.fwd_hooks for point in model.hook_dict.values())


def test_an_open_metric_does_not_lock_others_out():
    """Opened in one thread, used in another, closed in a third."""
    from threading import Thread

    model = tiny.fresh_host("llama", tiny.BACKENDS[0])
    ids = tiny.tokens(5)
    context = ls.patching.metric(model, ids, ls.Temperature())
    found = []
    for work in (
        context.__enter__,
        lambda: found.append(ls.score(model, ids, ls.Semantic(7), sites="embed")),
        lambda: context.__exit__(None, None, None),
        lambda: found.append(ls.score(model, ids, ls.Semantic(7), sites="embed")),
    ):
        thread = Thread(target=work, daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
    assert torch.equal(found[0].values, found[1].values)
    assert all(not point.fwd_hooks for point in model.hook_dict.values())


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_users_own_runs_beside_a_call(backend):
    """They pass through this package's hooks as if those were not there."""
    model = tiny.fresh_host("gpt2", backend, torch.float32)
    ids, done, errors = torch.tensor([tiny.tokens(5)]), threading.Event(), []
    with torch.no_grad():
        expected = model(ids)
    serial = ls.score(model, tiny.tokens(9), ls.Semantic(7)).values

    def user():
        while not done.is_set():
            try:
                if not torch.allclose(model(ids), expected, atol=1e-5):
                    errors.append("other logits")
            except BaseException as error:
                errors.append(repr(error))

    thread = threading.Thread(target=user)
    thread.start()
    try:
        for _ in range(10):
            assert_close(ls.score(model, tiny.tokens(9), ls.Semantic(7)).values, serial, 1e-5)
    finally:
        done.set()
        thread.join()
    assert not errors
