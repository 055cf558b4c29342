"""Times and sizes for lanes and fetches that no policy key sets."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneParameters:
    """The times and sizes of one worker. Tests shorten them."""

    acquire_at_once: int = 64
    """Maximum lanes that are acquired in one round trip."""
    release_within_s: float = 5.0
    """Time for fetches in flight to end in a lane that is released for another worker."""
    max_settlements: int = 20_000
    """Number of settlements waiting for Redis at which lanes stop claiming."""
    expiry_check_s: float = 2.0
    """Interval at which a held lane reads its earliest deadline from Redis, which a producer may lower."""
    newer_return_s: float = 5.0
    """Wait of a fetch that no live worker can do or read, before it is claimed again."""
    turn_s: float = 2.0
    """Time for which a worker keeps a lane with fetches for another worker, if it can do the others."""
    return_every_s: float = 0.005
    """Minimum interval between two returns of fetches that no live worker can do or read."""
    decoder_pause_s: float = 5.0
    """Wait before the next attempt at a body whose large decoder window was not free."""
    disk_pause_s: float = 5.0
    """Wait before the next attempt at a body that the disk refused. Doubles with each refusal."""
    checkpoint_bytes: int = 64 << 20
    """Bytes of a body between two checkpoints, from which it is resumed after a crash."""
    checkpoint_s: float = 10.0
    """Maximum time between two checkpoints."""
    piece_bytes: int = 4 << 20
    """Size of the smallest piece of a body that is received in several ranges at once."""
