"""`python -m tests.nvidia.build FOLDER`: stand-ins for NVIDIA's libraries, for the CUDA wheel that lies in FOLDER.

They let ONNX Runtime's CUDA provider start, capture and run on a machine without a GPU, and note what it calls; nothing
is computed. Which functions there must be is read out of the wheel's provider. Needs a C compiler and nm.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = (
    "libcuda.so.1",
    "libcudart.so.13",
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libcurand.so.10",
    "libcudnn.so.9",
)
SYMBOL = re.compile(r" U (\w+)(?:@+(\S+))?$", re.MULTILINE)
LOADED_LATER = re.compile(rb"\x00(cudnn[A-Z]\w+)(?=\x00)")  # by name, so no symbols of the provider's
WRITTEN = re.compile(r"^\S.*?\b(\w+)\(", re.MULTILINE)  # functions in our own files


def wanted(provider: Path) -> dict[str, set[str]]:
    """The functions that a provider takes from each library."""
    found: dict[str, set[str]] = defaultdict(set)
    listed = subprocess.run(["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True)
    for name, library in SYMBOL.findall(listed.stdout):
        if library in LIBRARIES:
            found[library].add(name)
        elif re.match("cu[A-Z]", name):
            found["libcuda.so.1"].add(name)
    found["libcudnn.so.9"] = {name.decode() for name in LOADED_LATER.findall(provider.read_bytes())}
    return found


def stub(name: str) -> str:
    """A function that answers 0, and gives whoever makes something a place for it."""
    makes = "Create" in name and not name.startswith("cuda")
    return f"int {name}(void **made) {{ {'*made = malloc(4096); ' if makes else ''}return 0; }}\n"


def build(folder: Path) -> Path:
    """Compile all of them; the folder that they are in."""
    (provider,) = folder.glob("onnxruntime/capi/libonnxruntime_providers_cuda.so")
    found, target = wanted(provider), folder / "stand_in"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for library in LIBRARIES:
        own = HERE / ("runtime.c" if library.startswith("libcudart") else "others.c")
        missing = sorted(found[library] - set(WRITTEN.findall(own.read_text())))
        source, versions = target / f"{library}.c", target / f"{library}.map"
        source.write_text("#include <stdlib.h>\n" + "".join(map(stub, missing)))
        versions.write_text(f"{library} {{ global: *; }};\n")
        headers = [f"-I{path}" for path in folder.glob("nvidia/cu*/include")]
        flags = ["-w", "-shared", "-fPIC", f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}"]
        subprocess.run(["cc", *flags, "-o", target / library, source, own, *headers], check=True)
    tool = target / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho GPU 0: a stand-in\n")
    tool.chmod(0o755)
    for real in folder.glob("nvidia/cu*/lib"):
        shutil.rmtree(real)  # ONNX Runtime would take these first
    return target


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))  # noqa: T201
