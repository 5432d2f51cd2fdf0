"""The memory of weights that were made before."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Self

from coalora_lib.adapter.weights import PretrainedWeight

#: Of the adapted weights. So much holds the packed forms of a training set: 50 budgets of MiniLM
#: ask for 11 choices of each layer, which take 1.2 times its float32 weights, and 25 arbitrary
#: configurations take 3 times these. With a share of 1/4 nearly all switches quantize again, and a
#: step on a processor takes 1.6 times as long. All restored weights would take a share of 12, and
#: save a sixth of a step.
SHARE = 4.0
#: And so many bytes at most: beside the steps of a large model, a switch takes little time.
MOST = 2**32
#: Where weights are apart, to save memory: with the quantized weights, and LoRA of rank 16, the
#: model then takes at most 1.15 times what it took before.
SHARE_APART = 1 / 8


def default_limit(kept: Iterable[PretrainedWeight]) -> int:
    """The bytes that a model's cache may hold, unless told otherwise.

    Four times the adapted weights, and 4 GiB at most; an eighth of the weights that are kept apart
    from the model.
    """
    return min(int(sum((SHARE_APART if w.apart else SHARE) * w.nbytes for w in kept)), MOST)


class WeightCache:
    """What layers made for choices they had lately: restored weights, and packed ones behind them.

    Switching a layer to a choice seen before is a look-up while its restored weight is held, and a
    de-quantization while only its packed form is. When more bytes than the limit are held, the
    restored weights used longest ago go first, then the packed ones; a limit of 0 holds nothing. A
    copy of a cache begins empty, since its keys are the identities of layers.
    """

    #: In the order in which they are given up.
    KINDS = ("restored", "packed")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.clear()

    def get(self, kind: str, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is held of a kind under a key, or else what ``make`` returns, which is then held.

        It has ``nbytes``, and is handed out whatever its size.
        """
        entries = self._entries[kind]
        if key in entries:
            entries.move_to_end(key)
            return entries[key]
        made = make()
        entries[key] = made
        self.held += made.nbytes
        for each in self._entries.values():
            while self.held > self.limit and each:
                _, dropped = each.popitem(last=False)
                self.held -= dropped.nbytes
        return made

    def holds(self, kind: str, key: Hashable) -> bool:
        """Whether something is held of a kind under a key."""
        return key in self._entries[kind]

    def clear(self) -> None:
        """Let go of everything."""
        self.held = 0
        self._entries: dict[str, OrderedDict[Hashable, Any]] = {
            kind: OrderedDict() for kind in self.KINDS
        }

    def __reduce__(self) -> tuple[type[Self], tuple[int]]:  # for copies and pickles
        return type(self), (self.limit,)
