"""Which sink a worker has: the one place that knows them all."""

from worker.settings import WARC, Settings
from worker.sink.files import FileSink
from worker.warc.segments import Limits
from worker.warc.sink import WarcSink


def sink_of(settings: Settings) -> FileSink:
    """The sink of the settings; it has yet to be opened."""
    if settings.sink != WARC:
        return FileSink(settings.out)
    limits = Limits(settings.warc_max_bytes, settings.warc_max_age_s)
    return WarcSink(settings.out, settings.worker_id, settings.user_agent, limits)
