"""`make wheel`: what is in dist/, installed as users install it, in fresh environments that are removed afterwards.

python tests/try_wheels.py MODEL slim onnx openvino train sdist offline

MODEL is what export_tiny.py wrote. In each environment `pip check` finds nothing missing, every help is there,
test_minimal.py passes, and where there is a runtime the exported model predicts. `offline` runs the first two blocks of
docs/guide/offline.md as they stand there: one on this machine, the other in an environment that sees no index.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TRIES = ROOT / "build/tries"
COMMANDS = ["train", "predict", "calibrate", "evaluate", "study", "compare", "export", "info", "benchmark", "demo"]


def run(*command: object, **env: str) -> str:
    done = subprocess.run([*map(str, command)], cwd=ROOT, env=os.environ | env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def only(pattern: str) -> Path:
    (path,) = (ROOT / "dist").glob(pattern)
    return path


def new_environment(name: str) -> Path:
    """A fresh virtual environment; the folder of its programs."""
    shutil.rmtree(TRIES / name, ignore_errors=True)
    run(sys.executable, "-m", "venv", TRIES / name)
    return TRIES / name / "bin"


def offline_blocks() -> tuple[list[str], list[str]]:
    """The commands of docs/guide/offline.md: with internet, and without."""
    page = (ROOT / "docs/guide/offline.md").read_text(encoding="utf-8")
    with_internet, without = re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S)[:2]
    return with_internet.splitlines(), without.splitlines()


def install(name: str, programs: Path) -> None:
    """What a user types, for one environment."""
    if name == "offline":
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        shutil.rmtree(ROOT / "wheels", ignore_errors=True)
        with_internet, without = offline_blocks()
        for line in with_internet:
            run(*shlex.split(line), PATH=path)
        for line in without:  # no index, and no way to one
            run(*shlex.split(line), PATH=path, PIP_INDEX_URL="http://127.0.0.1:9/none", PIP_EXTRA_INDEX_URL="")
    elif name == "sdist":
        run(programs / "pip", "install", only("*.tar.gz"))
    else:
        run(programs / "pip", "install", f"{only('*.whl')}{'' if name == 'slim' else f'[{name}]'}")


def check(programs: Path, model: Path) -> str:
    """Use what is installed."""
    run(programs / "pip", "check")
    brought = {line.partition("==")[0].lower() for line in run(programs / "pip", "freeze").splitlines()}
    for command in COMMANDS:
        assert f"Example: uflow {command}" in run(programs / "uflow", command, "--help")
    if runtimes := brought & {"onnxruntime", "openvino"}:
        image = model / "image.png"
        line = run(programs / "uflow", "predict", model / "onnx", image, "--output", programs.parent / "out")
        assert '"is_anomalous": true' in line, line
    run(programs / "pip", "install", "--quiet", "pytest")
    export = {"UFLOW_EXPORT": str(model)} if runtimes else {}
    run_tests = ["-m", "pytest", "-q", "--noconftest", "-c", "tests/minimal.ini", "tests/test_minimal.py"]
    said = run(programs / "python", *run_tests, **export)
    size = sum(path.stat().st_size for path in programs.parent.rglob("*") if path.is_file())
    return f"{len(brought)} packages, {size / 1e6:.0f} MB; {said.splitlines()[-1].strip('= ')}"


def check_metadata() -> None:
    """On an index, the README stands alone."""
    with zipfile.ZipFile(only("*.whl")) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        text = wheel.read(name).decode()
    relative = [target for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("https://")]
    assert relative == [], relative


def main(model: Path, names: list[str]) -> None:
    check_metadata()
    for name in names:
        started = time.perf_counter()
        programs = new_environment(name)
        install(name, programs)
        print(f"{name}: {check(programs, model)}; {time.perf_counter() - started:.0f} s", flush=True)
        shutil.rmtree(TRIES / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
