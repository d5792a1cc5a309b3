#!/usr/bin/env python3
"""Fetches NVIDIA's PTX assembler and disassembler, so that PTX text can be checked on a machine without a GPU, and prints the
assembler's path.

    ptxas.py            target/ptxas/ptxas and nvdisasm, fetched if they are not there
    ptxas.py --quiet    the same, without a word where it is not to be had

The tests take the program from the environment variable KILN_PTXAS, else from target/ptxas, and say loudly that they
skip where there is neither.  Status 3 where there is none for this machine.  The assembler is NVIDIA's under the CUDA
EULA: it is used, never shipped.  Its version is pinned because register counts change with it.
"""
import platform
import sys

import common

PACKAGE = "nvidia-cuda-nvcc==13.5.37"
MEMBER = {"nvidia/cu13/bin/ptxas": ("ptxas", "510118085a9e38ff8a5a1161054927ff")}
DISASSEMBLER = "nvidia-cuda-nvdisasm==13.5.37"
SECOND = {"nvidia/cu13/bin/nvdisasm": ("nvdisasm", "a66e52918cdf6504b804deff4061db0e")}


def main():
    if sys.argv[1:] not in ([], ["--quiet"]):
        raise SystemExit(__doc__)
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        if "--quiet" not in sys.argv:
            print(f"ptxas.py: {PACKAGE} is used on Linux x86-64 only; PTX is not assembled here", file=sys.stderr)
        raise SystemExit(3)
    folder = common.TARGET / "ptxas"
    common.fetch(PACKAGE, MEMBER, folder)
    common.fetch(DISASSEMBLER, SECOND, folder)
    program = folder / "ptxas"
    program.chmod(0o755)
    (folder / "nvdisasm").chmod(0o755)
    print(program)


main()
