"""The TXT record: in bounds whatever goes in, harmless whatever comes in."""

from __future__ import annotations

import unicodedata

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zeroconf import ServiceInfo

from sksd.wire.announcement import (
    LONGEST_RECORD,
    LONGEST_STRING,
    Announcement,
    decode,
    encode,
    instance,
    printable,
    size,
)
from sksd.wire.fingerprint import fingerprint
from sksd.wire.names import SERVICE_TYPE

PLAIN = Announcement(
    version="0.1",
    protocol=1,
    name="Ada's Lab, room 7",
    hostname="box",
    fingerprint=fingerprint(b""),
    running=2,
    maximum=8,
    methods=("password",),
    environments=("data, 2%", "ml", "日本"),
)
ANY = st.builds(
    Announcement,
    version=st.text(),
    protocol=st.integers(0, 1000),
    name=st.text(),
    hostname=st.text(),
    fingerprint=st.text() | st.binary().map(fingerprint),
    running=st.none() | st.integers(),
    maximum=st.none() | st.integers(),
    methods=st.lists(st.text(), max_size=20).map(tuple),
    environments=st.lists(st.text(max_size=300), max_size=60).map(tuple),
)


def raw(record: dict[str, bytes]) -> dict[bytes, bytes | None]:
    """The record as a resolver gives it back."""
    return {key.encode(): value for key, value in record.items()}


def harmless(text: str) -> bool:
    return not any(unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for letter in text)


class EncodeTests(SynchronousTestCase):
    """What a host says."""

    def test_round_trip(self) -> None:
        record = encode(PLAIN)
        self.assertEqual(next(iter(record)), "txtvers")
        self.assertEqual(decode(raw(record)), PLAIN)

    def test_through_zeroconf(self) -> None:
        info = ServiceInfo(SERVICE_TYPE, f"x.{SERVICE_TYPE}", port=1, properties=dict(encode(PLAIN)))
        self.assertEqual(len(info.text), size(encode(PLAIN)))
        again = ServiceInfo(SERVICE_TYPE, f"x.{SERVICE_TYPE}", port=1, properties=info.text)
        self.assertEqual(decode(again.properties), PLAIN)

    def test_always_in_bounds(self) -> None:
        @settings(max_examples=200, deadline=None)
        @given(ANY)
        def in_bounds(said: Announcement) -> None:
            record = encode(said)
            self.assertLessEqual(size(record), LONGEST_RECORD)
            for key, value in record.items():
                self.assertLessEqual(len(key) + 1 + len(value), LONGEST_STRING)
            heard = decode(raw(record))
            assert heard is not None
            self.assertEqual(heard.name, printable(said.name, 120))
            clean = [printable(name, 120) for name in said.environments]
            clean = list(dict.fromkeys(name for name in clean if name))
            self.assertEqual(list(heard.environments), clean[: len(heard.environments)])
            # What was heard can be said again.
            self.assertEqual(decode(raw(encode(heard))), heard)

        in_bounds()

    def test_many_environments(self) -> None:
        names = tuple(f"environment-{number}" for number in range(500))
        record = encode(attrs.evolve(PLAIN, environments=names))
        heard = decode(raw(record))
        assert heard is not None
        self.assertIn("envs3", record)
        self.assertGreater(len(heard.environments), 50)
        self.assertEqual(heard.environments, names[: len(heard.environments)])
        self.assertGreater(size(record), LONGEST_RECORD - 20)


class DecodeTests(SynchronousTestCase):
    """What strangers say."""

    def test_never_raises(self) -> None:
        keys = st.sampled_from([key.encode() for key in encode(PLAIN)]) | st.binary(max_size=20)
        values = st.none() | st.binary(max_size=300)

        @settings(max_examples=300, deadline=None)
        @given(st.dictionaries(keys, values, max_size=12))
        def garbage(properties: dict[bytes, bytes | None]) -> None:
            decode(properties)
            heard = decode({b"txtvers": b"1", b"protocol": b"1"} | properties)
            if heard is not None:
                texts = [heard.version, heard.name, heard.hostname, heard.fingerprint]
                for text in texts + list(heard.methods) + list(heard.environments):
                    self.assertTrue(harmless(text), repr(text))

        garbage()

    def test_terminal_is_safe(self) -> None:
        record = raw(encode(PLAIN)) | {b"name": "a\x1b[2J\u202eb\n\x9bc".encode(), b"envs": b"x\x07,%2C\x00"}
        heard = decode(record)
        assert heard is not None
        self.assertEqual(heard.name, "a [2J b c")
        self.assertEqual(heard.environments, ("x", ","))

    def test_ignored(self) -> None:
        record = raw(encode(PLAIN))
        for change in (
            {b"txtvers": b"2"},
            {b"txtvers": None},
            {b"protocol": b"x"},
            {b"protocol": None},
            {b"more": b"x" * 251},
            {b"more%d" % number: b"x" * 200 for number in range(6)},
        ):
            self.assertIs(decode(record | change), None)
        self.assertIs(decode({}), None)

    def test_lenient(self) -> None:
        record = raw(encode(PLAIN)) | {b"running": b"many", b"fingerprint": b"trust me", b"new": b"x"}
        heard = decode(record)
        assert heard is not None
        self.assertIs(heard.running, None)
        self.assertEqual((heard.fingerprint, heard.maximum), ("", 8))
        upper = {key.upper(): value for key, value in raw(encode(PLAIN)).items()}
        self.assertEqual(decode(upper), PLAIN)


class InstanceTests(SynchronousTestCase):
    """The name of the service."""

    def test_one_label(self) -> None:
        self.assertEqual(instance("Ada's Lab"), "Ada's Lab")
        self.assertEqual(instance("box.example.org"), "box-example-org")
        for odd in ("", "\x00", "_", "...\u202e"):
            self.assertTrue(instance(odd))

        @given(st.text())
        def label(name: str) -> None:
            made = instance(name)
            self.assertTrue(0 < len(made.encode()) <= 63 and "." not in made and harmless(made))
            # zeroconf checks the name.
            ServiceInfo(SERVICE_TYPE, f"{made}.{SERVICE_TYPE}", port=1)

        label()
