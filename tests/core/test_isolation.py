"""Isolation: whatever threads do with adapters, each has its own answers, and the base is always what it was."""

from __future__ import annotations

import _thread
import asyncio
import hashlib
import queue
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import halka
from contract import disturb, ids
from halka import AdapterPool, AdapterStore
from halka.core import AdaptedModel
from halka.core.routing import AdapterNames
from halka.data.tokens import Tokens
from halka.training import TrainConfig, mean_loss, train
from halka.util.errors import HalkaError, UnknownAdapterError
from kinds import KINDS, bare, logits, model_with, train_a_step
from tiny import tiny

KIND = [None, *KINDS, "full"]
REFUSED = r"outside of `with model\.use\(\.\.\.\)` while another thread is.*None for the bare base.*as with a streamer"


def in_a_thread(call: Callable):
    """What `call` returns, or raises, in another thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result(30)


def answer(model: AdaptedModel, rows: AdapterNames, tokens: int = 4) -> Tensor:
    """The last logits of a greedy generation for three short texts."""
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True, "use_cache": True}
    with model.use(rows):
        return model.base.generate(ids(3, 5), max_new_tokens=tokens, min_new_tokens=tokens, **options).logits[-1]


def fingerprint(model: AdaptedModel) -> str:
    """The hash of every byte of the base's parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.base.named_parameters():
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def answers_of_threads(model: AdaptedModel, expected: dict, threads: int, each: int) -> int:
    """Let threads draw rows and answer with them, all at once; returns how many answers were right."""
    start = threading.Barrier(threads)

    def work(seed: int) -> int:
        draw = random.Random(seed)
        start.wait()
        return sum(torch.equal(answer(model, rows), expected[rows]) for rows in draw.choices(list(expected), k=each))

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads)))


@contextmanager
def meanwhile(work: Callable[[int], object]):
    """Within the block another thread calls `work` with 0, 1, 2, …, and does so at least once."""
    stop, counts = threading.Event(), []

    def run() -> None:
        while not counts or not stop.is_set():
            work(len(counts))
            counts.append(1)

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(run)
        try:
            yield counts
        finally:
            stop.set()
            running.result(30)


# ── many threads ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_answer_of_many_threads_is_that_of_one_thread_alone():
    """Adapters of all families, alone and mixed, while another thread adds, uses, replaces and removes its own."""
    model = model_with(*KINDS, "full")
    mixed = [
        ("lora", None, "prefix"),
        ("ia3", "prompt", "parallel"),
        ("head", "lora", "dora"),
        ("bitfit", "serial", None),
    ]
    expected = {rows: answer(model, rows) for rows in (*KIND, *mixed)}
    distinct = list(expected.values())
    assert all(not torch.equal(one, two) for i, one in enumerate(distinct) for two in distinct[:i])
    untouched = fingerprint(model)

    def replace(i: int) -> None:
        name, method = f"mine-{i % 3}", [*KINDS.values(), halka.Full()][i % (len(KINDS) + 1)]
        if name in model.adapters:
            model.remove(name)
        model.add(name, method, seed=i)
        assert logits(model, name).isfinite().all()
        if i % 5 == 0:
            model.remove(name)

    with meanwhile(replace) as replaced:
        assert answers_of_threads(model, expected, threads=16, each=20) == 16 * 20
    assert replaced
    assert fingerprint(model) == untouched
    assert torch.equal(bare(model), in_a_thread(lambda: bare(model)))


def test_every_answer_is_right_while_a_small_pool_reads_and_evicts(tmp_path):
    made, store = model_with("lora", "ia3", "prefix", "parallel", "head"), AdapterStore(tmp_path)
    names = list(made.adapters)
    expected = {rows: answer(made, rows) for rows in (None, *names, ("lora", None, "ia3"), ("prefix", "lora", "lora"))}
    for name in names:
        store.save(made, name)
    size = {name: 4 * made.adapter(name).count() for name in names}
    model = halka.adapt(tiny())
    pool = AdapterPool(model, store, budget=max(*size.values(), size["lora"] + max(size["ia3"], size["prefix"])))

    def disturb_the_pool(i: int) -> None:
        name = names[i % len(names)]
        (pool.forget, model.adapter, lambda name: pool.ready([name]))[i % 3](name)
        assert pool.bytes >= 0
        time.sleep(0.002)

    with meanwhile(disturb_the_pool):
        assert answers_of_threads(model, expected, threads=16, each=12) == 16 * 12
    assert pool.loads > 3 * len(names)
    assert pool.sizes.keys() == model.adapters.keys()
    assert pool.bytes <= pool.budget < sum(size.values())


def test_a_plain_pass_beside_other_threads_blocks_is_refused_or_right():
    """Also one that was under way when the block began, whether the adapter acts in a layer, a weight or attention."""
    names = ["lora", "head", "parallel", "prefix", "full"]
    model = model_with(*names)
    expected, untouched = {name: logits(model, name) for name in names}, bare(model)
    found = []

    def plainly(i: int) -> None:
        try:
            found.append(torch.equal(bare(model), untouched))
        except RuntimeError as refused:
            assert "outside of `with model.use(...)`" in str(refused)  # noqa: PT017

    with meanwhile(plainly):
        for _ in range(60):
            for name in names:
                assert torch.equal(logits(model, name), expected[name]), name
                time.sleep(0.001)
    plainly(0)
    assert found
    assert all(found)


@pytest.mark.parametrize("kind", ["lora", "head", "parallel", "prefix", "full", "merge", None])
def test_a_pass_that_another_threads_block_overtakes_is_refused(kind):
    """At the latest when it ends, even if the block has ended before."""
    model = model_with("lora", *({kind} - {None, "merge", "lora"}))
    within = model.base.get_submodule("model.layers.0.mlp.act_fn")

    def overtake(*_) -> None:
        handle.remove()
        in_a_thread(turn)

    def turn() -> None:
        if kind == "merge":
            model.merge("lora")
            model.unmerge()
        else:
            logits(model, kind)

    handle = within.register_forward_hook(overtake)
    with pytest.raises(RuntimeError, match=REFUSED):
        bare(model)
    assert bare(model).isfinite().all()


# ── a pass outside of any block ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rows", [*KIND, ["lora", None, "prefix"], ["full"] * 3, [None] * 3])
def test_a_plain_pass_in_another_thread_is_refused_before_anything_is_computed(rows):
    named = [rows] if isinstance(rows, str) else ["lora", "prefix", "full"]
    model = model_with(*named)
    expected, untouched, computed = logits(model, rows), bare(model), []
    with torch.no_grad(), model.use(rows):
        handle = model.base.get_input_embeddings().register_forward_pre_hook(lambda *_: computed.append(1))
        standing = [parameter for module in model.base.modules() for parameter in module._parameters.values()]
        for call in (lambda: bare(model), lambda: model.base.generate(ids(), max_new_tokens=2)):
            with pytest.raises(RuntimeError, match=REFUSED):
                in_a_thread(call)
        with model.use(None), pytest.raises(RuntimeError, match=REFUSED):
            in_a_thread(lambda: bare(model))
        with model.own_weights(), pytest.raises(RuntimeError, match=REFUSED):
            in_a_thread(lambda: bare(model))
        assert not computed
        handle.remove()
        now = [parameter for module in model.base.modules() for parameter in module._parameters.values()]
        assert all(one is two for one, two in zip(now, standing, strict=True))
        assert torch.equal(model.base(ids()).logits, expected)
    assert torch.equal(in_a_thread(lambda: bare(model)), untouched)


def test_a_plain_pass_is_refused_on_a_base_without_adapters_too_and_leaves_no_hooks():
    model = halka.adapt(tiny())
    with model.use(None), pytest.raises(RuntimeError, match=REFUSED):
        in_a_thread(lambda: bare(model))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.base.modules())
    assert torch.equal(in_a_thread(lambda: bare(model)), bare(model))


def test_a_merged_adapter_without_a_block_serves_every_thread_unless_it_is_set_aside():
    model = model_with("lora", "ia3")
    model.merge("lora")
    merged = bare(model)
    assert torch.equal(in_a_thread(lambda: bare(model)), merged)
    with model.own_weights(), pytest.raises(RuntimeError, match=REFUSED):
        in_a_thread(lambda: bare(model))
    model.add("more", halka.Full())
    assert torch.equal(in_a_thread(lambda: bare(model)), merged)
    model.unmerge()
    with model.own_weights():  # nothing to set aside
        in_a_thread(lambda: bare(model))


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_no_plain_pass_runs_while_virtual_tokens_are_read(kind):
    """The base computes attention in another way meanwhile."""
    model = halka.adapt(tiny())

    @dataclass(frozen=True)
    class Watched(type(KINDS[kind])):
        def build(self, target):
            with pytest.raises(RuntimeError, match=REFUSED):
                in_a_thread(lambda: bare(model))
            return super().build(target)

    model.add("new", Watched(**vars(KINDS[kind])))
    in_a_thread(lambda: bare(model))


def test_a_failing_block_or_addition_gives_the_turn_back():
    model = model_with("lora")
    with pytest.raises(KeyError), model.use("lora"):
        raise KeyError
    with pytest.raises(ValueError, match="there is an adapter 'lora' already"):
        model.add("lora", halka.Prefix())
    with pytest.raises(ValueError, match="no adapter 'strange'"), model.use("strange"):
        pass
    assert torch.equal(in_a_thread(lambda: bare(model)), bare(model))


def test_a_streamer_works_when_the_block_is_in_its_thread():
    model = model_with("lora")

    class Streamer(queue.Queue):
        def end(self) -> None:
            self.put(None)

    def stream(block: Callable) -> list[int]:
        streamer = Streamer()

        def generate() -> None:
            try:
                with block():
                    model.base.generate(ids(1, 5), max_new_tokens=4, min_new_tokens=4, streamer=streamer)
            finally:
                streamer.end()

        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(generate)
            heard = [token for tokens in iter(streamer.get, None) for token in tokens.flatten().tolist()]
            running.result(30)
        return heard

    with model.use("lora"):
        expected = model.base.generate(ids(1, 5), max_new_tokens=4, min_new_tokens=4)[0].tolist()
    assert stream(lambda: model.use("lora")) == expected
    with model.use("lora"), pytest.raises(RuntimeError, match=REFUSED):
        stream(nullcontext)


@pytest.mark.parametrize("kind", ["lora", "parallel", "prefix", "full"])
@pytest.mark.parametrize("backward_in", ["this thread", "another"])
def test_a_pass_that_backward_computes_again_is_let_through(kind, backward_in):
    """Autograd does so in a thread of its own for each GPU."""
    model = model_with(kind)

    def as_autograd_does(work: Callable) -> None:
        """In a thread that Python did not start."""
        done: list[BaseException | None] = []

        def run() -> None:
            try:
                done.append(work())
            except BaseException as error:
                done.append(error)

        _thread.start_new_thread(run, ())
        while not done:
            time.sleep(0.001)
        if done[0] is not None:
            raise done[0]

    def gradients(call: Callable, backward: Callable) -> list[Tensor]:
        with model.use(kind):
            loss = call(lambda: model.base(ids(), labels=ids()).loss)
            backward(loss.backward)
        found = [parameter.grad.clone() for parameter in model.parameters(kind)]
        for parameter in model.parameters(kind):
            parameter.grad = None
        return found

    expected = gradients(lambda loss: loss(), lambda backward: backward())
    again = gradients(
        lambda loss: checkpoint(loss, use_reentrant=False),
        as_autograd_does if backward_in == "another" else lambda backward: backward(),
    )
    assert all(torch.equal(one, two) for one, two in zip(again, expected, strict=True))


def test_a_backward_pass_beside_another_threads_block_is_refused():
    """It would compute parts of its forward pass once more, with that thread's adapter."""
    model = model_with("lora", "ia3")
    with model.use("ia3"):
        loss = checkpoint(lambda: model.base(ids(), labels=ids()).loss, use_reentrant=False)
    with ThreadPoolExecutor(1) as threads, model.use("lora"):
        error = threads.submit(loss.backward).exception(30)
    assert "Wrap the call in `with model.use(...)`" in str(error)


@pytest.mark.parametrize("kind", ["bitfit", "lora"])
def test_a_layer_that_backward_computes_once_more_behind_its_block_is_refused(kind):
    """BitFit's gradients would be wrong: its edit keeps no tensors for backward, by whose number torch sees others."""
    model = model_with(kind)
    model.base.train()
    model.base.activation_checkpointing_enable()
    with model.use(kind):
        loss = model.base(ids(), labels=ids(), use_cache=False).loss
    with pytest.raises(HalkaError, match="Call backward within the block"):
        loss.backward()
    with model.use(kind):
        model.base(ids(), labels=ids(), use_cache=False).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters(kind))


def test_coroutines_that_await_within_a_block_are_refused():
    model = model_with("lora", "ia3")

    async def answers(name: str, within: asyncio.Event, other: asyncio.Event) -> Tensor:
        with model.use(name):
            within.set()
            await other.wait()
            return model.base(ids()).logits

    async def both() -> list:
        one, two = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(answers("lora", one, two))
        await one.wait()
        try:
            second = await asyncio.gather(answers("ia3", asyncio.Event(), one), return_exceptions=True)
            plain = await asyncio.gather(asyncio.create_task(plain_pass()), return_exceptions=True)
        finally:
            two.set()
        return [await first, *second, *plain]

    async def plain_pass() -> Tensor:
        return model.base(ids()).logits

    first, second, plain = asyncio.run(both())
    assert torch.equal(first, logits(model, "lora"))
    assert "another coroutine of this thread" in str(second)
    assert "Wrap the call in `with model.use(...)`" in str(plain)
    with model.use("lora"):  # a loop within a block is one flow with it
        assert torch.equal(asyncio.run(plain_pass()), first)


def test_blocks_that_end_in_another_order_are_an_error():
    model = model_with("lora", "ia3")

    def steps(name: str):
        with model.use(name):
            yield
            yield

    one, two = steps("lora"), steps("ia3")
    next(one), next(two)
    with pytest.raises(RuntimeError, match="block of `use\\('lora'\\)` ended while another's"):
        one.close()
    with pytest.raises(RuntimeError, match="ia3"):
        two.close()
    assert torch.equal(bare(model), logits(model, None))


def test_a_pass_that_begins_with_what_is_merged_and_removed_meanwhile_is_refused():
    model = model_with("lora")
    model.merge("lora")
    inside, go_on = threading.Event(), threading.Event()

    def wait(*_) -> None:
        inside.set()
        go_on.wait(30)

    handle = model.base.get_decoder().layers[0].register_forward_pre_hook(wait)
    with ThreadPoolExecutor(1) as threads:
        passing = threads.submit(lambda: bare(model))
        assert inside.wait(30)
        model.remove("lora")
        go_on.set()
        error = passing.exception(30)
    handle.remove()
    assert "another thread" in str(error)
    assert torch.isfinite(bare(model)).all()


def test_training_changes_no_adapter_within_another_threads_block():
    model = model_with("lora")
    steps = train(model, "lora", [Tokens([5, 6, 7, 8], [True] * 4)] * 4, TrainConfig(lr=0.1, steps=10**6, batch_size=2))
    next(steps)  # by now all is imported
    failed = threading.Event()

    def learn(i: int) -> None:
        try:
            next(steps)
        except BaseException:
            failed.set()
            raise

    with meanwhile(learn) as learned:
        rounds = 0
        while rounds < 40 or (len(learned) < 2 and not failed.is_set()):
            rounds += 1
            with model.use("lora"), torch.no_grad():
                first = model.base(ids()).logits
                time.sleep(0.002)
                assert torch.equal(model.base(ids()).logits, first)
            time.sleep(0.005)  # a lock that is taken again at once is seldom given to others
    assert len(learned) > 1


def test_saving_to_a_store_within_a_block_and_beside_one_goes_on(tmp_path):
    model, store = model_with("lora", "ia3"), AdapterStore(tmp_path)

    def save_beside(name: str) -> None:
        for _ in range(5):
            store.save(model, name, stored_as="same")

    def save_within(name: str) -> None:
        for _ in range(5):
            with model.use(name):
                time.sleep(0.005)
                store.save(model, name, stored_as="same")

    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(save_beside, "lora"), threads.submit(save_within, "ia3")]
        for each in both:
            each.result(30)
    assert store.versions("same") == [*range(1, 11)]


# ── changes by several threads ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("change", ["add", "remove"])
def test_of_two_threads_that_make_the_same_change_one_is_refused(change):
    model = model_with("lora")
    changes = {"add": lambda: model.add("new", halka.LoRA()), "remove": lambda: model.remove("lora")}
    with ThreadPoolExecutor(2) as threads:
        with model.use(None):
            both = [threads.submit(changes[change]) for _ in range(2)]
            time.sleep(0.2)
        refused = [error for each in both if (error := each.exception(30))]
    assert [str(each)[:20] for each in refused] in (["there is an adapter "], ["no adapter 'lora' he"])
    assert set(model.adapters) == ({"lora", "new"} if change == "add" else set())


def test_merging_waits_for_a_removal_and_then_finds_nothing():
    model = model_with("lora")
    with ThreadPoolExecutor(1) as threads:
        with model.lock:
            merging = threads.submit(lambda: model.merge("lora"))
            time.sleep(0.2)
            model.remove("lora")
        with pytest.raises(ValueError, match="no adapter 'lora'"):
            merging.result(30)
    assert model.merged is None


def test_an_adapter_that_is_loaded_is_used_by_no_thread_before_its_weights_are_there(tmp_path):
    model = model_with("lora")
    expected = logits(model, "lora")
    halka.save(model, "lora", tmp_path / "loaded")

    class Slow(TorchFunctionMode):
        """Lets other threads run before each tensor operation of this one."""

        def __torch_function__(self, function, types, args=(), kwargs=None):
            time.sleep(0.0005)
            return function(*args, **(kwargs or {}))

    def first_answer() -> Tensor:
        while True:
            with suppress(UnknownAdapterError):
                return logits(model, "loaded")

    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(first_answer)
        with Slow():
            halka.load(model, tmp_path / "loaded")
        assert torch.equal(answer.result(30), expected)


def test_what_is_in_use_around_own_weights_stays_and_nothing_is_merged_there():
    model = model_with("lora", "ia3")
    with model.use("lora"), model.own_weights():
        with pytest.raises(ValueError, match="'lora' is in use"):
            model.remove("lora")
        with pytest.raises(ValueError, match="merging needs an idle base"):
            model.merge("ia3")
    model.merge("lora")
    with model.own_weights(), pytest.raises(ValueError, match="is in use: leave `use` first"):
        model.unmerge()
    model.unmerge()
    with model.use(None), pytest.raises(ValueError, match="merging needs an idle base"):
        model.merge("lora")


@pytest.mark.parametrize("outer", ["full", "prefix", "lora"])
@pytest.mark.parametrize("inner", ["full", "prefix"])
def test_a_block_within_own_weights_leaves_the_outer_one_as_it_was(outer, inner):
    model = model_with("lora", outer) if outer != "lora" else model_with("lora")
    model.add("inner", KINDS.get(inner) or halka.Full(), seed=9)
    disturb(model, "inner", seed=9, by=0.01)
    expected, alone, untouched = logits(model, outer), logits(model, "inner"), bare(model)
    with torch.no_grad(), model.use(outer):
        with model.own_weights():
            torch.testing.assert_close(logits(model, "inner"), alone, rtol=0, atol=1e-5)
        assert torch.equal(model.base(ids()).logits, expected)
    assert model.base.config._attn_implementation == "sdpa"
    assert torch.equal(bare(model), untouched)


def in_a_thread_meanwhile(work) -> threading.Thread:
    """Start `work` in another thread, and give it time to come as far as it can."""
    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    return thread


def test_own_weights_of_a_base_that_was_merged_while_they_waited_are_no_other_threads():
    model = model_with("lora")
    entered, leave = threading.Event(), threading.Event()

    def use_own_weights() -> None:
        with model.own_weights():
            entered.set()
            leave.wait(30)

    with model.lock:
        thread = in_a_thread_meanwhile(use_own_weights)
        model.merge("lora")
    try:
        assert entered.wait(30)
        with pytest.raises(RuntimeError, match=REFUSED):
            bare(model)
    finally:
        leave.set()
        thread.join(30)


@pytest.mark.parametrize("change", ["add", "remove", "merge", "unmerge"])
def test_other_threads_wait_with_their_changes(change):
    model = model_with("lora", "ia3")
    expected = logits(model, "lora")
    changes = {
        "add": lambda: model.add("new", halka.Full()),
        "remove": lambda: model.remove("lora"),
        "merge": lambda: model.merge("ia3"),
        "unmerge": model.unmerge,
    }
    with torch.no_grad(), model.use("lora"):
        thread = in_a_thread_meanwhile(changes[change])
        assert thread.is_alive()
        assert torch.equal(model.base(ids()).logits, expected)
    thread.join(5)
    assert not thread.is_alive()


def test_threads_leave_the_base_its_own_attention():
    model = model_with("prefix", "lora")
    expected = bare(model)
    items = [Tokens(row.tolist(), [True] * 9) for row in ids()]
    with model.use("prefix"):
        thread = in_a_thread_meanwhile(lambda: mean_loss(model, "lora", items))
    thread.join(5)
    assert model.base.config._attn_implementation == "sdpa"
    assert torch.equal(bare(model), expected)


# ── whatever happens ────────────────────────────────────────────────────────────────────────────────────────────────


class Wrong(Exception):
    pass


def act(model: AdaptedModel, action: tuple) -> None:
    match action:
        case ("add", name, kind):
            model.add(name, KINDS.get(kind) or halka.Full())
            disturb(model, name)
        case ("add to nothing", name):
            model.add(name, halka.Bottleneck(targets=()))
        case ("train", name, steps):
            for _ in range(steps):
                train_a_step(model, name)
        case ("merge", name):
            model.merge(name)
        case ("remove", name):
            model.remove(name)
        case ("use", names) | ("rows", names):
            assert logits(model, names).isfinite().all()
        case ("own", name):
            with model.use(name), model.own_weights():
                logits(model, name)
        case ("fail", name):
            with model.use(name):
                raise Wrong
        case ("fail midway", name):
            with model.use(name):
                model.base(ids() + 1000)
        case ("another thread", name):
            with model.use(name):
                in_a_thread(lambda: bare(model))
        case ("change within", name):
            with model.use(name):
                model.remove(name)
        case ("unmerge",):
            model.unmerge()


SLOTS = ("one", "two", "three")
slot = st.sampled_from(SLOTS)
actions = st.one_of(
    st.tuples(st.just("add"), slot, st.sampled_from([*KINDS, "full"])),
    st.tuples(st.just("train"), slot, st.integers(1, 2)),
    st.tuples(st.sampled_from(["merge", "remove", "use", "own"]), slot),
    st.tuples(st.sampled_from(["add to nothing", "fail", "fail midway", "another thread", "change within"]), slot),
    st.tuples(st.just("rows"), st.lists(st.sampled_from([*SLOTS, None]), min_size=3, max_size=3)),
    st.tuples(st.just("unmerge")),
)
BASES = [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("gpt2", {}), ("gemma2", {}), ("opt", {})]
REFUSALS = (
    *("no adapter", "already", "merging needs", "is merged", "not mergeable", "cannot be merged", "full copy"),
    *("does not have", "built no part", "is in use", "index out of range", "outside of `with model.use(...)`"),
)


@settings(
    max_examples=100,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
@given(st.lists(actions, min_size=3, max_size=14), st.sampled_from(BASES))
def test_the_base_is_what_it_was_whatever_happens(sequence, of):
    architecture, changes = of
    model = halka.adapt(tiny(architecture, **changes))
    base = model.base
    attention = base.config._attn_implementation
    own, before, expected = dict(base.named_parameters()), fingerprint(model), bare(model)
    for action in sequence:
        try:
            act(model, action)
        except Wrong:
            pass
        except (ValueError, IndexError, RuntimeError) as refused:
            assert any(reason in str(refused) for reason in REFUSALS)  # noqa: PT017
        if model.merged is None:
            assert torch.equal(bare(model), expected), action
        with model.own_weights():
            assert fingerprint(model) == before, action
    model.unmerge()
    assert torch.equal(bare(model), expected)
    assert fingerprint(model) == before
    for name, parameter in base.named_parameters():
        assert parameter is own[name]
        assert parameter.grad is None
    for name in list(model.adapters):
        model.remove(name)
    assert torch.equal(bare(model), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())
    assert base.config._attn_implementation == attention
