"""What is found in Redis where a name or a number of ours should be. Nothing there is trusted."""

_NUMBER_CHARS = 18


def text_of(found: bytes) -> str:
    """The text; what is none becomes a name that nothing has."""
    return found.decode(errors="replace")


def is_text(found: bytes) -> bool:
    """Whether it is text at all."""
    return text_of(found).encode() == found


def number_of(found: bytes | None) -> int | None:
    """The whole number, None where there is none."""
    if found is None or len(found) > _NUMBER_CHARS or not found.removeprefix(b"-").isdigit():
        return None
    return int(found)
