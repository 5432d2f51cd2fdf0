"""Tables of records: filtered, grouped, two protocols compared, written, sent to MLflow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from coalora_lib.files import atomic_file
from coalora_lib.records import Record, frame, read_record, student_interval
from coalora_lib.validation import not_known

__all__ = ["compared", "filtered", "frame", "grouped", "read_below", "send", "write"]

#: What a table may be of: the factor that it is shown by, and digits behind the point.
METRICS = {
    "accuracy": (100, 2),
    "loss": (1, 4),
    "neighbours": (100, 2),
    "spearman": (1, 4),
    "agreement": (100, 2),
}
#: Files of a table, with what writes them.
FORMATS = {".parquet": "to_parquet", ".csv": "to_csv"}


def read_below(folder: Path) -> list[Record]:
    """All records of a folder and those below it, by path; other JSON files are left out.

    Raises:
        ValueError: there are none, or one cannot be read; it is named.
    """
    paths = sorted(path for path in folder.rglob("*-seed*.json") if not path.name.startswith("."))
    if not paths:
        raise ValueError(f"{folder} holds no records")
    return [read_record(path) for path in paths]


def filtered(rows: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """The rows in which each "column=value" holds; several values of a column are alternatives.

    Raises:
        ValueError: a column is not known, or no row is left.
    """
    wanted: dict[str, list[str]] = {}
    for condition in where:
        column, equals, value = condition.partition("=")
        if not equals:
            raise ValueError(f"{condition!r} must be column=value, such as method=coa-lora")
        _known(rows, [column])
        wanted.setdefault(column, []).append(value)
    for column, values in wanted.items():
        texts = rows[column].map(_text)
        if not set(values) & set(texts):
            raise ValueError(not_known(f"{column}={values[0]!r}", sorted(set(texts))))
        rows = rows[texts.isin(values)]
    if rows.empty:
        raise ValueError(f"no result has {' and '.join(where)}")
    return rows


def grouped(rows: pd.DataFrame, by: str, metric: str | None = None) -> pd.DataFrame:
    """Means of a metric over seeds, with their intervals where there are two seeds and more.

    A seed's results of one group are averaged first. Groups are of one protocol, data set and
    profile: these are columns where there are several. Shares are in percent.

    Args:
        metric: of :data:`METRICS`; by default accuracy, or loss where no result has one.

    Raises:
        ValueError: a column or the metric is not known, or no result has it.
    """
    keys, (metric, factor, digits) = _keys(rows, by), _metric(rows, metric)
    seeds = factor * rows.groupby([*keys, "seed"], dropna=False, sort=False)[metric].mean()
    found = []
    for key, values in seeds.groupby(level=list(range(len(keys))), dropna=False, sort=False):
        found.append((*_tuple(key), len(values), *_interval(values.tolist(), digits)))
    return pd.DataFrame(found, columns=[*keys, "seeds", metric, "low", "high"])


def compared(
    rows: pd.DataFrame, by: str, first: str, second: str, metric: str | None = None
) -> pd.DataFrame:
    """How much larger a metric of the second protocol's runs is, over the seeds of both.

    Metrics are as for :func:`grouped`.

    Raises:
        ValueError: a protocol has no results, or they have no group and seed in common.
    """
    for protocol in (first, second):
        if protocol not in set(rows["protocol"]):
            raise ValueError(not_known(f"protocol={protocol!r}", sorted(set(rows["protocol"]))))
    keys = [key for key in _keys(rows, by) if key != "protocol"]
    metric, factor, digits = _metric(rows, metric)
    means = factor * rows.groupby([*keys, "seed", "protocol"], dropna=False)[metric].mean()
    wide = means.unstack("protocol")[[first, second]].dropna()
    if wide.empty:
        raise ValueError(f"{first} and {second} have no {', '.join(keys)} and seed in common")
    found = []
    for key, both in wide.groupby(level=list(range(len(keys))), dropna=False, sort=False):
        differences = (both[second] - both[first]).tolist()
        middle, interval = both.mean(), _interval(differences, digits)
        found.append((*_tuple(key), len(both), middle[first], middle[second], *interval))
    return pd.DataFrame(found, columns=[*keys, "seeds", first, second, "difference", "low", "high"])


def write(rows: pd.DataFrame, path: Path) -> None:
    """Write all rows in the format of the file's suffix; ValueError if it is not known."""
    if path.suffix not in FORMATS:
        raise ValueError(not_known(f"{path}: format {path.suffix!r}", FORMATS))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        getattr(rows, FORMATS[path.suffix])(partial, index=False)


def send(records: Sequence[Record], rows: pd.DataFrame, address: str) -> None:
    """Send each record that has rows to an MLflow server, as a run of its protocol's experiment.

    Raises:
        RuntimeError: MLflow is not installed.
    """
    try:
        import mlflow
    except ModuleNotFoundError:
        raise RuntimeError(
            'MLflow is not installed; install it with: pip install "coalora-lib[mlflow]"'
        ) from None
    mlflow.set_tracking_uri(address)
    for position, own in rows.groupby("record"):
        record = records[int(position)]
        mlflow.set_experiment(record.protocol)
        with mlflow.start_run(run_name=record.file_name.removesuffix(".json")):
            job = {"method": record.job.method, "rank": record.job.rank, "seed": record.job.seed}
            about = {"dataset": record.dataset, "profile": record.profile, "model": record.model}
            mlflow.log_params(job | about)
            mlflow.log_params({f"profile.{key}": v for key, v in record.parameters.items()})
            for kind, results in own.groupby("kind"):
                for step, row in enumerate(results.itertuples()):
                    measured = {name: getattr(row, name) for name in (*METRICS, "bits")}
                    there = {f"{kind}.{k}": v for k, v in measured.items() if pd.notna(v)}
                    mlflow.log_metrics(there, step=step)


def _keys(rows: pd.DataFrame, by: str) -> list[str]:
    """The columns to group by, and those in which records of one table must agree."""
    named = [name.strip() for name in by.split(",") if name.strip()]
    _known(rows, named)
    apart = [n for n in ("protocol", "dataset", "profile") if rows[n].nunique() > 1]
    return list(dict.fromkeys([*apart, *named]))


def _known(rows: pd.DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in rows or column in ("record", "correct"):
            allowed = [name for name in rows if name not in ("record", "correct")]
            raise ValueError(not_known(f"column={column!r}", allowed))


def _metric(rows: pd.DataFrame, name: str | None) -> tuple[str, float, int]:
    """A metric's name, factor and digits."""
    if name is None:
        name = "accuracy" if rows["accuracy"].notna().any() else "loss"
    if name not in METRICS:
        raise ValueError(not_known(f"metric={name!r}", METRICS))
    if rows[name].isna().all():
        raise ValueError(f"no result has {name}")
    return name, *METRICS[name]


def _tuple(key: object) -> tuple:
    return key if isinstance(key, tuple) else (key,)


def _interval(values: Sequence[float], digits: int) -> tuple[float, float | None, float | None]:
    """Mean and ends, rounded as they are read; no ends of one value, or if one is NaN."""
    middle = sum(values) / len(values)
    if len(values) < 2 or math.isnan(middle):
        return round(middle, digits), None, None
    found = student_interval(values)
    return round(found.mean, digits), round(found.low, digits), round(found.high, digits)


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
