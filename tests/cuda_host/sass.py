"""Machine code of sm_90 executed on the CPU: the instructions that a GPU would issue, counted one by one.

``nvdisasm`` disassembles what NVRTC compiled. The warps of a block run one after another from barrier to barrier, the
32 lanes of a warp as NumPy arrays. Global addresses are this process's own. Results are the kernel's, so an instruction
that is read wrongly shows in them. An instruction that the masking kernels do not use raises KeyError.

Time of a block that has a multiprocessor to itself: a warp issues in order, an instruction when its operands are there
(LATENCY, an assumption). Warps of a scheduler do not wait for each other.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from .sass_code import Instruction, disassemble, find_nvdisasm
from .sass_translate import FULL, LANES, PT, UPT, int_of, predicate, register, translate, u32, u64

__all__ = ["SassModule", "disassemble", "find_nvdisasm"]

# Cycles from issue to result on a GPU of Hopper's kind: assumed, from published microbenchmarks of A100 and H100.
LATENCY = {"alu": 5, "slow": 18, "double": 18, "shared": 29, "shuffle": 24, "constant": 25, "cached": 40, "global": 500}
CONTROL = {"BRA", "BSSY", "BSYNC", "BREAK", "BAR", "WARPSYNC", "NOP", "EXIT", "CALL", "RET", "YIELD", "ENDCOLLECTIVE"}


@dataclass
class Counts:
    """What a launch did."""

    issued: np.ndarray  # warp instructions, by place in the code
    waves: np.ndarray  # cycles of shared memory: more than one where banks conflict
    sectors: Counter = field(default_factory=Counter)  # of 32 bytes, of global requests: read, written
    distinct: Counter = field(default_factory=Counter)  # those a block touched, each once
    cycles: list[int] = field(default_factory=list)  # of each block, alone on its multiprocessor
    barriers: int = 0
    phases: Counter = field(default_factory=Counter)  # cycles of all blocks, by the barrier (its place) that ends them


# This process's memory from address PAGE on, as bytes and as words.
PAGE = 4096
_BYTES = np.frombuffer((ctypes.c_uint8 * (2**47 - 2 * PAGE)).from_address(PAGE), np.uint8)
_WORDS = _BYTES.view(u32)
MASKS: dict[int, np.ndarray] = {}


def mask_of(bits: int) -> np.ndarray:
    if bits not in MASKS:
        MASKS[bits] = (bits >> LANES & 1).astype(bool)
    return MASKS[bits]


class Warp:
    """Registers, and the groups of lanes that are at one place of the code."""

    def __init__(self, block: Block, first: int):
        self.block = block
        self.R = np.zeros((321, 32), u32)
        self.P = np.zeros((16, 32), bool)
        self.P[PT] = self.P[UPT] = True
        self.tid = (first + LANES).astype(u32)
        self.groups: list[tuple[int, int]] = [(0, FULL)]  # ready: (place, lanes)
        self.parked: dict[int, int] = {}  # place of a collective → lanes that wait there for the others
        self.barriers: list[list[int]] = [[0] * 32 for _ in range(16)]  # of each lane: who is to meet
        self.waiting: dict[tuple[int, int], tuple[int, int]] = {}  # (barrier, who is to meet) → (place, who is there)
        self.exited = 0
        self.now = 0
        self.ready = np.zeros(1016, np.int64).tolist()  # when a register's value is there
        self.far = False  # whether the last request was for lines of 128 bytes that the block had not touched

    def load(self, is_global, address, size, m, at):
        if not m.any():
            return [u32(0)] * 4
        where = self._touch(is_global, address[m], size, at, "read")
        memory, words = (_BYTES, _WORDS) if is_global else (self.block.bytes, self.block.shared)
        if size == 1:
            return [memory[where].astype(u32)]
        return [words[(where >> u64(2)) + u64(k)] for k in range(size // 4)]

    def store(self, is_global, address, values, size, m, at):
        if not m.any():
            return
        where = self._touch(is_global, address[m], size, at, "written")
        words = _WORDS if is_global else self.block.shared
        for k in range(size // 4):
            words[(where >> u64(2)) + u64(k)] = values[k]

    def atomic(self, kind, address, given, new, size, m, at):
        if not m.any():
            return np.zeros(0, u64)
        where = self._touch(False, address[m], size, at, "atomic")
        words = self.block.shared.view(u64) if size == 8 else self.block.shared
        places, old = (where // u64(size)).astype(np.int64), []
        for i, place, operand in zip(np.flatnonzero(m), places, given[m], strict=True):
            before = int(words[place])
            old.append(before)
            x = int(operand)
            if kind == "CAST":
                old[-1] = int(before == x)
                words[place] = int(new[i]) if before == x else before
            else:
                words[place] = {
                    "ADD": (before + x) % 2**32, "POPC": (before + 1) % 2**32, "OR": before | x, "AND": before & x,
                    "MIN": min(before, x), "MAX": max(before, x), "EXCH": x,
                }[kind]  # fmt: skip
        return np.array(old, u64)

    def _touch(self, is_global, where, size, at, what):
        """Check alignment, count sectors or the cycles of shared memory; return the addresses."""
        assert not (where & u64(size - 1)).any(), f"misaligned: {self.block.code[at]}"
        counts = self.block.counts
        if is_global:
            sectors = np.unique(where >> u64(5))
            counts.sectors[what] += sectors.size
            self.block.touched[what].update(sectors.tolist())
            lines = {int(line) for line in np.unique(where >> u64(7))}
            self.far = not lines <= self.block.lines
            self.block.lines |= lines
            return where - u64(PAGE)
        groups = np.flatnonzero(np.ones(where.size)) * size // 128  # 128 bytes at a time
        waves = 0
        for group in range(int(groups[-1]) + 1):
            words = np.unique(where[groups == group, None] // u64(4) + np.arange(max(1, size // 4), dtype=u64))
            if what == "atomic":
                same = np.unique(where, return_counts=True)[1].max()  # lanes that meet at one address take turns
                waves += max(int(same), int(np.bincount((words % u64(32)).astype(np.int64)).max()))
                break
            waves += int(np.bincount((words % u64(32)).astype(np.int64)).max())
        counts.waves[at] += waves
        return where

    def run(self) -> bool:
        """Execute to the next barrier of the block; False at the end."""
        code, counts, P = self.block.code, self.block.counts, self.P
        issued, ready = counts.issued, self.ready
        at, bits = self.groups.pop()
        while True:
            one = code[at]
            issued[at] += 1
            op = one.op
            if op not in CONTROL:
                m = mask_of(bits)
                if one.guard != "PT":
                    guard = P[predicate(one.guard)]
                    m = m & (~guard if one.guard[0] == "!" else guard)
                if one.run is None:
                    translate(one)
                start = self.now + 1
                for row in one.reads:
                    start = max(start, ready[row])
                self.now = start
                one.run(self, m, at)
                pipe = one.pipe
                after = (
                    start
                    + LATENCY[
                        ("global" if self.far else "cached") if pipe == "global" else "alu" if pipe == "fma" else pipe
                    ]
                )
                for row in one.writes:
                    ready[row] = after
                at += 1
                continue
            self.now = max(self.now + 1, ready[1000 + predicate(one.guard)] if one.guard != "PT" else 0)
            taken = bits
            for text in (one.guard, *(arg for arg in one.operands if predicate(arg) >= 0)):
                if text not in {"PT", "UPT"}:
                    guard = P[predicate(text)]
                    taken &= int_of(~guard if text[0] == "!" else guard)
            if op == "BRA" and "DIV" in one.kinds:
                everyone = int(self.R[register(one.operands[0])][0]) & ~self.exited
                at, bits = self._meet(at, bits, everyone)
            elif op == "BRA":
                if taken == bits:
                    at = one.target
                elif taken:
                    self.groups.append((one.target, taken))
                    bits &= ~taken
                    at += 1
                else:
                    at += 1
                self.now += 5 if taken else 0
            elif op == "BSSY":
                number = int(one.operands[0][1:])
                for lane in np.flatnonzero(mask_of(bits)):
                    self.barriers[number][lane] = bits
                at += 1
            elif op == "BREAK":
                self._break(int(one.operands[-1][1:]), taken)
                at += 1
            elif op == "BSYNC":
                number = int(one.operands[0][1:])
                first = (bits & -bits).bit_length() - 1
                target = self.barriers[number][first]
                there = self.waiting.pop((number, target), (at, 0))[1] | bits
                if there == target & ~self.exited:
                    at, bits = at + 1, there
                else:
                    self.waiting[number, target] = at, there
                    at, bits = self._next()
            elif op == "WARPSYNC":
                assert one.kinds == ["ALL"], "lanes apart"
                at, bits = self._meet(at, bits, FULL & ~self.exited)
            elif op == "BAR":
                assert bits == FULL, "a barrier that not all lanes reach"
                self.groups.append((at + 1, bits))
                return True
            elif op == "EXIT":
                self.exited |= taken
                bits &= ~taken
                if bits:
                    at += 1
                elif self.groups or self.waiting or self.parked:
                    at, bits = self._next()
                else:
                    return False
            elif op in {"NOP", "YIELD"}:
                at += 1
            else:
                raise KeyError(f"{op} {one.operands}")

    def _next(self):
        assert self.groups, f"lanes wait for each other: {self.waiting} {self.parked}"
        return self.groups.pop()

    def _meet(self, at, bits, everyone):
        there = self.parked.pop(at, 0) | bits
        if there == everyone:
            return at + 1, there
        self.parked[at] = there
        return self._next()

    def _break(self, number, lanes):
        for lane in range(32):
            if self.barriers[number][lane] & lanes and not lanes >> lane & 1:
                target = self.barriers[number][lane]
                self.barriers[number][lane] = target & ~lanes
                if (number, target) in self.waiting:
                    place, there = self.waiting.pop((number, target))
                    if there == target & ~lanes & ~self.exited:
                        self.groups.append((place + 1, there))
                    else:
                        self.waiting[number, target & ~lanes] = place, there


class Block:
    def __init__(self, code, counts, bank, index, threads, shared_bytes):
        self.code, self.counts, self.bank = code, counts, bank
        self.index = np.full(32, index, u32)
        self.bytes = np.full(0x400 + shared_bytes, 0xCD, np.uint8)  # the first kibibyte is the system's
        self.shared = self.bytes.view(u32)
        self.touched = {"read": set(), "written": set()}
        self.lines: set[int] = set()
        self.warps = [Warp(self, first) for first in range(0, threads, 32)]

    def run(self) -> None:
        before = 0
        while True:
            alive = [warp.run() for warp in self.warps]
            assert all(alive) or not any(alive), "some warps end before a barrier of the others"
            now = max(warp.now for warp in self.warps)
            self.counts.phases[max(warp.groups[-1][0] if warp.groups else 0 for warp in self.warps) - 1] += now - before
            if not any(alive):
                self.counts.cycles.append(now)
                for what, sectors in self.touched.items():
                    self.counts.distinct[what] += len(sectors)
                return
            self.counts.barriers += 1
            before = now + 20
            for warp in self.warps:
                warp.now = before


class SassModule:
    """Kernels as tests/cuda_host/launch.py has them: ``launch`` runs one on arrays of this process."""

    def __init__(self, kernels: dict[str, list[Instruction]]):
        self.kernels = kernels
        self.counts: Counts | None = None

    def launch(self, name, grid, block, args, *, shared_bytes=0, **_):
        """Run all blocks; what they did is in ``counts``."""
        code = self.kernels[name]
        self.counts = Counts(np.zeros(len(code), np.int64), np.zeros(len(code), np.int64))
        bank = bytearray(4096)
        bank[:12] = np.array([*block, 1, 1][:3], u32).tobytes()
        at = 0x210
        for arg in args:
            data = (np.int64(arg) if isinstance(arg, int) else arg).tobytes()
            at += -at % len(data)
            bank[at : at + len(data)] = data
            at += len(data)
        words = np.repeat(np.frombuffer(bytes(bank), u32)[:, None], 32, axis=1)
        with np.errstate(all="ignore"):
            for index in range(grid[0]):
                Block(code, self.counts, words, index, block[0], shared_bytes).run()
