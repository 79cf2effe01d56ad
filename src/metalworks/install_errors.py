"""Say in the platform's words why packages do not install or load, and what to do."""

from __future__ import annotations

import re

LIBRARIES = {
    "libgomp.so.1": "libgomp1",
    "libGL.so.1": "libgl1",
    "libxcb.so.1": "libxcb1",
    "libodbc.so.2": "unixodbc",
    "libsndfile.so.1": "libsndfile1",
    "libpq.so.5": "libpq5",
    "libmagic.so.1": "libmagic1",
    "libspatialindex_c.so": "libspatialindex-c6",
    "libSM.so.6": "libsm6",
    "libXext.so.6": "libxext6",
    "libXrender.so.1": "libxrender1",
}
"""System libraries that wheels need → Debian's package."""
LIBRARY = re.compile(r"(?P<name>lib[\w.+-]*\.so[\w.]*): cannot open shared object file")
LOCAL = re.compile(r"[\w.-]+==[\w.!]+\+[\w.]+")
"""A version of a build of one index, such as PyTorch's for another accelerator."""
CUDA = re.compile(r"lib(cuda|nvidia|cudart|cublas|cudnn|nccl)")


def missing_library(text: str) -> str:
    """Return how to install the system library that an import error names; empty: it names none."""
    found = LIBRARY.search(text)
    if found is None or CUDA.match(found["name"]):  # CUDA's libraries come with wheels and with role nvidia_driver
        return ""
    package = LIBRARIES.get(found["name"])
    which = f"add {package}" if package else "add the distribution's package that contains it"
    return f"This host lacks the system library {found['name']}: {which} to runtime_packages, and run site.yml."


def cures(text: str, *, model: bool) -> list[str]:
    """Return what to do about an error of uv; `model`: on an inference host, otherwise for a flow."""
    found = [missing_library(text)]
    if re.search(r"no usable wheels|(building from source|Building source distributions) is disabled", text):
        found.append(
            "This host installs wheels only. Publish a wheel on an index or log it with the model, or set "
            "inference_build_packages: true (the code of such packages then runs where MLflow's password is readable)."
        )
    if re.search(r"Python\.h: No such file|command '[^']*(gcc|cc|c\+\+|g\+\+)' failed: No such file", text):
        found.append(
            "This host has no compiler: add build-essential and python3-dev to runtime_packages, and run site.yml."
        )
    if re.search(r"Git executable not found|git operation failed.*No such file", text, re.IGNORECASE):
        found.append("This host has no Git: add git to runtime_packages, and run site.yml.")
    if re.search(r"\b40[13] (Unauthorized|Forbidden)|authentication credentials|\b401\b", text):
        found.append(
            "The index wants a login: name it with user and password in package_indexes, and run site.yml. On a dev "
            "host, put your own into ~/.netrc."
        )
    elif model and re.search(r"error sending request|Connection refused|timed out|tcp connect error", text):
        found.append("A source that this host may not connect to belongs in may_reach.packages or package_indexes.")
    if re.search(r"no versions? of|not found in", text) and (local := LOCAL.search(text)):
        where = (
            "log the model with the line --extra-index-url in its requirements"
            if model
            else "name this index in the project (--extra-index-url in requirements.txt, or [[tool.uv.index]])"
        )
        found.append(f"{local[0]} is a build that only one index has: {where}, or in package_indexes.")
    if re.search(r"Distribution not found at: file://", text):
        found.append("A package was installed from a file of the author's machine: log the wheel with the model.")
    if wanted := re.search(r"No interpreter found for (Python \S+?)( in |$|\n)", text):
        found.append(
            f"This host has no {wanted[1]}: install it on the host, or set python_builds_url so that uv fetches it."
        )
    return [each for each in found if each]


def explain(text: str, *, model: bool) -> str:
    """Return an error of uv, followed by what to do."""
    return "\n".join([text, *cures(text, model=model)])
