"""How long to wait: curves from tenacity, chance passed in as a fraction. Pure."""

from tenacity import RetryCallState, Retrying, wait_exponential

MAX_DOUBLINGS = 1000

_retrying = Retrying(reraise=True)


def exponential_s(n: int, base_s: float, cap_s: float) -> float:
    """base_s doubled n-1 times (n from 1), capped; safe for any n."""
    state = RetryCallState(_retrying, None, (), {})
    state.attempt_number = min(max(n, 1), MAX_DOUBLINGS)
    return wait_exponential(multiplier=base_s, max=cap_s)(state)


def full_jitter_s(n: int, base_s: float, cap_s: float, chance: float) -> float:
    """A wait before the n-th retry, spread evenly from 0 to the curve; chance in [0, 1)."""
    return exponential_s(n, base_s, cap_s) * chance


def upward_jitter_s(wait_s: float, chance: float, spread: float = 0.1) -> float:
    """The wait or a little more, never less: what a host asked for is a floor. chance in [0, 1)."""
    return wait_s * (1 + spread * chance)
