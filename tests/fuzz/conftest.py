"""What the fuzzers share: folders, counts, models and files that the inputs are made of."""

import json
import shutil

import pytest
import torch

from coalora_lib.adapter import CoaLora, OrderedFit
from coalora_lib.files import atomic_file
from coalora_lib.records.environment import versions
from tests.conftest import tiny_bert
from tests.fuzz.judge import COUNTS


@pytest.fixture(scope="session", autouse=True)
def _counts(request):
    """With --record, how many inputs of each kind were refused and accepted."""
    yield
    if path := request.config.getoption("--record"):
        kinds = {
            kind: {"inputs": counts.total(), **counts} for kind, counts in sorted(COUNTS.items())
        }
        total = sum(each["inputs"] for each in kinds.values())
        content = {"inputs": total, "kinds": kinds, "versions": versions()}
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n")


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """Gives an empty folder; the one given before is removed."""
    root = tmp_path_factory.mktemp("fuzz")

    def give():
        shutil.rmtree(root)
        root.mkdir()
        return root

    return give


@pytest.fixture(scope="session")
def adapted():
    """A tiny model with adapters, its error table measured."""
    torch.manual_seed(0)
    model = CoaLora.attach(tiny_bert(), rank=2, alpha=4, width=2, hidden=8)
    model.set_configuration(3.1)
    return model


@pytest.fixture(scope="session")
def saved(adapted, tmp_path_factory):
    """A saved model with a configuration fitted, its base in a folder beside it."""
    root = tmp_path_factory.mktemp("saved")
    base = tiny_bert()
    base.save_pretrained(root / "base")
    adapted.model.get_base_model().name_or_path = str(root / "base")
    batch = {"input_ids": torch.arange(6, 26).reshape(2, 10)}
    OrderedFit(adapted, batch, compensated=True).fit(2.5, rank=1)
    return adapted.save_pretrained(root / "model", quantized=True)
