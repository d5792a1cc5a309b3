"""Tunes a model in parts: python tune_parts.py KILN MODEL DB PARTS [OPTION ...]

Each part is one process of `kiln tune --shard`, with a database of its own; a part that is done is skipped when it is run again,
so the whole may be killed and started as often as need be. With Ray the parts go to the machines of its cluster (the model and
the folder of DB must be shared), without it they run here, one after another: trials that share a core spoil each other.
"""

import pathlib
import subprocess
import sys


def part(kiln, model, db, number, parts, options):
    subprocess.run([kiln, "tune", model, "--db", db, "--shard", f"{number}/{parts}", "-q", *options], check=True)
    path = pathlib.Path(db)
    return str(path.with_name(f"{path.stem}.{number}-of-{parts}{path.suffix}"))


def main():
    kiln, model, db, parts, *options = sys.argv[1:]
    jobs = [(kiln, model, db, number, int(parts), options) for number in range(1, int(parts) + 1)]
    try:
        import ray
    except ImportError:
        done = [part(*job) for job in jobs]
    else:
        ray.init()
        # A whole machine for each: its other cores stay idle, so that times are its own.
        remote = ray.remote(num_cpus=1)(part)
        done = ray.get([remote.remote(*job) for job in jobs])
    subprocess.run([kiln, "tuning", "merge", *done, "-o", db], check=True)


if __name__ == "__main__":
    main()
