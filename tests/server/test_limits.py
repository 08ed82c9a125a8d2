"""Limits of a key: what is over them is 429 with Retry-After, whatever way it is asked for."""

from __future__ import annotations

import asyncio
import fcntl
import os

import pytest

from guarded_for_tests import Guarded, until
from halka.server.errors import ApiError
from halka.server.guards.keys import Limits
from halka.server.guards.limits import Bucket, Lease, Limiter
from halka.server.locks import try_lock
from halka.server.storage import Reservation, Storage


class Clock:
    """Time that passes when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def leased(limiter: Limiter, own: Limits | None = None, id: str | None = "key") -> Lease:
    lease = Lease(limiter, limiter.use(id, own))
    lease.begin()
    return lease


def refused(call, *arguments) -> ApiError:
    with pytest.raises(ApiError) as error:
        call(*arguments)
    return error.value


def test_a_bucket_fills_up_evenly(clock):
    bucket = Bucket(60, clock)
    bucket.take(60)
    assert (bucket.left, bucket.wait(10)) == (0, 10)
    clock.now = 5
    assert (bucket.left, bucket.wait(10)) == (5, 5)
    clock.now = 1000
    assert (bucket.left, bucket.wait(60)) == (60, 0)


def test_a_bucket_is_never_more_than_full(clock):
    bucket = Bucket(60, clock)
    bucket.take(10)
    bucket.take(-50)
    assert bucket.left == 60


def test_what_was_taken_stays_taken_when_a_limit_changes(clock):
    limiter = Limiter(Limits(), 10, clock)
    for most, more in ((3, 3), (2, 0), (100, 0)):
        for _ in range(more):
            leased(limiter, Limits(requests=most)).end()
        refused(leased, limiter, Limits(requests=most))
    clock.now = 6
    for _ in range(10):
        leased(limiter, Limits(requests=100)).end()
    refused(leased, limiter, Limits(requests=100))


def test_requests_a_minute(clock):
    limiter = Limiter(Limits(requests=2), 10, clock)
    for _ in range(2):
        leased(limiter).end()
    error = refused(leased, limiter)
    assert (error.status, error.headers, error.code) == (429, {"retry-after": "30"}, "rate_limit_exceeded")
    leased(limiter, id="another key").end()
    clock.now = 30
    leased(limiter).end()
    refused(leased, limiter)


def test_a_keys_own_limits_go_before_the_default(clock):
    limiter = Limiter(Limits(requests=1, tokens=50), 10, clock)
    own = Limits(requests=3)
    assert limiter.limits(own) == Limits(requests=3, tokens=50)
    for _ in range(3):
        leased(limiter, own).end()
    refused(leased, limiter, own)


def test_changed_limits_count_at_once_and_forget_no_request_under_way(clock):
    limiter = Limiter(Limits(), 10, clock)
    first = leased(limiter)
    first.reserve(2, 0)
    assert refused(leased, limiter, Limits(concurrency=1)).status == 429
    first.end()
    leased(limiter, Limits(concurrency=1)).end()
    assert limiter.answers == 0


def test_answers_at_once_count_n_and_every_prompt(clock):
    limiter = Limiter(Limits(concurrency=4), 100, clock)
    first, second = leased(limiter), leased(limiter)
    first.reserve(3, 0)
    assert refused(second.reserve, 2, 0).status == 429
    second.reserve(1, 0)
    first.end()
    second.reserve(3, 0)
    second.end()
    assert limiter.answers == 0


def test_what_a_key_never_gets_is_no_429(clock):
    """A client would try for ever."""
    limiter = Limiter(Limits(concurrency=4, tokens=100), 100, clock)
    lease = leased(limiter)
    for answers, tokens in ((5, 0), (1, 101), (10**9, 10**9)):
        error = refused(lease.reserve, answers, tokens)
        assert (error.status, error.code, error.headers) == (400, "request_too_large", {})
    lease.reserve(4, 100)


def test_the_queue_is_bounded_for_all_keys_together(clock):
    limiter = Limiter(Limits(), 5, clock)
    first, second = leased(limiter, id="a"), leased(limiter, id="b")
    first.reserve(3, 0)
    error = refused(second.reserve, 3, 0)
    assert (error.status, error.headers) == (429, {"retry-after": "2"})
    second.reserve(2, 0)
    first.end()
    second.end()
    assert limiter.answers == 0


def test_tokens_are_taken_before_and_those_not_needed_go_back(clock):
    limiter = Limiter(Limits(tokens=100), 100, clock)
    first, second = leased(limiter), leased(limiter)
    first.reserve(1, 80)
    assert refused(second.reserve, 1, 30).headers == {"retry-after": "6"}
    first.spend(20)
    first.spend(10)
    first.end()
    second.reserve(1, 70)
    second.end()
    third = leased(limiter)
    assert refused(third.reserve, 1, 1).status == 429, "nobody counted what the second spent: all that it reserved"


def test_requests_at_once_get_no_more_than_one_alone(clock):
    """Many that begin before any ends take together what one minute has."""
    limiter = Limiter(Limits(tokens=100), 100, clock)
    leases = [leased(limiter) for _ in range(10)]
    passed = 0
    for lease in leases:
        try:
            lease.reserve(1, 30)
            passed += 1
        except ApiError:
            pass
    assert passed == 3


def test_what_a_request_counts_goes_back_where_its_storage_cannot(clock, tmp_path):
    """Such as a disk that became read-only: the key could do nothing more."""
    limiter = Limiter(Limits(tokens=100), 10, clock)
    lease = leased(limiter)
    lease.reserve(3, 100)
    lease.spend(0)
    lease.room = Reservation(Storage((), tmp_path))
    lease.room.grow(10, None)
    (path,) = tmp_path.glob("[!.]*")
    os.link(path, tmp_path / ".held")
    path.unlink()
    path.mkdir()
    with pytest.raises((IsADirectoryError, PermissionError)):
        lease.end()
    use = limiter.use("key", None)
    assert (limiter.answers, use.answers, use.requests_under_way) == (0, 0, 0)
    assert use.tokens is not None
    assert use.tokens.left == 100
    with (tmp_path / ".held").open("rb") as file:
        assert try_lock(file.fileno(), fcntl.LOCK_SH), "it holds no room"


def test_a_refused_reservation_holds_nothing(clock):
    limiter = Limiter(Limits(tokens=100, concurrency=10), 100, clock)
    first, second = leased(limiter), leased(limiter)
    first.reserve(1, 90)
    refused(second.reserve, 5, 50)
    assert limiter.answers == 1
    second.end()
    assert limiter.answers == 1
    first.end()
    assert limiter.answers == 0


# ── behind the guards ───────────────────────────────────────────────────────────────────────────────────────────────


def test_through_http(tmp_path):
    guarded = Guarded(tmp_path)
    headers = guarded.key(requests=3)
    other = guarded.key(requests=3)
    statuses = [guarded.call("GET", "/who", headers=headers).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert guarded.call("GET", "/who", headers=other).status_code == 200
    assert int(guarded.call("GET", "/who", headers=headers).headers["retry-after"]) in range(1, 21)


def test_who_has_no_key_takes_none_of_a_keys_requests(tmp_path):
    guarded = Guarded(tmp_path)
    headers = guarded.key(requests=1)
    for _ in range(5):
        guarded.call("GET", "/who", headers={"authorization": headers["authorization"] + "x"})
    assert guarded.call("GET", "/who", headers=headers).status_code == 200


def test_a_request_that_ends_in_any_way_gives_its_answers_back(tmp_path):
    """Also one that fails, and one whose client leaves."""
    guarded = Guarded(tmp_path, concurrency=2)
    body = {"n": 2, "tokens": 0, "seconds": 0.01}

    async def many(client):
        first = await asyncio.gather(*(client.post("/answers", json=body) for _ in range(3)))
        assert sorted(response.status_code for response in first) == [200, 429, 429]
        await client.post("/answers", json={"n": 1})
        leaving = asyncio.create_task(client.post("/answers", json={**body, "seconds": 100}))
        await until(lambda: guarded.guards.limiter.answers == 2)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert (await client.post("/answers", json=body)).status_code == 200

    guarded.run(many)
    assert guarded.guards.limiter.answers == 0


def test_a_refusal_is_openais(tmp_path):
    guarded = Guarded(tmp_path, queue=0, rows=1)
    body = {"n": 1, "tokens": 0, "seconds": 0.05}

    async def two(client):
        return await asyncio.gather(*(client.post("/answers", json=body) for _ in range(2)))

    responses = sorted(guarded.run(two), key=lambda response: response.status_code)
    assert responses[1].status_code == 429
    assert responses[1].json()["error"] == {
        "message": "the server has as many requests as it can take",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
