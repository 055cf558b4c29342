"""Which lane and which origin a fetch belongs to: those of its host."""


def lane_of_url(canonical_url: str) -> str:
    """The lane of a URL in canonical form (jobs.urls): its host, an IPv6 address without brackets."""
    authority = canonical_url.split("/", 3)[2]
    if authority.startswith("["):
        return authority[1 : authority.index("]")]
    return authority.partition(":")[0]


def origin_of_url(canonical_url: str) -> str:
    """The scheme, host and port of a URL in canonical form, a default port left out."""
    return canonical_url[: canonical_url.index("/", len("https://"))]
