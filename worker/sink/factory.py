"""Which sink a worker has: the one place that knows them all."""

from fetchfleet.worker.settings import WARC, Settings
from fetchfleet.worker.sink.files.sink import FileSink
from fetchfleet.worker.sink.warc.segments import Limits
from fetchfleet.worker.sink.warc.sink import WarcSink


def sink_of(settings: Settings) -> FileSink:
    """The sink of the settings; it has yet to be opened."""
    if settings.sink != WARC:
        return FileSink(settings.out)
    limits = Limits(settings.warc_max_bytes, settings.warc_max_age_s)
    return WarcSink(settings.out, settings.worker_id, settings.user_agent, limits)
