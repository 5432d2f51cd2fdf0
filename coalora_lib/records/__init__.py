"""Records of runs: what they hold, how they are kept, which may be compared, what they say."""

from coalora_lib.records.evidence import Evidence, accuracy_table, common_accuracies, wall_seconds
from coalora_lib.records.interval import Interval, paired_bootstrap, student_interval
from coalora_lib.records.schema import Job, Record, Result, SearchedSet, Twins
from coalora_lib.records.store import read_record, read_records, write_record

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
    "paired_bootstrap",
    "read_record",
    "read_records",
    "student_interval",
    "wall_seconds",
    "write_record",
]
