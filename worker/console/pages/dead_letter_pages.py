"""The pages of dead letters: the list, one letter, and the confirmations to retry or delete."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from fetchfleet.jobs.client.dead_letters import DeadLetterFilter
from fetchfleet.jobs.contract.ids import is_batch_id, is_position
from fetchfleet.jobs.contract.result import Reason
from fetchfleet.jobs.contract.safe_text import shown_json
from fetchfleet.worker.console.actions import DeadLetterChange, actions_of
from fetchfleet.worker.console.forms import Form, form_route
from fetchfleet.worker.console.html import Notice, SafeLines, redirect_with
from fetchfleet.worker.console.pages.formats import by_number
from fetchfleet.worker.console.pages.live import Context, page_route
from fetchfleet.worker.console.problems import ProblemError
from fetchfleet.worker.console.services import services_of
from fetchfleet.worker.inspect.views.dead_letters import (
    count_dead_letters,
    dead_letter,
    dead_letters,
    known_reason,
)
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.policy.names import host_named

PAGE_ROWS = 100
MAX_TEXT_CHARS = 300
REASONS_SHOWN = 12
EVERY = "all"
"""The field of a form that selects every letter. Without it a form must have a filter."""
VERBS = {"retry": "Retry", "purge": "Delete"}


def letter_filter(parameters: Mapping[str, str]) -> DeadLetterFilter:
    """Return the selection of a request. Raises ProblemError for a value that no letter can have."""
    given = {name: parameters.get(name, "").strip()[:MAX_TEXT_CHARS] for name in ("batch", "host", "reason")}
    if given["batch"] and not is_batch_id(given["batch"]):
        raise ProblemError(422, "a batch ID has 16 hex digits")
    try:
        host = host_named(given["host"]) if given["host"] else None
        reason = known_reason(given["reason"]) if given["reason"] else None
    except (PolicyError, ValueError) as error:
        raise ProblemError(422, str(error)) from None
    return DeadLetterFilter(batch=given["batch"] or None, host=host, reason=reason)


def filter_fields(which: DeadLetterFilter) -> dict[str, str]:
    """Return the fields of a query that selects the same letters."""
    return {name: value for name, value in which._asdict().items() if value is not None}


async def read_letters(request: Request) -> Context:
    """Read a page of dead letters."""
    which, before = letter_filter(request.query_params), request.query_params.get("before", "")
    before = before if is_position(before) else ""
    found = await services_of(request).read(dead_letters, which, before=before or None, limit=PAGE_ROWS)
    fields = filter_fields(which)
    return {
        "section": "dead",
        "page": found,
        "which": which,
        "before": before,
        "reasons": sorted(Reason),
        "filter_query": urlencode(fields),
        "next": f"/dead?{urlencode({**fields, 'before': found.next})}" if found.next else "",
    }


async def read_letter(request: Request) -> Context:
    """Read one dead letter."""
    position = _position(request)
    letter = await services_of(request).read(dead_letter, position)
    if letter is None:
        raise ProblemError(404, f"no dead letter is at {position}; it was retried or deleted")
    pretty = msgspec.json.format(msgspec.json.encode(letter.fetch), indent=2).decode()
    return {
        "section": "dead",
        "letter": letter.letter,
        "text": letter.text,
        "json": SafeLines(shown_json(pretty)) if letter.fetch is not None else None,
    }


def _position(request: Request) -> str:
    position: str = request.path_params["position"]
    if not is_position(position):
        raise ProblemError(404, "this is not the position of a dead letter")
    return position


async def ask(request: Request) -> Context:
    """Count the letters that an action would concern, and ask for a confirmation."""
    action = "retry" if request.url.path.endswith("/retry") else "purge"
    which = letter_filter(request.query_params)
    found = await services_of(request).read(count_dead_letters, which)
    number = found.retriable if action == "retry" else found.count
    about = f"{'' if found.exact else 'at least '}{number:,} dead {'letter' if number == 1 else 'letters'}"
    fields = filter_fields(which)
    selection = ", ".join(f"{name} {value}" for name, value in fields.items()) or "every dead letter"
    effect = {
        "retry": "Their fetches are enqueued again, as new batches, and the letters are deleted.",
        "purge": "They are deleted. Their fetches cannot be retried afterwards.",
    }[action]
    texts = [f"Selected: {selection}.", effect if number else "There is nothing to do."]
    if action == "retry" and found.count > found.retriable:
        texts.append(f"{found.count - found.retriable:,} more have no fetch and stay.")
    return {
        "section": "dead",
        "title": f"{VERBS[action]} {about}?",
        "texts": texts,
        "parts": by_number(found.reasons)[:REASONS_SHOWN],
        "action": f"/dead/{action}",
        "fields": list(fields.items()) or [(EVERY, "yes")],
        "button": f"{VERBS[action]} {about}" if number else "",
        "is_danger": action == "purge",
        "back": f"/dead?{urlencode(fields)}",
        "back_text": "Keep them" if number else "Back",
    }


def _selected(form: Form) -> DeadLetterFilter:
    """Return the selection of a form. Raises ProblemError if it has none."""
    which = letter_filter({name: values[0] for name, values in form.items()})
    if not any(which) and EVERY not in form:
        raise ProblemError(422, "select dead letters by batch, host or reason, or all")
    return which


async def retry(request: Request, form: Form) -> Response:
    """Retry the letters that a form selects."""
    which = _selected(form)
    retried = await actions_of(request).retry_dead([which])
    return redirect_with(request, "/dead", Notice("done", retried_text(retried)))


async def purge(request: Request, form: Form) -> Response:
    """Delete the letters that a form selects."""
    which = _selected(form)
    purged = await actions_of(request).purge_dead([which])
    return redirect_with(request, "/dead", Notice("done", f"{_letters(purged)} deleted."))


async def change_letter(request: Request, form: Form) -> Response:
    """Retry or delete one letter."""
    actions, which = actions_of(request), DeadLetterFilter(position=_position(request))
    if form.get("action", [""])[0] == "retry":
        retried = await actions.retry_dead([which])
        path = f"/batches/{retried.batches[0]}" if retried.batches else "/dead"
        return redirect_with(request, path, Notice("done", retried_text(retried)))
    purged = await actions.purge_dead([which])
    return redirect_with(request, "/dead", Notice("done", f"{_letters(purged)} deleted."))


def retried_text(retried: DeadLetterChange) -> str:
    """Return in words what a retry did."""
    fetches = f"{retried.fetches:,} {'fetch' if retried.fetches == 1 else 'fetches'} enqueued again"
    batches = f", as batch {', '.join(retried.batches[:5])}" if retried.batches else ""
    more = f" and {len(retried.batches) - 5} more" if len(retried.batches) > 5 else ""
    left = f" {_letters(retried.left)} without a fetch kept." if retried.left else ""
    return f"{fetches}{batches}{more}.{left}"


def _letters(number: int) -> str:
    return f"{number:,} dead {'letter' if number == 1 else 'letters'}"


ROUTES: list[Any] = [
    page_route("/dead", "dead.html", read_letters),
    page_route("/dead/retry", "confirm.html", ask),
    page_route("/dead/purge", "confirm.html", ask),
    form_route("/dead/retry", retry),
    form_route("/dead/purge", purge),
    page_route("/dead/{position}", "letter.html", read_letter),
    form_route("/dead/{position}", change_letter),
]
