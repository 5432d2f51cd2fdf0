"""What a bad input may end in: a result, or one clear line of an expected kind."""

import signal
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings

from coalora_lib.cli.errors import LONGEST

LIBRARY = str(Path(__file__).parents[2] / "coalora_lib")
#: The kinds of coalora_lib.cli.errors.EXPECTED, as the library raises them, and TypeError for what
#: is handed over in Python. Kinds below these, such as RecursionError, are accidents.
CLEAR = (ValueError, TypeError, RuntimeError, FloatingPointError)
#: Seconds of processor time that an input may take.
LIMIT = 10
#: By kind of input: how many were refused, and how many accepted.
COUNTS: dict[str, Counter] = {}


def inputs(count):
    """Settings of a test that takes so many inputs: the same ones each time.

    At night ten times as many, and new ones.
    """
    nightly = settings.get_current_profile_name() == "nightly"
    return settings(
        max_examples=count * (10 if nightly else 1),
        derandomize=not nightly,
        database=None,
        deadline=None,  # `judge` has one, of processor time
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        report_multiple_bugs=False,
    )


def judge(kind, call, names=(), folder=None):
    """The result of a call; None if it is refused as it should be.

    Args:
        kind: of the input, which is counted under it.
        call: what to do with the input.
        names: one of them stands in the message of a refusal.
        folder: what is as before after a refusal.
    """
    before = contents(folder)
    try:
        with processor_time(LIMIT):
            result = call()
    except Exception as error:
        count(kind, "refused")
        if (fault := fault_of(error, names)) is not None:
            raise AssertionError(f"{fault}: {type(error).__name__}: {error!s:.300}") from error
        assert contents(folder) == before, "a refused input left something"
        return None
    count(kind, "accepted")
    return result


def count(kind, ended):
    """One more input of a kind that ended so."""
    COUNTS.setdefault(kind, Counter(refused=0, accepted=0))[ended] += 1


def fault_of(error, names=()):
    """What is wrong with an error; None if it is as it should be."""
    message = str(error)
    is_file = isinstance(error, OSError) and not isinstance(error, UnicodeError)
    if type(error) not in CLEAR and not is_file:
        return "an error of another kind"
    if not message.strip():
        return "an error without words"
    if len(message.splitlines()) > 1 or (len(message) > LONGEST and not is_file):
        return "more than one line"
    if not message.isprintable():
        return "characters that no terminal shows"
    if names and not any(str(name) in message for name in names):
        return f"an error that names none of {', '.join(map(str, names))}"
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    if not last.startswith(LIBRARY) and getattr(error, "filename", None) is None:
        return f"an error of another library ({last})"
    return None


def contents(folder):
    """Every file of a folder with its size."""
    if folder is None or not Path(folder).is_dir():
        return None
    return {
        str(path.relative_to(folder)): path.stat().st_size if path.is_file() else None
        for path in Path(folder).rglob("*")
    }


@contextmanager
def processor_time(seconds):
    """Stop what takes more processor time."""

    def stop(*_):
        raise AssertionError(f"more than {seconds} s of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
