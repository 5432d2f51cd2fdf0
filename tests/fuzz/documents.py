"""Bad inputs made of good ones: one field, one byte or one type is changed."""

import json
import struct
from copy import deepcopy

from hypothesis import strategies as st

from coalora_lib.files import SEAL, seal

#: Texts that readers stumble over.
TEXTS = [
    "", " ", "\n", "\0", "\ud800", "\u2028", "\ufeff", "nan", "inf", "-1", "1e999", "0x10", "None",
    "../up", "/etc", "~nobody", "a" * 3000, "é", "\x1b[2J", "[]", "{}", "%s", "9" * 5000,
]  # fmt: skip
NUMBERS = [
    0, -1, 1, 2, 3, 2**31, 2**63, -(2**63) - 1, 2**64, 10**400,
    0.0, -0.0, 0.5, 1.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), -float("inf"),
]  # fmt: skip


def nested(depth):
    """A list in a list in a list."""
    made = []
    for _ in range(depth):
        made = [made]
    return made


#: What stands where something else is expected.
JUNK = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from([None, True, False]),
    st.builds(list),
    st.builds(dict),
    st.builds(nested, st.sampled_from([1, 3, 50, 400])),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-3, 3) | st.none() | st.floats(), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers() | st.none(), max_size=3),
)
#: Pieces of files that readers stumble over.
PIECES = [
    b"\0", b'"', b"'", b"\r", b"\n", b"\r\n", b"\t", b",", b";", b"\xff", b"\xff\xfe", b"\xfe\xff",
    b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x1a", b"\xe2\x80\xa8", b"\xc3", b"NaN", b"-1", b"1e999",
    b"9" * 5000, b"[" * 100_000, b'{"a":' * 2000, b"\\ud800", b"{", b"}", b"]", b"null", b"true",
    b": ", b"- ", b"&a ", b"*a", b"!!python/object/apply:os.getcwd []", b"x" * 200_000,
]  # fmt: skip


@st.composite
def changed(draw, document):
    """A document of dictionaries and lists of which one or two places are others."""
    made = {"": deepcopy(document)}
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        parent, key = draw(st.sampled_from(list(places(made))))
        how = draw(st.sampled_from(["junk", "junk", "junk", "near", "drop", "more"]))
        value = parent[key]
        if how == "drop" and key != "":
            del parent[key]
        elif how == "more" and isinstance(value, dict):
            value[draw(st.sampled_from(TEXTS))] = draw(JUNK)
        elif how == "more" and isinstance(value, list):
            value.append(draw(JUNK))
        elif how == "near":
            parent[key] = near(value, draw)
        else:
            parent[key] = draw(JUNK)
    return made[""]


def places(document):
    """Each container of a document with each of its keys."""
    keys = range(len(document)) if isinstance(document, list) else list(document)
    for key in keys:
        yield document, key
        if isinstance(document[key], dict | list):
            yield from places(document[key])


def near(value, draw):
    """A value almost like another."""
    if isinstance(value, bool) or value is None:
        return draw(st.sampled_from([0, 1, "true", [value]]))
    if isinstance(value, int | float):
        others = [value + 1, -value, float(value), value + 0.5, str(value), [value], value * 2**40]
        return draw(st.sampled_from(others))
    if isinstance(value, str):
        return draw(st.sampled_from([value + " ", value[:-1], value * 2, [value], {value: value}]))
    if isinstance(value, list):
        return draw(st.sampled_from([value[:-1], value * 2, value[::-1], [value], tuple(value)]))
    return draw(st.sampled_from([[value], str(value), {}]))


@st.composite
def damaged(draw, content):
    """Bytes of which up to three pieces are others."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        end = min(len(content), at + draw(st.sampled_from([0, 1, 2, 8, 100])))
        how = draw(st.sampled_from(["put", "put", "cut", "double", "flip"]))
        if how == "cut":
            content = content[:at]
        elif how == "double":
            content = content[:end] + content[at:]
        elif how == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))])
            content += content[at + 1 :]
        else:
            piece = draw(st.sampled_from(PIECES) | st.binary(max_size=4))
            content = content[:at] + piece + content[end:]
    return content


def broken_json(document):
    """JSON of a changed document, or damaged JSON, as bytes."""
    good = json.dumps(document, indent=1).encode()
    return damaged(good) | changed(document).map(lambda made: json.dumps(made).encode())


def resealed(document):
    """A sealed file's text: of changed content with a right seal, or damaged."""
    content = {key: value for key, value in document.items() if key != SEAL}
    whole = changed(content).map(
        lambda made: seal(made) if isinstance(made, dict) else json.dumps(made)
    )
    return whole.map(str.encode) | damaged(seal(content).encode())


def broken_safetensors(content):
    """A safetensors file's bytes with a changed header, or damaged."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]

    def written(made):
        text = json.dumps(made).encode()
        return struct.pack("<Q", len(text)) + text + data

    return changed(header).map(written) | damaged(content)
