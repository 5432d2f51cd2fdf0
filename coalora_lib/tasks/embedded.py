"""A small synthetic sentiment corpus: review phrases from a grammar.

Made so that counting good and bad words is not enough: negation turns a clause round, and in a
contrast the clause that the phrase settles on decides. The label is known by construction. It
replaces a data set where there is none. Results on it say nothing about real reviews.
"""

from __future__ import annotations

from random import Random

_ASPECTS = (
    "acting, camera work, cast, comedy, dialogue, direction, drama, editing, ending, film, "
    "first half, music, pace, plot, remake, romance, score, script, sequel, story"
)
_PRAISE = (
    "absorbing, assured, charming, clever, delightful, elegant, fresh, funny, gripping, "
    "inspired, lively, lovely, moving, sharp, superb, tender, thoughtful, warm, witty, "
    "wonderful"
)
_BLAME = (
    "awful, bland, boring, clumsy, cold, dreary, dull, empty, flat, forgettable, hollow, lazy, "
    "messy, pointless, silly, stale, stiff, tedious, tiresome, weak"
)
ASPECTS = _ASPECTS.split(", ")
#: By the label that they speak for.
ADJECTIVES = {1: _PRAISE.split(", "), 0: _BLAME.split(", ")}
INTENSITY = ("", "", "", "quite", "really", "rather", "truly", "utterly", "very")
NEGATIONS = ("not", "never", "hardly", "far from", "anything but")
#: A contrast: {other} is granted, {main} is what the phrase settles on.
CONTRASTS = (
    "{other} but {main}",
    "although {other} , {main}",
    "{main} , even if {other}",
    "{other} , yet {main}",
    "{main} , though {other}",
)


def review_phrases(count: int, seed: int) -> list[tuple[str, int]]:
    """Distinct phrases with their labels (1 positive, 0 negative), in random order.

    Half of them carry each label up to chance; the same seed gives the same list.
    """
    random = Random(seed)
    phrases: dict[str, int] = {}
    while len(phrases) < count:
        label = random.randint(0, 1)
        phrases.setdefault(_phrase(random, label), label)
    return list(phrases.items())


def _phrase(random: Random, label: int) -> str:
    kind = random.random()
    if kind < 0.5:
        return _clause(random, label)
    if kind < 0.75:
        return f"{_clause(random, label)} and {_clause(random, label)}"
    contrast = random.choice(CONTRASTS)
    return contrast.format(main=_clause(random, label), other=_clause(random, 1 - label))


def _clause(random: Random, label: int) -> str:
    negated = random.random() < 0.15
    adjective = random.choice(ADJECTIVES[1 - label if negated else label])
    words = ["the", random.choice(ASPECTS), "is"]
    words += [random.choice(NEGATIONS) if negated else random.choice(INTENSITY), adjective]
    return " ".join(word for word in words if word)
