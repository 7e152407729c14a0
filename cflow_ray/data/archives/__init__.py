"""Archives of images as records that can be read in ranges: tar, tar.gz, zip, Parquet, and image files themselves."""

from cflow_ray.data.archives.index import INDEX_SUFFIX, Member, ShardIndex
from cflow_ray.data.archives.inputs import find_shards
from cflow_ray.data.archives.reading import is_streamed, read_index, read_records, stream_records
from cflow_ray.data.archives.records import Record
from cflow_ray.data.archives.shards import Shard
from cflow_ray.data.archives.tar_shards import write_shards

__all__ = [
    "INDEX_SUFFIX",
    "Member",
    "Record",
    "Shard",
    "ShardIndex",
    "find_shards",
    "is_streamed",
    "read_index",
    "read_records",
    "stream_records",
    "write_shards",
]
