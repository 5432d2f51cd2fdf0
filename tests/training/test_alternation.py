from coalora_lib.spaces import NORMAL_FLOAT
from coalora_lib.training.alternation import length_scale_groups


def test_a_length_scale_is_shared_by_field_and_module_type():
    names = [f"encoder.layer.{block}.{kind}" for block in (0, 1) for kind in ("query", "dense")]
    groups = length_scale_groups(names, NORMAL_FLOAT).tolist()
    assert groups == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2
