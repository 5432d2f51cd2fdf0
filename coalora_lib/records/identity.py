"""Which records may stand in one table.

A record carries the name of its **protocol**: what was run and how, as far as it decides the
numbers. Raise the number at a protocol's end, by hand, when the results of a new run are no longer
comparable with those of stored ones: another loss, another optimizer, other arbitrary
configurations, a repaired fault in what trains or in what is evaluated. Leave it when results are
the same up to rounding: renamed code, a faster path, another device, newer versions of packages.
The commit, the digest of the code and the versions say where a record came from; they are not
compared.

Under ``book/results``: "comparison-1" are the earlier runs of chapter 5, before the residual start
and the arbitrary configurations of today; "options-1" and "search-1" are of the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coalora_lib.records.schema import Record

#: Of the methods and the ablations of chapter 5.
COMPARISON = "comparison-2"
#: Of the adapter's options, chapter 3.
OPTIONS = "options-2"
#: Of the ways to extend the training set, chapter 4.
SEARCH = "search-2"


def ground(record: Record) -> dict[str, Any]:
    """What records of one table agree in; jobs may differ."""
    return {
        "protocol": record.protocol,
        "data": (record.dataset, record.data_checksum),
        "model": (record.model, record.model_checksum),
        "profile": record.profile,
        "parameters": record.parameters,
    }


def check_same_ground(records: Sequence[Record]) -> None:
    """Refuse records that may not stand in one table.

    Raises:
        ValueError: two differ in protocol, data, model, profile or parameters; the first two such
            records are named.
    """
    for record in records:
        first = ground(records[0])
        for name, value in ground(record).items():
            if value != first[name]:
                raise ValueError(
                    f"records differ in {name}: {records[0].file_name} and {record.file_name}"
                )
