"""Grids: what they say, what they refuse, the jobs that come of them."""

import json
import re
from itertools import permutations
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coalora_lib.batch.estimate import estimate
from coalora_lib.batch.grid import Grid, expanded
from coalora_lib.cli import app

ROOT = Path(__file__).parents[2]


def grid(*changes):
    return Grid.read(None, changes)


def names(*changes, root=ROOT):
    return [job.name for job in grid(*changes).jobs(root)]


def test_values_lists_and_ranges():
    assert expanded(3) == [3]
    assert expanded([3, 4]) == [3, 4]
    assert expanded({"to": 3}) == [0, 1, 2, 3]
    assert expanded({"from": 0.1, "to": 0.3, "step": 0.1}) == [0.1, 0.2, 0.3]


def test_a_grid_is_the_product_each_job_once_and_seed_by_seed():
    found = names("methods=[coa-lora,full-fine-tuning]", "ranks=[8,4]", "seeds={to: 1}")
    one = ["coa-lora-rank4", "full-fine-tuning", "coa-lora-rank8"]
    assert found == [f"{each}-embedded-quick-seed{seed}" for seed in (0, 1) for each in one]


def test_names_do_not_depend_on_the_order_or_on_what_is_said_twice():
    wanted = names("methods=[coa-lora,shared-lora]", "ranks=[4,8]", "seeds=[0,1]")
    for ranks in permutations([4, 8, 8]):
        changes = (f"ranks={list(ranks)}", "methods=[shared-lora,coa-lora,coa-lora]")
        assert names(*changes, "seeds=[1,0]") == wanted


def test_other_settings_have_other_names_and_the_profiles_own_has_none():
    found = names("methods=coa-lora", "learning_rate=[1e-3, 2e-3]", "epochs=[1, 0.5]")
    assert found == [
        f"coa-lora-rank8-embedded-quick{changed}-seed0"
        for changed in (
            "-epochs0.5",
            "",
            "-learning_rate0.002-epochs0.5",
            "-learning_rate0.002",
        )
    ]


def test_what_is_excluded_is_left_out():
    changes = ("methods=[coa-lora,shared-lora]", "ranks=[4,8]")
    found = names(*changes, "exclude=[{method: coa-lora, rank: [8, 16]}]")
    assert found == [
        f"{each}-embedded-quick-seed0"
        for each in ("coa-lora-rank4", "shared-lora-rank4", "shared-lora-rank8")
    ]


def test_chapters_times_seeds():
    found = names('chapters=["06"]', "seeds={to: 3}", "parameters={results: [a, b]}")
    assert found == [
        f"06_sst2-results-{results}-seed-{seed}" for seed in range(4) for results in "ab"
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["method=coa-lora"], "key 'method' is not known; did you mean methods? allowed: methods,"),
        (["methods=coa-lorra"], "did you mean coa-lora? allowed: coa-lora, "),
        (["methods=coa-lora", "profile=quik"], "did you mean quick? allowed: quick, standard"),
        (["methods=coa-lora", "dataset=sst3"], "did you mean sst2? allowed: embedded, sst2"),
        (["methods=coa-lora", "ranks=0"], "ranks.0: Input should be greater than or equal to 1"),
        (["methods=coa-lora", "ranks=true"], "ranks.0: Input should be a valid integer, got True"),
        (["methods=coa-lora", "seeds=[-1]"], "seeds.0: Input should be greater than or equal to 0"),
        (["methods=coa-lora", "seeds=[]"], "seeds: Value should have at least 1 item"),
        (["methods=coa-lora", "learning_rate=.nan"], "learning_rate.0: Input should be"),
        (["methods=coa-lora", "learning_rate=yes"], "learning_rate.0: Value error, a number is"),
        (["methods=coa-lora", "seeds={form: 1}"], "did you mean from? allowed: from, to, step"),
        (["methods=coa-lora", "seeds={from: 3, to: 1}"], "range from 3 to 1 by 1 holds nothing"),
        (["methods=coa-lora", "seeds={to: 1, step: 0}"], "range from 0 to 1 by 0 holds nothing"),
        (["methods=coa-lora", "seeds={to: 99999999999}"], "a range has 100000000000 values"),
        (["methods=coa-lora", "seeds={to: .inf}"], "range from 0 to inf by 1 holds nothing"),
        (["methods=coa-lora", "seeds={from: 1}"], "a range needs numbers"),
        (["methods=coa-lora", "seeds={to: 9999}", "ranks={from: 1, to: 99}"], "990000 jobs and"),
        (["methods=coa-lora", 'chapters=["06"]'], "a grid must have either methods or chapters"),
        (["seeds=1"], "a grid must have either methods or chapters"),
        (['chapters=["06"]', "ranks=4"], "ranks is for methods"),
        (["methods=coa-lora", "parameters={seed: 1}"], "parameters is for chapters"),
        (["chapters=5"], "chapters.0: Input should be a valid string, got 5"),
        (['chapters=["99"]'], "chapter='99' is not known; allowed: 00_introduction, "),
        (['chapters=["06"]', "parameters={rank: 4}"], "parameter 'rank' of these chapters is not"),
        (["methods=coa-lora", "exclude=[{rank: 64}]"], "exclude: no job matches rank=64"),
        (["methods=coa-lora", "exclude=[{rank: 8}]"], "the grid is empty"),
        (["methods=coa-lora", "dataset=c4"], "'quick' is of kind 'single-label'; data set"),
        (["methods"], "'methods' must be key=value"),
        (["methods=["], "methods=[ is not YAML"),
        (["methods=!!python/object/apply:os.getcwd []"], "is not YAML: could not determine a con"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_is_not_allowed_is_named_before_anything_starts(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        names(*changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must have keys and values"),
        ("- a", "must have keys and values"),
        ("a: [", "is not YAML"),
        ("a: &a [*a]", "key 'a' is not known"),
        ("methods: &a [*a]", "methods.0: Input should be a valid string"),
        ("[" * 5000, "is not YAML"),
        ("#" * 2**21, "it has more than 1048576 bytes"),
        ("methods: \xff\x00", "is not YAML"),
    ],
    ids=["empty", "list", "cut", "itself", "in itself", "deep", "long", "bytes"],
)
def test_a_file_that_is_no_grid_is_named(content, message, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        Grid.read(path)
    assert str(path) in str(raised.value)


def invoke(*words):
    return CliRunner(env={"COLUMNS": "400"}).invoke(app, [str(word) for word in words])


def test_the_slurm_script_is_as_stored(tmp_path):
    """Without a scheduler nothing of it depends on this machine but Python's path."""
    words = ["batch", "--set", "methods=coa-lora", "--results", tmp_path, "--dry-run", "--json"]
    queue = ["--queue", "gpu", "--cores", 8, "--node-memory", "32GB", "--walltime", "02:00:00"]
    found = invoke(*words, "--slurm", *queue, "--directive=--gres=gpu:1", "--workers", 4)
    assert found.exit_code == 0, found.output
    shown = json.loads(found.stdout)
    assert shown["jobs"] == ["coa-lora-rank8-embedded-quick-seed0"]
    script = re.sub(r"^\S*python\S* ", "python ", shown["script"], flags=re.MULTILINE)
    assert script == (Path(__file__).parent / "slurm.sh").read_text()
    assert not list(tmp_path.iterdir())


def test_the_pbs_script_has_what_was_asked_for():
    found = invoke("batch", "--set", "methods=coa-lora", "--dry-run", "--pbs", "--queue", "long")
    assert "#PBS -q long" in found.stdout
    assert "#PBS -l select=1:ncpus=4:mem=16GB" in found.stdout
    assert "#PBS -l walltime=04:00:00" in found.stdout


def test_two_places_to_run_are_refused():
    found = invoke("batch", "--set", "methods=coa-lora", "--slurm", "--pbs")
    assert found.exit_code == 2
    assert "only one of --scheduler, --slurm and --pbs can be given" in found.output


def test_a_batch_is_as_long_as_like_records_say():
    jobs = grid(
        "methods=[coa-lora]", "ranks=[4]", "seeds={to: 1}", "dataset=sst2", "profile=standard"
    ).jobs()
    one, two = (estimate(some, [ROOT / "book/results/sst2"]) for some in (jobs[:1], jobs))
    assert one > 10
    assert two == pytest.approx(2 * one)
    assert estimate(grid("methods=coa-lora").jobs(), [ROOT / "book/results/sst2"]) is None
