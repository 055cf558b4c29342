"""The verdict of a chaos run: each broken promise is found in histories where it was planted."""

import hashlib
from typing import Any

import msgspec
import pytest

from fetchfleet.jobs.contract.ids import path_of
from tools.chaos import hosts
from tools.chaos.checker import judge
from tools.chaos.history import (
    Acknowledged,
    Attempted,
    BackoffWindow,
    Cancelling,
    Fault,
    FetchEnd,
    Followed,
    Leftovers,
    ObservedRequest,
    Record,
    StoredFile,
    WorkerDeath,
)
from tools.chaos.schedule import Kind, plan

BATCH = "0123456789abcdef"
HOST = hosts.HOSTS[0]
URLS = [f"http://{HOST}:80{path}" for path in ("/f/one", "/go/127.0.8.2:80/two", "/gone/three", "/post/four")]
IDS = [f"{BATCH}-{place:08x}" for place in range(len(URLS))]
KILLER = f"{BATCH}-000000ff"


def digest(url: str) -> str:
    return hashlib.sha256(hosts.body_of(hosts.name_of(url))).hexdigest()


def ended(place: int, **changes: Any) -> FetchEnd:
    url, of = URLS[place], IDS[place]
    good = FetchEnd(of, url, "stored", None, 200, path_of(of), digest(url), 1, 1_000_000)
    return msgspec.structs.replace(good, **changes)


def request(target: str, arrived_s: float, by: str = "w1.1", **changes: Any) -> ObservedRequest:
    good = ObservedRequest(HOST, target, by, arrived_s, arrived_s + 0.5, "well", 200, aborted=False)
    return msgspec.structs.replace(good, **changes)


GONE = ended(2, outcome="failed", reason="http_status", status=404, path=None, sha256=None)
GOOD = Record(
    producer=[Attempted(URLS, BATCH), Acknowledged(IDS, URLS)],
    requests=[request("/f/one", 1.0), request("/post/four", 1.1)],
    ended=[ended(0), ended(1), GONE, ended(3)],
    followed=[Followed(BATCH, IDS, ended=True)],
    found=[StoredFile(path_of(IDS[place]), digest(URLS[place])) for place in (0, 1, 3)],
)


def breaches(**changes: Any) -> list[str]:
    return judge(msgspec.structs.replace(GOOD, **changes)).breaches


def test_a_history_without_fault_has_no_breach() -> None:
    """All other histories differ from it."""
    assert [] == breaches()


PLANTED: dict[str, tuple[str, dict[str, Any]]] = {
    "a lost id": (
        "acknowledged and lost",
        {"producer": [*GOOD.producer, Acknowledged([f"{BATCH}-000000ff"], [URLS[0]])]},
    ),
    "a lost message of the inbox": (
        "acknowledged and lost",
        {"producer": [*GOOD.producer, Acknowledged([""], [f"http://{HOST}/f/five"])]},
    ),
    "an unexpected id": (
        "never submitted",
        {
            "ended": [
                *GOOD.ended,
                ended(
                    0,
                    id=f"{BATCH}-000000ff",
                    url=f"http://{HOST}/f/x",
                    path=None,
                    outcome="failed",
                    reason="http_status",
                ),
            ]
        },
    ),
    "a doubled result": ("ended twice", {"ended": [*GOOD.ended, ended(0)]}),
    "two fetches of one URL": ("ended twice", {"ended": [*GOOD.ended, ended(0, id=f"{BATCH}-000000ff")]}),
    "a result read twice": ("read wrongly", {"followed": [Followed(BATCH, [*IDS, IDS[0]], ended=True)]}),
    "a result not read": ("read wrongly", {"followed": [Followed(BATCH, IDS[1:], ended=True)]}),
    "results out of order": ("read wrongly", {"followed": [Followed(BATCH, IDS[::-1], ended=True)]}),
    "a reader without an end": ("did not come to the end", {"followed": [Followed(BATCH, IDS, ended=False)]}),
    "a wrong body": (
        "not on disk as its result says",
        {"found": [StoredFile(GOOD.found[0].path, digest("/f/two")), *GOOD.found[1:]]},
    ),
    "no body": ("not on disk as its result says", {"found": GOOD.found[1:]}),
    "a digest that is not the body's": (
        "not on disk as its result says",
        {"ended": [ended(0, sha256=digest("/f/two")), *GOOD.ended[1:]]},
    ),
    "a wrong file of a fetch that failed": (
        "no fetch explains",
        {"found": [*GOOD.found, StoredFile(path_of(IDS[2]), digest("/f/one"))]},
    ),
    "an unknown file": (
        "no fetch explains",
        {"found": [*GOOD.found, StoredFile("x/y", digest("/f/one"))]},
    ),
    "a failure that nothing explains": (
        "ended wrongly",
        {"ended": [ended(0, outcome="failed", reason="read"), *GOOD.ended[1:]]},
    ),
    "a fetch given up as poison although it kills no worker": (
        "ended wrongly",
        {
            "ended": [ended(0, outcome="failed", reason="poison", path=None), *GOOD.ended[1:]],
            "faults": [Fault(Kind.WORKER_KILLED, "w1.1", n, n) for n in range(3)],
        },
    ),
    "a cancellation without a request": (
        "ended wrongly",
        {"ended": [ended(0, outcome="cancelled"), *GOOD.ended[1:]]},
    ),
    "an attempt charged for a fault": ("2 attempts", {"ended": [ended(0, attempts=2), *GOOD.ended[1:]]}),
    "a POST sent again": ("sent twice", {"requests": [*GOOD.requests, request("/post/four", 9.0)]}),
    "concurrency over": (
        "requests at once",
        {"requests": [request(f"/f/{n}", 1 + n / 100) for n in range(hosts.CONCURRENCY + 1)]},
    ),
    "a request inside a back-off window": (
        "back off",
        {"requests": [request("/f/one", 1.7)], "backoffs": [BackoffWindow(HOST, 1.0, 2.0)]},
    ),
    "a fetch that kills a tenth worker": (
        "killed more workers",
        {"requests": [*GOOD.requests, *(request("/kill/ten", 9.0, f"w{n}.1") for n in range(10))]},
    ),
    "something left in Redis": ("left in Redis: lane", {"remains": Leftovers(["lane x is held"], 0.0)}),
    "a worker that died": (
        "w1.1: ended by itself",
        {"died": [WorkerDeath("w1.1", "ended by itself with 1")]},
    ),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_breach_is_found(what: str) -> None:
    """Each is named in a sentence."""
    sentence, changes = PLANTED[what]

    assert [breach for breach in breaches(**changes) if sentence in breach]


def test_an_effect_of_the_faults_is_no_breach() -> None:
    """Cancelled batches, interrupted POSTs, attempts that a host failed, workers killed by a fetch."""
    by_fate = {
        1: {"outcome": "cancelled", "path": None},
        3: {"outcome": "failed", "reason": "interrupted", "path": None},
    }

    assert [] == breaches(
        followed=[],
        producer=[*GOOD.producer, Cancelling(BATCH)],
        ended=[ended(0), GONE, *(ended(place, **fate) for place, fate in by_fate.items())],
    )
    killer = f"http://{HOST}:1/kill/five"
    assert [] == breaches(
        producer=[*GOOD.producer, Attempted([killer]), Acknowledged([KILLER], [killer])],
        followed=[Followed(BATCH, [*IDS, KILLER], ended=True)],
        ended=[*GOOD.ended, FetchEnd(KILLER, killer, "failed", "poison", None, None, None, 1, 0)],
        requests=[
            *GOOD.requests,
            *(request("/kill/five", 9.0 + n, f"w{n}.1", act="late", status=None) for n in range(5)),
        ],
        died=[WorkerDeath("w4.1", "ended by itself with -9")],
    )
    assert [] == breaches(
        ended=[ended(0, attempts=2), *GOOD.ended[1:]],
        requests=[request("/f/one", 1.0, act="500", status=500)],
    )


def test_fetches_of_a_stopped_worker_count_until_its_lease_ends() -> None:
    """Its connections stay open meanwhile."""
    stopped = [request(f"/f/{n}", 1.0, finished_s=10.0) for n in range(hosts.CONCURRENCY)]
    stop = [Fault(Kind.WORKER_STOPPED, "w1.1", 1.2, 9.0)]
    soon, late = request("/f/other", 2.0, "w2.1"), request("/f/other", 2.3, "w2.1")

    assert [] == breaches(requests=[*stopped, late], faults=stop)
    assert 1 == len(breaches(requests=[*stopped, soon], faults=stop))
    assert 1 == len(breaches(requests=[*stopped, late]))


def test_repeats_are_counted_and_allowed() -> None:
    """A complete response without a result costs the host a request, and breaks no promise."""
    verdict = judge(msgspec.structs.replace(GOOD, requests=[request("/f/one", float(n)) for n in range(5)]))

    assert (2, []) == (verdict.repeats, verdict.breaches)


def test_recoveries_are_measured_from_the_fault() -> None:
    """Until another worker sends a request to the host. For Redis until the next result."""
    verdict = judge(
        msgspec.structs.replace(
            GOOD,
            requests=[
                request("/f/one", 1.0),
                request("/f/two", 5.0, "w2.1"),
                request("/f/three", 25.0, "w1.2"),
            ],
            ended=[ended(0, at_ms=21_500), *GOOD.ended[1:]],
            faults=[
                Fault(Kind.WORKER_KILLED, "w1.1", 1.5, 2.0),
                Fault(Kind.WORKER_KILLED, "w2.1", 5.5, 6.0),
                Fault(Kind.REDIS_KILLED, "", 9.0, 10.0),
                Fault(Kind.REDIS_FROZEN, "", 10.0, 20.0),
            ],
        )
    )

    assert (2, [3.5]) == verdict.recoveries[Kind.WORKER_KILLED]
    assert (1, [1.5]) == verdict.recoveries[Kind.REDIS_FROZEN]
    assert (1, []) == verdict.recoveries[Kind.REDIS_KILLED]
    assert (0, []) == verdict.recoveries[Kind.REDIS_RESTARTED]


def test_the_plan_depends_on_the_seed_only() -> None:
    """Each kind of fault occurs, within the time."""
    faults = plan(7, 180, 4)

    assert faults == plan(7, 180, 4) != plan(8, 180, 4)
    assert set(Kind) == {fault.kind for fault in faults}
    assert faults == sorted(faults, key=lambda fault: fault.at_s)
    assert all(0 < fault.at_s < 180 for fault in faults)
    assert {None, 0, 1, 2, 3} == {fault.worker for fault in faults}
