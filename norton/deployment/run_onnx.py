"""Run an ONNX file on images: needs onnxruntime and NumPy, neither torch nor this project, so a copy runs elsewhere.

    python run_onnx.py FILE.onnx IMAGES.npy [OUTPUTS.npy] [--threads N] [--repeats N]

IMAGES.npy holds a batch (N, C, H, W).  Prints a line of JSON: `milliseconds`, the median time of the batch, and
`peak_bytes`, the resident memory that its runs took at most beside what the process held with the file opened (null
where the system does not tell; Linux does).
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime


def main() -> None:
    arguments = parser().parse_args()
    images = np.load(arguments.images)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(arguments.file, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images}
    before = resident("VmRSS") if reset_peak() else None
    times = []
    for _ in range(1 + arguments.repeats):
        start = time.perf_counter()
        outputs = session.run(None, feed)[0]
        times.append(1000 * (time.perf_counter() - start))
    peak = None if before is None else max(0, resident("VmHWM") - before)
    if arguments.outputs:
        np.save(arguments.outputs, outputs)
    print(json.dumps({"milliseconds": median(times[1:]), "peak_bytes": peak}))  # the first one warms up


def parser() -> argparse.ArgumentParser:
    usage = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usage.add_argument("file")
    usage.add_argument("images")
    usage.add_argument("outputs", nargs="?")
    usage.add_argument("--threads", type=int, default=0, help="0: a thread per core")
    usage.add_argument("--repeats", type=int, default=5)
    return usage


def reset_peak() -> bool:
    """Let the system forget the most memory that this process held; opening a file takes more than running it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident(what: str) -> int:
    """Bytes of this process in memory: `VmRSS`, now; `VmHWM`, at most."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
