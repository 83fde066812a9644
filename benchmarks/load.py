"""Loading a random checkpoint: peak memory and time, against the same folder read whole and copied.

Each way runs in a process of its own; memory is its peak resident size over what it had before, as a share of the weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

MEASURE = """
import json, resource, sys, time
import torch
from safetensors.torch import load_file
from unmask.models.checkpoint import load_model
from unmask.models import Decoder, find_family

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def whole(folder, dtype):
    config = json.load(open(folder + "/config.json"))
    model = Decoder(find_family(config).spec(config)).to(getattr(torch, dtype))
    family = find_family(config)
    tensors = {}
    import glob
    for file in glob.glob(folder + "/*.safetensors"):
        tensors |= load_file(file)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[family.to_checkpoint_name(name)])
    return model

way, folder, dtype = sys.argv[1:]
before, start = peak(), time.perf_counter()
model = load_model(folder, dtype=dtype) if way == "load_model" else whole(folder, dtype)
seconds = time.perf_counter() - start
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"seconds": seconds, "over": (peak() - before) / size, "all": peak() / size, "size": size}))
"""


def make(preset: str, dtype: str, layers: int, folder: Path) -> None:
    code = (
        "from unmask.models.checkpoint import new_model, save_model\n"
        f"save_model(new_model({preset!r}, 0, dtype={dtype!r}, num_hidden_layers={layers}), {str(folder)!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="sdar/1.7b")
    parser.add_argument("--layers", type=int, default=14, help="14 layers of the 1.7b preset are 1.0 billion parameters")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        make(args.preset, args.dtype, args.layers, folder)
        results = {}
        for way in ("read whole, then copied", "load_model"):
            command = [sys.executable, "-c", MEASURE, way, str(folder), args.dtype]
            results[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    size = results["load_model"]["size"]
    print(f"loading {args.preset} with {args.layers} layers, {args.dtype}, {size / 1e9:.2f} GB")
    for way, r in results.items():
        print(f"  {way:<26} peak {r['over']:.2f}x the weights, whole process {r['all']:.2f}x, {r['seconds']:5.1f} s")


if __name__ == "__main__":
    main()
