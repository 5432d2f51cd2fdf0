"""Grids of batches: their YAML, and changes from the command line."""

import yaml
from hypothesis import given
from hypothesis import strategies as st

from coalora_lib.batch.grid import Grid
from tests.fuzz.documents import changed, damaged
from tests.fuzz.judge import inputs, judge

METHODS = {
    "methods": ["coa-lora", "lq-lora"],
    "ranks": [4, 8],
    "seeds": {"from": 0, "to": 4, "step": 2},
    "profile": "standard",
    "dataset": "sst2",
    "learning_rate": [0.0005, 0.001],
    "epochs": 0.5,
    "exclude": [{"method": "lq-lora", "rank": [8]}],
    "results": "_build/results/rates",
}
CHAPTERS = {
    "chapters": ["02", "06"],
    "parameters": {"seed": {"to": 3}, "profile": ["quick"]},
    "exclude": [{"chapter": "02_configurations", "seed": 1}],
}


def jobs(path):
    """Of a grid that is read, all of them; their names lead nowhere else."""
    made = Grid.read(path).jobs()
    for job in made:
        assert "/" not in job.name + job.file
        assert not job.file.startswith(".")
    return made


@inputs(120)
@given(st.sampled_from([METHODS, CHAPTERS]).flatmap(changed))
def test_changed_grids(fresh, content):
    path = fresh() / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    judge("grids", lambda: jobs(path), folder=path.parent)


@inputs(60)
@given(st.sampled_from([METHODS, CHAPTERS]).flatmap(lambda d: damaged(yaml.dump(d).encode())))
def test_damaged_grids(fresh, content):
    path = fresh() / "grid.yaml"
    path.write_bytes(content)
    judge("grids", lambda: jobs(path), folder=path.parent)
