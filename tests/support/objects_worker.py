"""A worker that stores bodies in a bucket, with the interface of one that stores files."""

from typing import Any

from fetchfleet import Result
from tests.support.object_store import Bucket
from tools.one_worker import OneWorker


class ObjectsWorker(OneWorker):
    """A worker with an object store. Its out folder is the spool."""

    def __init__(self, bucket: Bucket, **parameters: Any) -> None:
        super().__init__(**parameters, store=bucket.url)
        self._bucket = bucket

    def body(self, result: Result) -> bytes:
        """Return the stored body of a result."""
        assert result.path is not None, result
        return self._bucket.get(result.path).body

    def files(self) -> set[str]:
        """Return the paths of the objects, without fetchfleet's own."""
        return set(self._bucket.objects())
