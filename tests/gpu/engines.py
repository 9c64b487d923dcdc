"""Building and timing engines with trt-opt, for the other scripts here."""
import json
import subprocess


def add_arguments(parser):
    parser.add_argument("--trt-opt", required=True, help="the program, compiled for the TensorRT at hand")
    parser.add_argument("--tensorrt", required=True, help="TensorRT's library or its folder")
    parser.add_argument("--plugins", required=True, help="the plugin library of that TensorRT")


class Builder:
    """Builds engines one after another in one process."""

    def __init__(self, args):
        self.process = subprocess.Popen([args.trt_opt, "builder", "--tensorrt", args.tensorrt], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def build(self, arguments):
        """Exit code and error of `trt-opt build` with these arguments."""
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            return self.process.wait() or -1, "the builder ended"
        answer = json.loads(answer)
        return answer["code"], answer["error"]


def build_arguments(args, model, engine, inputs, plugins, fp16, layers=None, timing_cache=None):
    """What builds an engine at the shapes of the inputs (arrays by name)."""
    command = [model, "-o", engine]
    for name, array in inputs.items():
        command += ["--shapes", f"{name}:{'x'.join(map(str, array.shape))}"]
    if plugins:
        command += ["--plugins", args.plugins]
    if fp16:
        # TensorRT may find float32 faster for a small graph; that is for the caller to judge.
        command += ["--fp16", "--force"]
    if layers:
        command += ["--layers", layers]
    if timing_cache:
        command += ["--timing-cache", timing_cache]
    return command


# Exit code 1 of `build --force`: the engine is there, and computes in float32.
BUILT = (0, 1)


def bench(args, engines, files, out, rounds):
    """Times engines against each other on the inputs in `files` (paths by name), and dumps their outputs into `out`.

    Results by name of the engine's file without its ending. Raises RuntimeError where trt-opt fails.
    """
    command = [args.trt_opt, "bench", *engines, "--tensorrt", args.tensorrt, "--plugins", args.plugins, "--graph",
               "--rounds", str(rounds), "--dump", out, "--json", f"{out}/bench.json"]
    for name, path in files.items():
        command += ["--input", f"{name}={path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-800:]}\n{done.stderr[-1500:]}")
    with open(f"{out}/bench.json") as f:
        report = json.load(f)
    results = {}
    for row in report["rows"]:
        entry = results.setdefault(row["name"], {key: row[key] for key in ("kernels", "graph_nodes", "layers", "precisions", "engine_mb", "device_mb", "not_finite")})
        entry |= {f"{row['mode']}_{key}": row[key] for key in ("p50_us", "p99_us", "interval_us", "min_us")}
    return results
