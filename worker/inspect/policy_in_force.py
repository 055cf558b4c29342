"""The policy that a fleet applies: the file that its workers publish, overridden by tables in Redis."""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import number_of, text_of
from fetchfleet.worker.inspect.snapshot import worker_reports
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy, PolicyError
from fetchfleet.worker.policy.names import DEFAULT, covering
from fetchfleet.worker.policy.pairs import encoded
from fetchfleet.worker.policy.pauses import PAUSED, Overrides
from fetchfleet.worker.policy.published import NO_FILE, digest_of, read_published
from fetchfleet.worker.settings import NO_POLICY

MAX_FILES = 16
"""The maximum number of policy files to read, if the workers have different ones."""

NAMES_SHOWN = 5
DIGEST_SHOWN_CHARS = 8


class Origin(StrEnum):
    """The source of the policy file that is shown."""

    WORKERS = "workers"
    """Published by the workers."""
    GIVEN = "given"
    """Given with --policy."""
    ASSUMED = "assumed"
    """The built-in defaults, because no file is known."""


class Source(msgspec.Struct, frozen=True):
    """The source of a policy value."""

    source: str
    """`default`, `file` or `override`."""
    table: str | None = None
    """The table in the file or in Redis; None for `default`."""


BUILT_IN = Source("default")


class WorkersPolicies(NamedTuple):
    """The policy files of the live workers, and their use of the tables in Redis."""

    workers: Mapping[str, Sequence[str]]
    """The names of the workers, by the digest of their file; "" for those that publish none."""
    files: Mapping[str, Policy]
    """The valid files, by digest."""
    faults: Mapping[str, str]
    """The faults of the other files, by digest."""
    refusals: Mapping[str, str]
    """The reasons workers refuse the tables in Redis, by worker name."""
    behind: Sequence[str]
    """The names of the workers that have not read the tables since their last change."""
    instances: Mapping[str, tuple[str, str]]
    """The worker name and the digest, by instance."""


class PolicyInForce(NamedTuple):
    """The policy of a fleet, as far as it is known to a command."""

    origin: Origin
    digest: str
    """The digest of `file`."""
    file: Policy
    policy: Policy
    """The file, overridden by the tables in Redis."""
    overrides: Overrides
    """The tables in Redis."""
    known: WorkersPolicies
    holder: str = ""
    """The worker that holds the lane in question, if `file` is its file."""
    refused: str = ""
    """The reason the tables do not fit the file, so that only their pauses apply; else empty."""

    def summary(self, lane: str) -> dict[str, Any]:
        """Return the sources of a lane's policy and the notes, as JSON fields."""
        return {
            "origin": self.origin,
            "digest": self.digest,
            "workers": {digest or "unknown": names for digest, names in self.known.workers.items()},
            "sources": msgspec.to_builtins(self.sources(lane)),
            "notes": list(self.notes(lane)),
        }

    def notes(self, lane: str) -> Iterator[str]:
        """Yield the limits of the answer for a lane: assumptions, different files, unreadable files."""
        workers, files = self.known.workers, self.known.files
        remedy = "give the workers' policy file with --policy"
        for digest, why in self.known.faults.items():
            yield f"policy file {short(digest)} of {listed(workers[digest])}: {why}; {remedy}"
        if self.origin is Origin.ASSUMED and not workers:
            yield f"no worker runs, so the built-in defaults are assumed; {remedy}"
        elif self.origin is Origin.ASSUMED and not self.known.faults:
            yield f"the workers' version publishes no policy, so the defaults are assumed; {remedy}"
        elif "" in workers:
            yield f"no policy is published by {listed(workers[''])} (an older version)"
        others = [digest for digest in workers if digest not in {"", self.digest}]
        if self.origin is Origin.GIVEN and others:
            yield f"--policy gives file {short(self.digest)}, but workers use another"
        if others and (len(others) > 1 or self.origin is Origin.WORKERS):
            using = [f"{short(digest)} on {listed(workers[digest])}" for digest in [*workers] if digest]
            yield f"workers differ in their policy files: {'; '.join(using)}"
            if self.holder:
                yield f"the file shown is that of {self.holder}, which holds {lane}"
        for digest in others:
            if digest in files and (text := self.difference(files[digest], lane)):
                yield f"{listed(workers[digest])} ({short(digest)}): {text} for {lane}"
        yield from self._notes_on_overrides()

    def _notes_on_overrides(self) -> Iterator[str]:
        if self.refused:
            yield (
                f"the keys set at run time are refused, all but pauses: {self.refused};"
                " remove the key with: fetchfleet policy unset"
            )
        for name, why in self.known.refusals.items():
            yield f"{name} refuses the keys set at run time and keeps the earlier ones: {why}"
        if self.known.behind:
            yield f"the last change at run time is not yet in force on {listed(self.known.behind)}"

    def difference(self, other: Policy, lane: str) -> str:
        """Return the values of another policy file that differ for a lane; empty if no value differs."""
        try:
            other_policy = other.overridden(*self.overrides).for_lane(lane)
        except PolicyError as error:
            return str(error)
        own_policy = self.policy.for_lane(lane)
        return ", ".join(
            f"{key} {encoded(getattr(other_policy, key))} instead of {encoded(getattr(own_policy, key))}"
            for key in LanePolicy.__struct_fields__
            if getattr(own_policy, key) != getattr(other_policy, key)
        )

    def sources(self, lane: str) -> dict[str, Source]:
        """Return the source of each key of a lane's policy."""
        sources = dict.fromkeys(LanePolicy.__struct_fields__, BUILT_IN)
        overriding = {} if self.refused else self.overrides.tables
        for name in reversed([*covering(lane)]):  # from the widest table to the narrowest
            of_file = self.file.default_table if name == DEFAULT else self.file.tables.get(name, {})
            for source, table in (("file", of_file), ("override", overriding.get(name, {}))):
                sources |= {key: Source(source, name) for key in table if key in sources}
        stop = self.policy.pauses.stop(lane)  # pauses have rules of their own
        sources[PAUSED] = Source("file" if stop.in_file else "override", stop.name) if stop else BUILT_IN
        return sources


async def policy_in_force(redis: Redis, given: Policy, lane: str | None = None) -> PolicyInForce:
    """Return the policy of the fleet. If the tables in Redis do not fit the file, only their pauses apply.

    given: used in place of the workers' file, unless it is NO_POLICY. lane: if the workers' files differ,
    that of the lane's holder is used; without a lane or holder, the file of most workers.
    """
    holder = ""
    in_redis = await overrides.read(redis)
    known = await workers_policies(redis)
    if given is not NO_POLICY:
        origin, digest, file = Origin.GIVEN, digest_of(given), given
    elif known.files:
        owner = await redis.hget(keys.lane(lane), "owner") if lane is not None else None  # type: ignore[misc]
        holder, digest = known.instances.get(text_of(owner or b""), ("", ""))
        if digest not in known.files:
            holder, digest = "", min(known.files, key=lambda one: (-len(known.workers[one]), one))
        origin, file = Origin.WORKERS, known.files[digest]
    else:
        origin, digest, file = Origin.ASSUMED, NO_FILE, NO_POLICY
    refused = ""
    try:
        policy = file.overridden(*in_redis)
    except PolicyError as error:
        policy, refused = file.with_pauses(file.pauses_with(in_redis)), str(error)
    return PolicyInForce(origin, digest, file, policy, in_redis, known, holder, refused)


async def workers_policies(redis: Redis) -> WorkersPolicies:
    """Read the policy files that the live workers publish."""
    workers: dict[str, list[str]] = {}
    refusals: dict[str, str] = {}
    instances: dict[str, tuple[str, str]] = {}
    behind: list[str] = []
    version = number_of(await redis.get(keys.POLICY_VERSION)) or 0
    for instance, report in sorted((await worker_reports(redis)).items()):
        about = report.registration
        name = about.name if about else instance
        workers.setdefault(about.policy if about else "", []).append(name)
        if about:
            instances[instance] = (name, about.policy)
        if report.policy_refused:
            refusals[name] = report.policy_refused
        if report.policy_version is not None and (number_of(report.policy_version.encode()) or 0) < version:
            behind.append(name)
    digests = [digest for digest in workers if digest not in {"", NO_FILE}][:MAX_FILES]
    texts = await redis.mget([keys.policy_file(digest) for digest in digests]) if digests else []
    files = {NO_FILE: Policy()} if NO_FILE in workers else {}
    faults: dict[str, str] = {}
    for digest, text in zip(digests, texts, strict=True):
        try:
            if text is None:
                raise PolicyError("not published yet")  # noqa: TRY301 reported like other faults
            files[digest] = read_published(text)
        except PolicyError as error:
            faults[digest] = str(error)
    return WorkersPolicies(workers, files, faults, refusals, behind, instances)


def short(digest: str) -> str:
    """Return the beginning of a digest, which is enough to compare."""
    return digest[:DIGEST_SHOWN_CHARS]


def listed(names: Sequence[str]) -> str:
    """Return a list of worker names in words, NAMES_SHOWN at most."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
