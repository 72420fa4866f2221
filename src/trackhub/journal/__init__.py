r"""The journal: append and read the records of one run; this docstring is the grammar of its files.

Apart because everything else leans on it: it is the one thing that must still be right after a SIGKILL.

    journal  = segment*                 files `wWWWW-sSSSSSS.journal`: writer from 1, segment from 0
    segment  = header frame* zero*      little-endian numbers; zeros are room that was reserved and not used
    header   = "trackhub" version:u32 writer:u32 segment:u32 reserved:u32
    frame    = size:u32 crc:u32 payload      size of the payload, never 0; CRC-32 (zlib's) of the payload
    payload  = a MessagePack array: [tag, field, ...]

A payload is one of the records of `records.py`, or one of five that exist on disk only:

    WriterStarted = [18, time_ns, role, process_id, host, version]   the first frame of a writer, or one of these:
    RankStarted   = [19, time_ns, role, process_id, host, version, rank, rank_count]
    WriterResumed = [20, time_ns, role, process_id, host, version, resume_step]
    MetricNames   = [16, [name, ...]]
    MetricValues  = [17, names_at, step, time_ns, values:bin]    values: big-endian float64, in the order of the names

In `MetricValues`, `names_at` is a MessagePack uint32, `step` a uint32 or an int64 and `time_ns` a uint64 (an int64
before 1970), however small they are, so that the number of values follows from the size of the frame.

`names_at` is the byte position of the `MetricNames` frame in the same segment. Names are thus written once a segment,
and a reader can start at any frame without having read those before it.

Each writer (a process; a forked child is another one) has segments of its own, so processes never share a file. While
it lives it holds a lock on `wWWWW.lock`: an open file description lock, which the kernel lets go of however the process
ends, and which reading or copying the lock file does not end (a POSIX lock, where there is no other); a forked child
closes it. A segment is complete once one with a higher number exists. A frame that fails its CRC with nothing valid
behind it is a write that was cut short; one that valid frames follow is damage, skipped and counted, and so is a
segment that is missing between others. Rules for change: a tag is never reused, fields are added at the end with a
default, anything else raises the version in the header, and old versions stay readable.
"""

from trackhub.journal.frames import (
    FORMAT_VERSION,
    MAX_FRAME_BYTES,
    JournalRecord,
    Position,
    RankStarted,
    Role,
    WriterResumed,
    WriterStarted,
    segment_name,
)
from trackhub.journal.holders import Holders
from trackhub.journal.locks import a_writer_is_alive, is_locked, lock_file, writer_is_alive
from trackhub.journal.reader import Chunk, JournalReader
from trackhub.journal.writer import FIRST_SEGMENT_BYTES, JournalWriter

__all__ = [
    "FIRST_SEGMENT_BYTES",
    "FORMAT_VERSION",
    "MAX_FRAME_BYTES",
    "Chunk",
    "Holders",
    "JournalReader",
    "JournalRecord",
    "JournalWriter",
    "Position",
    "RankStarted",
    "Role",
    "WriterResumed",
    "WriterStarted",
    "a_writer_is_alive",
    "is_locked",
    "lock_file",
    "segment_name",
    "writer_is_alive",
]
