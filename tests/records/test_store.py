"""What may be in a record, how it is written and read, and which records stand in one table."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coalora_lib.records import (
    Job,
    Record,
    Result,
    SearchedSet,
    read_record,
    read_records,
    write_record,
)
from coalora_lib.records.schema import pack
from coalora_lib.records.store import MOST_BYTES

STORED = Path(__file__).parents[2] / "book" / "results"
CORRECT = torch.tensor([True, False, True])


def result(budget=3.0, **changed):
    content = {
        "budget": budget,
        "bits": 2.99,
        "accuracy": 2 / 3,
        "loss": 0.5,
        "examples": 3,
        "seconds": 1.2,
        "steps": 4,
        "passes": 4,
        "correct": pack(CORRECT),
    }
    return Result(**content | changed)


def record(**changed):
    content = {
        "protocol": "trial-1",
        "job": Job("coa-lora", 4, 0),
        "created": "2026-01-01T00:00:00+00:00",
        "dataset": "embedded",
        "synthetic": True,
        "data_checksum": "d",
        "model": "some/model",
        "model_checksum": "m",
        "profile": "quick",
        "parameters": {"epochs": 1},
        "device": "CPU",
        "versions": {"torch": "2.13.0"},
        "git_commit": None,
        "results": [result(), result(None)],
    }
    return Record(**content | changed)


def test_records_are_written_whole_and_read_back(tmp_path, monkeypatch):
    written = record()
    path = write_record(written, tmp_path / "new")
    assert path.name == "coa-lora-rank4-embedded-quick-seed0.json"
    assert read_record(path) == written

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_record(written, path.parent)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_result_of_embeddings_has_no_accuracy(tmp_path):
    measured = {"accuracy": None, "correct": None, "neighbours": 0.5, "spearman": -0.25}
    written = record(results=[result(**measured)])
    (found,) = read_record(write_record(written, tmp_path)).results
    assert (found.accuracy, found.neighbours, found.spearman) == (None, 0.5, -0.25)


def test_a_name_is_the_jobs_alone():
    names = [
        (Job("qlora", 8, 1, 2.25), "qlora-rank8-2.25bits-embedded-quick-seed1.json"),
        (Job("full-fine-tuning", None, 0), "full-fine-tuning-embedded-quick-seed0.json"),
    ]
    for job, name in names:
        assert record(job=job).file_name == name


@pytest.mark.parametrize("count", [1, 8, 13])
def test_correctness_is_packed_and_unpacked(count):
    right = torch.rand(count) < 0.5
    found = result(correct=pack(right), examples=count)
    assert np.array_equal(found.correctness, right.numpy())
    with pytest.raises(ValueError, match="no correctness per example"):
        _ = result(correct=None).correctness


def test_a_search_is_stored_and_read_back():
    rows = torch.tensor([[0, 431, 12], [7, 7, 7]])
    losses, bits = torch.rand(2, 2).double() + 2
    found = SearchedSet.of(rows, losses, bits, 1, torch.tensor([1]))
    assert found.configurations == ["0 431 12", "7 7 7"]
    again = SearchedSet.model_validate_json(found.model_dump_json())
    assert torch.equal(again.rows, rows)
    torch.testing.assert_close(again.points, torch.stack([losses, bits], 1), rtol=1e-6, atol=0)


def test_a_run_that_diverged_is_recorded(tmp_path):
    path = write_record(
        record(results=[result(loss=float("nan")), result(loss=float("inf"))]), tmp_path
    )
    assert [str(found.loss) for found in read_record(path).results] == ["nan", "inf"]


def changed(path, **fields):
    """The stored record with fields changed at ``a.0.b``."""
    content = json.loads(path.read_text())
    for place, value in fields.items():
        *outer, last = place.split("__")
        inner = content
        for part in outer:
            inner = inner[int(part) if part.isdigit() else part]
        inner[last] = value
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("results__0__accuracy", 7.5),
        ("results__0__accuracy", float("nan")),
        ("results__0__neighbours", 1.5),
        ("results__0__agreement", -0.1),
        ("results__0__spearman", -1.5),
        ("results__0__bits", 0),
        ("results__0__bits", float("inf")),
        ("results__0__loss", -0.1),
        ("results__0__examples", -3),
        ("results__0__examples", 3.0),
        ("results__0__examples", 10**400),
        ("results__0__seconds", -1),
        ("results__0__steps", True),
        ("results__0__correct", "?"),
        ("results__0__correct", "AAAAAAAA"),
        ("job__rank", 0),
        ("job__rank", 4.5),
        ("job__seed", 2**32),
        ("job__budget", -2),
        ("job__method", "../outside"),
        ("job__method", "a/b"),
        ("job__space", ".."),
        ("dataset", "/tmp/x"),
        ("profile", "..\\x"),
        ("profile", "a..b"),
        ("protocol", ""),
        ("stored", -1),
        ("phases", {"lunch": 1.0}),
        ("unknown", 1),
    ],
)
def test_a_field_out_of_range_is_named_with_its_file(place, value, tmp_path):
    path = changed(write_record(record(), tmp_path), **{place: value})
    with pytest.raises(ValueError, match=r"seed0\.json is not a record: ") as raised:
        read_record(path)
    text = str(raised.value)
    assert "\n" not in text
    field = ".".join(place.split("__")[:-1] if place.endswith("correct") else place.split("__"))
    assert field in text


@pytest.mark.parametrize(
    "change",
    [
        {"losses": [1.0]},
        {"kept": [2]},
        {"proposed": 3},
        {"configurations": ["0 1", "0 1 2"]},
        {"configurations": ["0 -1", "0 1"]},
        {"configurations": ["0  1", "0 1"]},
    ],
    ids=["losses", "kept", "proposed", "layers", "negative", "spaces"],
)
def test_a_search_that_does_not_fit_together_is_refused(change, tmp_path):
    whole = {
        "configurations": ["0 1", "2 3"],
        "losses": [1.0, 2.0],
        "bits": [3.0, 4.0],
        "proposed": 1,
        "kept": [0, 1],
    }
    path = write_record(record(searches=[whole]), tmp_path)
    changed(path, searches=[whole | change])
    with pytest.raises(ValueError, match=r"seed0\.json is not a record: searches\.0"):
        read_record(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"job": ',
        b"\xff\xfe{}",
        b'{"dataset": "\\ud800"}',
        b'{"a": ' * 100_000,
        b"[" * 100_000,
        b'{"parameters": ' + b'{"a": ' * 5000 + b"1" + b"}" * 5001,
    ],
    ids=["empty", "list", "cut", "not-utf-8", "surrogate", "deep", "deep-list", "deep-parameters"],
)
def test_what_is_no_record_is_refused_by_name(content, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json is not a record: ") as raised:
        read_record(path)
    assert len(str(raised.value)) < 400


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(ValueError, match=rf"{MOST_BYTES + 1} bytes, at most {MOST_BYTES}"):
        read_record(path)


def test_a_record_changed_to_leave_its_folder_is_not_written(tmp_path):
    outside = record().model_copy(update={"dataset": "../../x"})
    with pytest.raises(ValueError, match="dataset"):
        write_record(outside, tmp_path / "in")
    assert not list(tmp_path.rglob("*.json"))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no records"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("protocol", {"protocol": "trial-2"}),
        ("data", {"data_checksum": "other"}),
        ("model", {"model_checksum": "other"}),
        ("profile", {"profile": "standard"}),
        ("parameters", {"parameters": {"epochs": 2}}),
    ],
)
def test_records_on_different_ground_are_refused(name, change, tmp_path):
    write_record(record(), tmp_path)
    write_record(record(job=Job("coa-lora", 8, 1), **change), tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: records differ in {name}: coa-lora-rank4-"):
        read_records(tmp_path)


def test_jobs_versions_commit_and_code_may_differ(tmp_path):
    write_record(record(), tmp_path)
    other = record(
        job=Job("qlora", 8, 1, 3.0, "int"), versions={}, git_commit="1", code="2", device="GPU"
    )
    write_record(other, tmp_path)
    assert len(read_records(tmp_path)) == 2


def test_every_stored_record_is_read_and_stands_under_its_name():
    paths = [
        path
        for path in STORED.rglob("*/*.json")
        if path.parent.name not in ("benchmarks", "scale", "search")
    ]
    assert len(paths) == 1129
    for path in paths:
        stored = read_record(path)
        assert stored.file_name == path.name
        for each in stored.results:
            if each.correct is not None:
                assert each.correctness.mean() == pytest.approx(each.accuracy, abs=1e-12)


def test_a_copy_keeps_its_job_frozen():
    job = Job("coa-lora", 4, 0)
    assert replace(job, rank=8) == Job("coa-lora", 8, 0)
    with pytest.raises(ValueError, match="method"):
        replace(job, method="a b")
