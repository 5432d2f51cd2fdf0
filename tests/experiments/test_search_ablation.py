import pytest
import torch

from coalora_lib.experiments.records import SearchedSet
from coalora_lib.experiments.search_ablation import unseen_accuracies
from coalora_lib.search import Round


def test_a_search_is_stored_and_read_back():
    rows = torch.tensor([[0, 3, 1, 2, 0], [1, 1, 1, 1, 1]])
    losses, bits = torch.rand(2, 2).double()
    found = Round(rows, losses, bits, 1, torch.tensor([1]))
    again = SearchedSet.model_validate_json(SearchedSet.of(found).model_dump_json())
    assert torch.equal(again.indices, rows)
    torch.testing.assert_close(again.points, torch.stack([losses, bits], 1), rtol=1e-6, atol=0)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no records"):
        unseen_accuracies(tmp_path)
