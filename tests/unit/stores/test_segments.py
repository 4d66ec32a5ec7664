"""Segments hold entries without loss, and say so when a row is damaged."""

import contextlib
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano_vm.errors import StoreError, VerificationError
from nano_vm.journal.entry import Entry
from nano_vm.journal.port import BLOB_BYTES_MIN
from nano_vm.stores.segments import SEGMENT_ENTRIES_MAX, blob_digests, pack, unpack


def entry(seq: int, facts: bytes, salt: bytes = b"", payload: bytes | None = None) -> Entry:
    return Entry(seq, "sha256:" + sha256(facts).hexdigest(), facts, salt, payload)


payloads = st.one_of(
    st.none(),
    st.binary(max_size=40),
    st.binary(min_size=1, max_size=3).map(lambda part: part * BLOB_BYTES_MIN),
)
contents = st.lists(
    st.tuples(
        st.binary(min_size=1, max_size=60).filter(lambda facts: b"\n" not in facts),
        st.binary(max_size=63),
        payloads,
    ),
    min_size=1,
    max_size=6,
)


@given(contents, st.integers(0, 10**12))
def test_what_is_packed_is_unpacked(rows: list[tuple[bytes, bytes, bytes | None]], first: int) -> None:
    entries = [entry(first + i, *row) for i, row in enumerate(rows)]
    blobs: dict[bytes, bytes] = {}
    (segment,) = pack(entries, blobs)
    assert unpack("r", segment, blobs.get) == entries
    assert set(blob_digests(segment.payloads)) == set(blobs)
    assert all(len(payload) > BLOB_BYTES_MIN for payload in blobs.values())


def test_a_long_append_is_cut_into_consecutive_segments() -> None:
    entries = [entry(i, b"{%d}" % i) for i in range(2 * SEGMENT_ENTRIES_MAX + 1)]
    segments = pack(entries, {})
    assert [segment.seq for segment in segments] == [0, SEGMENT_ENTRIES_MAX, 2 * SEGMENT_ENTRIES_MAX]
    assert [e for segment in segments for e in unpack("r", segment, {}.get)] == entries


@pytest.mark.parametrize(
    "bad",
    [
        entry(0, b"two\nlines"),
        Entry(0, "sha256:12", b"{}"),
        Entry(0, "not a digest", b"{}"),
        entry(0, b"{}", b"s" * 64, b"1"),
    ],
)
def test_an_entry_that_nobody_sealed_is_refused(bad: Entry) -> None:
    with pytest.raises(VerificationError) as caught:
        pack([bad], {})
    assert caught.value.code == "JOURNAL_MALFORMED"


@given(contents, st.data())
def test_a_changed_byte_is_noticed_or_shows_in_the_entries(
    rows: list[tuple[bytes, bytes, bytes | None]], data: st.DataObject
) -> None:
    entries = [entry(i, *row) for i, row in enumerate(rows)]
    blobs: dict[bytes, bytes] = {}
    (segment,) = pack(entries, blobs)
    columns = [name for name in ("digests", "facts", "payloads") if getattr(segment, name)]
    name = data.draw(st.sampled_from(columns))
    column = bytearray(getattr(segment, name))
    column[data.draw(st.integers(0, len(column) - 1))] ^= data.draw(st.integers(1, 255))
    found = None
    with contextlib.suppress(StoreError):
        found = unpack("r", segment._replace(**{name: bytes(column)}), blobs.get)
    assert found != entries


def test_a_missing_blob_and_a_foreign_type_are_damage() -> None:
    large = entry(3, b"{}", b"s" * 16, b"x" * (BLOB_BYTES_MIN + 1))
    (segment,) = pack([large], {})
    for damaged in (segment, segment._replace(facts=None), segment._replace(digests="text")):
        with pytest.raises(StoreError) as caught:
            unpack("r", damaged, {}.get)
        assert (caught.value.code, caught.value.facts) == ("STORE_DAMAGED", {"run_id": "r", "seq": 3})
