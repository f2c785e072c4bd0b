"""The object files of kernels: what they define and want, as others see it."""

import struct
from pathlib import Path

from every_kernel import all_kernels

from ggufsmith.quantize import machine_code
from ggufsmith.quantize.machine_code import DIGEST, MAGIC


def cached_objects() -> dict[str, bytes]:
    """What there is of every kernel, by name. What else lies in the cache is left out."""
    return {name: machine_code.find_code(kernel.name, kernel.key) for name, kernel in all_kernels().items()}


def objects_in(folder: Path) -> dict[str, bytes]:
    """The object file in every file of a folder, by name of the kernel."""
    return {path.name.removesuffix(".o"): path.read_bytes()[len(MAGIC) + 2 * DIGEST :] for path in folder.rglob("*.o")}


def elf_symbols(data: bytes) -> tuple[set[str], set[str]]:
    """The symbols of a 64-bit little-endian ELF file but for its local ones (System V ABI, chapter 4): those that it
    defines, and those that it wants.
    """
    (sections_at,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, sections_at + i * size) for i in range(count)]
    (table,) = [section for section in sections if section[1] == 2]  # SHT_SYMTAB
    names_at, found = sections[table[6]][4], (set[str](), set[str]())
    for at in range(table[4], table[4] + table[5], 24):
        name, info, _, section = struct.unpack_from("<IBBH", data, at)
        if info >> 4 != 0:  # not local
            found[section == 0].add(data[names_at + name : data.index(b"\0", names_at + name)].decode())
    return found
