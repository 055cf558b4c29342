"""Makes the sink of a worker."""

from fetchfleet.worker.settings import GZIP, WARC, Settings
from fetchfleet.worker.sink.base import Sink
from fetchfleet.worker.sink.files.sink import FileSink
from fetchfleet.worker.util import object_url


def sink_of(settings: Settings, instance: str) -> Sink:
    """Return the sink of the settings, not yet open. instance: becomes part of the names of WARC segments."""
    if settings.store:
        from fetchfleet.worker.sink.objects.sink import ObjectSink  # noqa: PLC0415 it needs an extra

        return ObjectSink(object_url.parse(settings.store), settings.out)
    if settings.sink != WARC:
        return FileSink(settings.out)
    from fetchfleet.worker.sink.warc.segments import WarcOptions  # noqa: PLC0415 most workers write none
    from fetchfleet.worker.sink.warc.sink import WarcSink  # noqa: PLC0415

    compressed = settings.warc_compression == GZIP
    options = WarcOptions(settings.warc_max_bytes, settings.warc_max_age_s, compressed, settings.warc_revisit)
    return WarcSink(settings.out, instance, settings.user_agent, options)
