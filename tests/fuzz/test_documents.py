"""JSON and YAML that describe something: records, devices, runs."""

import json

import yaml
from hypothesis import given

from coalora_lib.experiments.runner import run_of
from coalora_lib.recipes import Settings, read_device, report
from coalora_lib.recipes.folder import ABOUT, MODEL, Described, Outcome, RunFolder
from coalora_lib.records import read_record, read_records
from tests.fuzz.documents import broken_json, changed, damaged, resealed
from tests.fuzz.judge import inputs, judge
from tests.records.test_store import record, result

RECORD = record(
    searches=[
        {
            "configurations": ["0 1", "2 3"],
            "losses": [0.5, 0.25],
            "bits": [3.0, 4.0],
            "proposed": 1,
            "kept": [1],
        }
    ],
    twins=[{"seen": result(None), "unseen": result(None)}],
    phases={"training": 1.0},
).model_dump(mode="json")
DEVICE = {
    "bits": 3.1,
    "bytes": "6MB",
    "size": "16MB",
    "allowed": {"weight_bits": [4, 8]},
    "fixed": {
        "bert.encoder.layer.0.output.dense": {
            "weight_bits": 8,
            "scale_bits": 8,
            "scale_dtype": "fp16",
            "block_size": 64,
            "scale_block_size": 256,
        }
    },
}
SETTINGS = Settings(data="reviews.csv", text="review", label="stars", budgets=(2.5, 4.0))
RUN = Described(
    settings=SETTINGS,
    outcome=Outcome(
        classes=["bad", "good"],
        kind="single-label",
        metrics=[{"bits": 3.0, "accuracy": 0.5}],
        examples={"training": 9, "validation": 1},
        losses=[0.5],
        searches=[],
        seconds=1.0,
    ),
).model_dump(mode="json")


def use_record(path):
    """What is done with a record that is read: tables, and the run that it says it is of."""
    found = read_record(path)
    read_records(path.parent)
    for each in found.results:
        _ = each.correct is None or each.correctness
    for each in found.searches:
        _ = each.points, each.rows
    assert "/" not in found.file_name
    return found


@inputs(130)
@given(broken_json(RECORD))
def test_records(fresh, content):
    path = fresh() / "record.json"
    path.write_bytes(content)
    judge("records", lambda: use_record(path), [path], path.parent)


@inputs(30)
@given(changed(RECORD["parameters"]), changed(RECORD["job"]))
def test_records_to_make_again(fresh, parameters, job):
    path = fresh() / "record.json"

    def again():
        return run_of(use_record(path))

    path.write_text(json.dumps(RECORD | {"parameters": parameters, "job": job}))
    judge("records", again, [path, "-seed"], path.parent)


def yaml_of(document):
    try:
        return yaml.safe_dump(document).encode()
    except (yaml.YAMLError, UnicodeError, RecursionError):
        return repr(document).encode(errors="replace")


@inputs(100)
@given(changed(DEVICE).map(yaml_of) | damaged(yaml_of(DEVICE)) | broken_json(DEVICE))
def test_devices(fresh, adapted, content):
    path = fresh() / "device.yaml"
    path.write_bytes(content)
    device = judge("devices", lambda: read_device(path), [path], path.parent)
    if device is not None:
        judge("devices", lambda: adapted.resolve(device.constraints(adapted)))


@inputs(60)
@given(resealed(RUN))
def test_runs(fresh, saved, content):
    folder = fresh()
    (folder / ABOUT).write_bytes(content)
    run = judge("runs", lambda: RunFolder.open(folder), [folder / ABOUT], folder)
    if run is not None and run.described.outcome is not None:
        (folder / MODEL).symlink_to(saved)
        judge("runs", lambda: report(run), folder=folder)


@inputs(20)
@given(changed(SETTINGS.model_dump()))
def test_settings(fresh, values):
    def begin():
        return RunFolder.begin(fresh(), Settings.of(**values))

    if isinstance(values, dict):
        judge("runs", begin)
