"""The object files in a cache of kernels: what they define for others to see, and their text."""

import pickle
import struct
from pathlib import Path

from every_kernel import all_kernels
from llvmlite import binding
from numba.core.registry import cpu_target

Object = tuple[bytes, bytes]  # the object file of a kernel, and the LLVM module that it was made from


def cached_objects() -> dict[str, Object]:
    """What the user's cache has of every kernel, by file name. What else lies there is left out."""
    found = {}
    for kernel in all_kernels().values():
        if kernel.stored:
            files = kernel.dispatcher._cache._cache_file
            (name,) = files._load_index().values()
            found[name] = files._load_data(name)[0][2]
    return found


def objects_in(folder: Path) -> dict[str, Object]:
    """Every file that Numba keeps in a folder."""
    return {path.name: pickle.loads(path.read_bytes())[0][2] for path in folder.rglob("*.nbc")}


def assembly(module: bytes) -> str:
    """The text of a kernel's machine code, as Numba makes it (numba.core.codegen.CPUCodeLibrary.get_asm_str)."""
    text: str = cpu_target.target_context.codegen()._tm.emit_assembly(binding.parse_bitcode(module))
    return text


def visible_symbols(code: bytes, module: bytes) -> set[str]:
    """The names that code elsewhere can refer to. Where the object file is no ELF, those of the module."""
    if code[:4] == b"\x7fELF":
        return elf_symbols(code)
    parsed = binding.parse_bitcode(module)
    hidden = (binding.Linkage.internal, binding.Linkage.private)
    values = [*parsed.functions, *parsed.global_variables]
    return {value.name for value in values if not value.is_declaration and value.linkage not in hidden}


def elf_symbols(data: bytes) -> set[str]:
    """The symbols that a 64-bit little-endian ELF file defines, but for its local ones (System V ABI, chapter 4)."""
    (sections_at,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, sections_at + i * size) for i in range(count)]
    (table,) = [section for section in sections if section[1] == 2]  # SHT_SYMTAB
    names_at, found = sections[table[6]][4], set()
    for at in range(table[4], table[4] + table[5], 24):
        name, info, _, section = struct.unpack_from("<IBBH", data, at)
        if section != 0 and info >> 4 != 0:  # defined, and not local
            found.add(data[names_at + name : data.index(b"\0", names_at + name)].decode())
    return found
