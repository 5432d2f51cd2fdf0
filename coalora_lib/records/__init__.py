"""Records of runs: what they hold, how they are kept, which may be compared, what they say.

Knows nothing of set-ups, models, tasks or plots.
"""

from coalora_lib.records.bootstrap import paired_bootstrap
from coalora_lib.records.evidence import Evidence, wall_seconds
from coalora_lib.records.interval import Interval, student_interval
from coalora_lib.records.schema import Job, Record, Result, SearchedSet, Twins
from coalora_lib.records.store import read_record, read_records, write_record
from coalora_lib.records.tables import accuracy_table, common_accuracies
from coalora_lib.records.tidy import frame

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
    "student_interval",
    "wall_seconds",
    "write_record",
]
