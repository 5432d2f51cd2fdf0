"""Records of runs: their contents, how they are stored and compared, and their results."""

from coalora_lib.records.evidence import Evidence, wall_seconds
from coalora_lib.records.interval import Interval, paired_bootstrap, student_interval
from coalora_lib.records.schema import Job, Record, Result, SearchedSet, Twins
from coalora_lib.records.store import (
    read_record,
    read_records,
    record_bytes,
    record_from,
    write_record,
)
from coalora_lib.records.tidy import accuracy_table, common_accuracies, frame

__all__ = [
    "Evidence",
    "Interval",
    "Job",
    "Record",
    "Result",
    "SearchedSet",
    "Twins",
    "accuracy_table",
    "common_accuracies",
    "frame",
    "paired_bootstrap",
    "read_record",
    "read_records",
    "record_bytes",
    "record_from",
    "student_interval",
    "wall_seconds",
    "write_record",
]
