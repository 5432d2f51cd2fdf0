"""Runs of methods and chapters as jobs: names, results that are theirs, going on."""

import json
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from coalora_lib.batch.chapters import checked, execute_book
from coalora_lib.batch.jobs import MethodRun, chapter_run, name_of
from coalora_lib.experiments.runner import job_for, run_job
from coalora_lib.records import record_bytes, record_from
from coalora_lib.training import loop
from tests.batch.conftest import Told


@pytest.fixture(scope="module")
def made(small_run, small_setup, tmp_path_factory):
    """A job, and the content of its record."""
    job = job_for("shared-lora", 4, 0)
    path = run_job(small_setup, job, tmp_path_factory.mktemp("record"))
    return MethodRun(job, small_run), path.read_bytes()


def test_a_record_is_its_jobs(made):
    job, content = made
    job.check(content)
    assert job.file == "shared-lora-rank4-embedded-quick-seed0.json"
    assert job.name == job.file.removesuffix(".json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "comparison-1"}, "protocol is comparison-1 there, comparison-2 is wanted"),
        ({"data_checksum": "0"}, "data_checksum is 0 there"),
        ({"model_checksum": "0"}, "model_checksum is 0 there"),
        ({"profile": "standard"}, "profile is standard there, quick is wanted"),
        ({"parameters": {"learning_rate": 0.5}}, r"parameters.learning_rate is 0\.5 there, 0\.001"),
        ({"job": {"seed": 7}}, "job.seed is 7 there, 0 is wanted"),
        ({"results": [{"bits": 3}]}, r"it is not a record: results\.0\.budget"),
        ({"no_such_field": 1}, "it is not a record: no_such_field"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_record_under_a_jobs_name_is_named(change, message, made):
    job, content = made
    altered = json.loads(content)
    for key, value in change.items():
        altered[key] = altered[key] | value if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        job.check(json.dumps(altered).encode())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null"], ids=range(5))
def test_what_is_no_record_is_named(content, made):
    with pytest.raises(ValueError, match="it is not a record: "):
        made[0].check(content)


def test_a_run_that_was_killed_goes_on_and_counts_its_whole_time(
    made, small_run, tmp_path, monkeypatch
):
    job, _ = made
    run = replace(small_run, profile=replace(small_run.profile, epochs=4.0))
    job = MethodRun(job.job, run)
    steps = []
    real = loop.Trainer.train_step

    def stopping(trainer):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(trainer.step)
        return real(trainer)

    whole = record_from(job.run(tmp_path / "whole"))
    monkeypatch.setattr(loop.Trainer, "train_step", stopping)
    monkeypatch.setitem(loop.train.__kwdefaults__, "checkpoint_every", 2)
    with pytest.raises(KeyboardInterrupt):
        job.run(tmp_path / "killed")
    steps.clear()
    record = record_from(job.run(tmp_path / "killed"))
    assert steps[0] >= 4
    assert [r.correct for r in record.results] == [r.correct for r in whole.results]
    assert [r.loss for r in record.results] == [r.loss for r in whole.results]
    assert record.results[0].steps == whole.results[0].steps
    job.check(record_bytes(record))


CHAPTER = Path("book/1_a.ipynb")


@pytest.fixture
def project(tmp_path):
    """A book of one chapter, whose second cell a test may change."""
    folder = tmp_path / "book"
    folder.mkdir()
    cells = [
        nbformat.v4.new_code_cell(
            'profile = "quick"\nseed = 0\nrate = 0.5', metadata={"tags": ["parameters"]}
        ),
        nbformat.v4.new_code_cell("print(profile, seed, rate)"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "1_a.ipynb")
    (tmp_path / "_toc.yml").write_text("root: book/1_a.ipynb\nchapters: []\n")
    (tmp_path / "_config.yml").write_text("title: T\n")
    return tmp_path


def test_a_chapter_keeps_its_parameters_and_is_told_apart(project, run, fault):
    jobs = [chapter_run(project, CHAPTER, {"seed": seed}) for seed in (1, 2)]
    assert sorted(run(jobs, project / "out").made) == ["1_a-seed-1", "1_a-seed-2"]
    content = (project / "out" / "1_a-seed-2.ipynb").read_bytes()
    executed = nbformat.reads(content.decode(), as_version=4)
    assert executed.cells[-1].outputs[0].text == "quick 2 0.5\n"
    assert executed.metadata["coalora_batch"]["parameters"] == {"seed": 2}
    jobs[1].check(content)
    with pytest.raises(ValueError, match=r"parameters.seed is 2 there, 1 is wanted"):
        jobs[0].check(content)
    executed.cells[-1].metadata["papermill"]["status"] = "pending"
    with pytest.raises(ValueError, match="it was not executed to its end: cell 3 is pending"):
        jobs[1].check(nbformat.writes(executed).encode())
    path = project / "book" / "1_a.ipynb"
    path.write_text(path.read_text().replace("print(profile", "print(1, profile"))
    changed = chapter_run(project, CHAPTER, {"seed": 2})
    with pytest.raises(ValueError, match="source is "):
        changed.check(content)
    with pytest.raises(ValueError, match="it was not made by a batch"):
        changed.check(path.read_bytes())
    fault("a notebook of other parameters, cells, or cut short", "named before anything starts")


def test_a_failed_chapter_is_kept_with_its_error_and_stops_no_other(project, run, fault):
    path = project / "book" / "1_a.ipynb"
    path.write_text(path.read_text().replace("print(profile", "1 / seed; print(profile"))
    jobs = [chapter_run(project, CHAPTER, {"seed": seed}) for seed in (0, 1)]
    summary = run(jobs, project / "out")
    assert summary.made == ["1_a-seed-1"]
    kept = project / "out" / "failed" / "1_a-seed-0.ipynb"
    error = summary.failed["1_a-seed-0"]
    assert "ZeroDivisionError: division by zero" in error
    assert error.endswith(f"executed up to there: {kept}")
    outputs = nbformat.read(kept, as_version=4).cells[-1].outputs
    assert [output.output_type for output in outputs] == ["error"]
    fault("a chapter fails", "the others; its notebook is kept up to the error", "that chapter")


def test_a_book_is_executed_into_a_folder_of_its_own(project):
    for seed in (3, 4):
        target = project / "_build" / f"seed{seed}"
        summary = execute_book(project, target, {"seed": seed, "other": 1}, 1, Told())
        assert summary.succeeded
        cells = nbformat.read(target / "source/book/1_a.ipynb", as_version=4).cells
        (text,) = (cell.outputs[0].text for cell in cells if cell.get("outputs"))
        assert text == f"quick {seed} 0.5\n"
        hidden = [cell for cell in cells if "remove-cell" in cell.metadata.tags]
        assert [cell.metadata.tags[0] for cell in hidden] == ["parameters"]  # the injected is shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sede": [1]}, r"parameter 'sede' .* did you mean seed\? allowed: profile, seed, rate"),
        ({"seed": ["one"]}, "seed='one' must be of type int, as 0 is"),
        ({"seed": [True]}, "seed=True must be of type int"),
        ({"seed": [-1]}, "seed=-1 is not known; allowed: integers from 0"),
        ({"profile": ["quik"]}, r"did you mean quick\? allowed: quick, standard, paper"),
    ],
    ids=["name", "text", "truth", "negative", "profile"],
)
def test_a_chapters_parameters_are_checked_against_its_own(given, message, project):
    with pytest.raises(ValueError, match=message):
        list(checked(project, [CHAPTER], given))


def test_values_of_a_chapter_are_taken_once_and_as_its_own_type(project):
    ((_, values),) = checked(project, [CHAPTER], {"rate": [1, 1.0, 2], "seed": [0, 0]})
    assert values == {"rate": [1.0, 2.0], "seed": [0]}


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({}, "06_sst2"),
        ({"seed": 3, "profile": "quick"}, "06_sst2-profile-quick-seed-3"),
        ({"results": "../../x/y"}, "06_sst2-results-x-y-"),
        ({"results": "a\nb"}, "06_sst2-results-a-b-"),
        ({"results": "x" * 500}, "06_sst2-results-xxx"),
        ({"rate": -1}, "06_sst2-rate-1-"),
    ],
    ids=["none", "plain", "path", "line", "long", "sign"],
)
def test_a_chapters_name_is_safe_and_depends_on_its_parameters_alone(parameters, name):
    found = name_of("06_sst2", parameters)
    assert found.startswith(name)
    assert len(found) <= 140
    assert "/" not in found
    assert ".." not in found
    assert found == name_of("06_sst2", dict(reversed(parameters.items())))
    if found != name:  # a digest tells it from others that look the same
        assert found != name_of("06_sst2", parameters | {"other": 1})
