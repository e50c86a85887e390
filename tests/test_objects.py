"""What compiled objects hold: no instruction beyond their level, no symbol but what is asked for.

A function of one level that another could be linked to would be an illegal instruction somewhere.
"""

from __future__ import annotations

import functools
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import softxent

ROOT = Path(softxent.__file__).parent
OBJECTS = {path.name.split(".")[0]: path for path in sorted(ROOT.rglob("*.so"))}
#: Object: the newest level of its instructions. The whole package needs no more than the baseline
#: until it has asked the processor.
LEVELS = {"_native": "baseline", "_ready": "baseline", "kernels": "baseline", "_bind": "baseline",
          "_walk_v2": "v2", "_walk_v3": "v3", "_walk_v4": "v4"}
ORDER = ["baseline", "v2", "v3", "v4"]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64",
                       reason="the levels are x86-64's, the objects ELF's"),
    pytest.mark.skipif(not OBJECTS, reason="no compiled extension here"),
]
disassembler = pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
symbols = pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")


# ---- instructions --------------------------------------------------------------------------------

SEGMENTS = {0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x67}


def level_of(code: bytes, text: str = "") -> str:
    """Return the level that brought an instruction: its encoding says, in 64-bit mode.

    Within what compilers emit for arithmetic; `text` is its disassembly, for AVX-512's registers.
    """
    at = 0
    while code[at] in SEGMENTS:
        at += 1
    if code[at] == 0x62 or re.search(r"%(zmm|k[0-7])", text):
        return "v4"  # EVEX, or a mask by VEX
    if code[at] in (0xC4, 0xC5):
        return "v3"  # VEX: AVX, AVX2, FMA, F16C, BMI
    prefixes = set()
    while code[at] in (0x66, 0xF2, 0xF3, 0xF0) or code[at] & 0xF0 == 0x40:
        prefixes.add(code[at])
        at += 1
    if code[at] != 0x0F:
        return "baseline"
    second, third = code[at + 1], code[at + 2] if len(code) > at + 2 else 0
    if second == 0x38:
        return "v3" if third in (0xF0, 0xF1) and 0xF2 not in prefixes else "v2"  # movbe; or crc32
    if second == 0x3A:
        return "v2"
    if second == 0xBD and 0xF3 in prefixes:
        return "v3"  # lzcnt. (tzcnt is what compilers write for bsf everywhere.)
    if second == 0xB8 and 0xF3 in prefixes:
        return "v2"  # popcnt
    sse3 = second in (0x7C, 0x7D) or (second in (0xD0, 0xF0, 0x12) and 0xF2 in prefixes) or (
        second in (0x12, 0x16) and 0xF3 in prefixes)
    return "v2" if sse3 else "baseline"


@functools.cache
def instructions(path: Path) -> list[tuple[str, str]]:
    """Return level and text of every instruction of an object."""
    listing = subprocess.run(["objdump", "-d", "-w", path], capture_output=True, text=True,
                             check=True).stdout
    found = []
    for line in listing.splitlines():
        parts = line.split("\t")
        if len(parts) >= 3:
            found.append((level_of(bytes.fromhex(parts[1]), parts[2]), parts[2]))
    return found


@pytest.mark.parametrize(("code", "text", "level"), [
    ("66 0f 58 c1", "addpd %xmm1,%xmm0", "baseline"),
    ("f2 0f 10 07", "movsd (%rdi),%xmm0", "baseline"),
    ("f3 0f 1e fa", "endbr64", "baseline"),
    ("f3 48 0f bc c7", "tzcnt %rdi,%rax", "baseline"),
    ("66 0f 7c c1", "haddpd %xmm1,%xmm0", "v2"),
    ("66 0f 38 40 c1", "pmulld %xmm1,%xmm0", "v2"),
    ("66 0f 3a 0b c1 09", "roundsd $9,%xmm1,%xmm0", "v2"),
    ("f3 48 0f b8 c7", "popcnt %rdi,%rax", "v2"),
    ("f2 0f 38 f0 c7", "crc32b %bh,%eax", "v2"),
    ("0f 38 f0 07", "movbe (%rdi),%eax", "v3"),
    ("f3 0f bd c7", "lzcnt %edi,%eax", "v3"),
    ("c5 f1 58 c2", "vaddpd %xmm2,%xmm1,%xmm0", "v3"),
    ("c5 f8 77", "vzeroupper", "v3"),
    ("64 c5 f8 28 07", "vmovaps %fs:(%rdi),%xmm0", "v3"),
    ("c4 e2 f1 98 c2", "vfmadd132pd %xmm2,%xmm1,%xmm0", "v3"),
    ("c4 e2 f8 f2 c1", "andn %rcx,%rax,%rax", "v3"),
    ("c5 f8 92 c8", "kmovw %eax,%k1", "v4"),
    ("62 f1 fd 48 58 c1", "vaddpd %zmm1,%zmm0,%zmm0", "v4"),
    ("62 a1 fd 20 58 c1", "vaddpd %ymm17,%ymm16,%ymm16", "v4"),
    ("62 f3 fd 28 09 c0 00", "vrndscalepd $0,%ymm0,%ymm0", "v4"),
])
def test_the_scan_knows_instructions(code, text, level):
    assert level_of(bytes.fromhex(code), text) == level


def test_every_object_has_a_level():
    """An extension that is new has its line in LEVELS."""
    assert set(OBJECTS) <= set(LEVELS)


@disassembler
@pytest.mark.parametrize("name", sorted(OBJECTS))
def test_no_instruction_beyond_the_level(name):
    beyond = [text for level, text in instructions(OBJECTS[name])
              if ORDER.index(level) > ORDER.index(LEVELS[name])]
    assert not beyond, f"{len(beyond)} in {name}: {beyond[:5]}"


@disassembler
@pytest.mark.parametrize("name", sorted(name for name in OBJECTS if name.startswith("_walk_")))
def test_a_walk_uses_what_its_level_has(name):
    """Else the level would not be what it says, and the test above might look at nothing."""
    found = instructions(OBJECTS[name])
    assert sum(level == LEVELS[name] for level, _ in found) > 1000
    wide = {"v3": "%ymm", "v4": "%zmm"}.get(LEVELS[name], "%xmm")
    assert sum(wide in text for _, text in found) > 1000


# ---- symbols -------------------------------------------------------------------------------------


@symbols
@pytest.mark.parametrize("name", sorted(OBJECTS))
def test_visible_symbols(name):
    """What Python looks for, and what threadpoolctl does."""
    listing = subprocess.run(["nm", "-D", "--defined-only", OBJECTS[name]], capture_output=True,
                             text=True, check=True).stdout
    found = {line.split()[-1] for line in listing.splitlines()}
    assert found == {f"PyInit_{name}"} | ({"sx_pool_size"} if name == "_native" else set())
