"""The list of system calls: every way into the network or another process is on it, for both kinds of processors."""

import struct

import pytest

from lmforge.evaluate.sandbox import inside


def verdict(program: bytes, architecture: int, number: int, first: int = 0) -> int:
    """What the filter says to a call: classic BPF, as the kernel runs it."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, first, 0, 0, 0, 0, 0)
    lines = [struct.unpack_from("HBBI", program, at) for at in range(0, len(program), 8)]
    at, held = 0, 0
    while True:
        code, yes, no, value = lines[at]
        if code == 0x20:
            held = struct.unpack_from("=I", data, value)[0]
            at += 1
        elif code == 0x06:
            return value
        else:
            met = held == value if code == 0x15 else held >= value
            at += 1 + (yes if met else no)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_lets_through_what_is_not_denied(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "machine", lambda: machine)
    column, architecture = inside.ARCHITECTURES[machine]
    program = inside.filter_of(own=77)
    denied = {numbers[column] for numbers in inside.DENIED.values()} - {None}
    for number in denied:
        assert verdict(program, architecture, number) == inside.ERRNO | 1
    allowed = {"x86_64": (0, 1, 3, 9, 12, 257), "aarch64": (63, 64, 57, 222, 214, 56)}[machine]
    assert all(verdict(program, architecture, number) == inside.ALLOW for number in allowed)
    kill = inside.OWN_ONLY["kill"][column]
    assert verdict(program, architecture, kill, 77) == inside.ALLOW
    assert verdict(program, architecture, kill, 78) == inside.ERRNO | 1
    assert verdict(program, architecture, 435) == inside.ERRNO | 38
    assert verdict(program, architecture ^ 1, allowed[0]) == inside.KILL
    if machine == "x86_64":
        assert verdict(program, architecture, 0x40000000 | 41) == inside.KILL


def test_no_number_stands_twice() -> None:
    for column in (0, 1):
        numbers = [
            each[column] for table in (inside.DENIED, inside.OWN_ONLY, inside.NOT_THERE) for each in table.values()
        ]
        known = [number for number in numbers if number is not None]
        assert len(known) == len(set(known))


def test_an_unknown_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "machine", lambda: "riscv64")
    with pytest.raises(inside.Refused, match="riscv64"):
        inside.shut_calls()
