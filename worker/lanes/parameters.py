"""Times and sizes of serving lanes and fetches that are no matter of policy."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneParameters:
    """The defaults of a worker; tests shorten them."""

    acquire_at_once: int = 64
    """How many lanes are acquired in one round trip."""
    give_back_within_s: float = 5.0
    """How long fetches in flight may take to end in a lane that goes to another worker."""
    max_settlements: int = 20_000
    """With as many settlements waiting for Redis, lanes claim nothing more."""
    expiry_check_s: float = 2.0
    """How often a held lane looks at Redis: a producer may have added an earlier deadline."""
    newer_return_s: float = 5.0
    """How long a fetch that no live worker can do or read waits before it is claimed again."""
    turn_s: float = 2.0
    """How long a worker keeps a lane in which fetches wait for another worker, if it can do others there."""
    return_every_s: float = 0.005
    """Between two looks, at least, of a worker at fetches that no live worker can do or read."""
    decoder_pause_s: float = 5.0
    """Before the next attempt at a body that needs a large decoder window while none is free."""
    disk_pause_s: float = 5.0
    """Before the next attempt at a body that the disk refused; it doubles with each refusal."""
    checkpoint_bytes: int = 64 << 20
    """How much of a body comes between two checkpoints, which save it from a crash."""
    checkpoint_s: float = 10.0
    """How much time passes at most between two checkpoints."""
