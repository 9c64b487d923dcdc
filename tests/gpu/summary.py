#!/usr/bin/env python3
"""Prints the results of bench.py as the Markdown table kept under reports/: summary.py FILE."""
import json
import sys


def name(r):
    shape = "x".join(str(n) for n in r["shape"]) if "shape" in r else f"Swin stage {r['stage']}, batch {r['batch']}{', shifted' if r['shifted'] else ''}"
    extra = [w for w, on in (("residual", r.get("residual")), ("part", r.get("part")), ("window", r.get("window")), ("reverse", r.get("reverse"))) if on]
    return " ".join([r["op"], shape, *extra])


def main():
    with open(sys.argv[1]) as f:
        data = json.load(f)
    print(f"{data['device']}, PyTorch {data['torch']}; microseconds a launch, median, one run.\n")
    print("| case | ours | copy of the same bytes | bandwidth of the copy | PyTorch | speed-up |")
    print("|---|---|---|---|---|---|")
    for r in data["results"]:
        us = r["us"]
        copy = us.get("copy")
        ratio = f"{100 * r['bandwidth_of_copy']:.0f} %" if "bandwidth_of_copy" in r else ""
        if "best_sdpa_us" in r:
            rows = [("dense bias", "ours dense", r["speedup_dense"]), ("table", "ours table", r["speedup_table"])]
            for label, key, speedup in rows:
                share = f"{100 * copy / us[key]:.0f} %"
                print(f"| {name(r)}, {label} | {us[key]:.2f} | {copy:.2f} | {share} | {r['best_sdpa_us']:.2f} | {speedup:.2f} |")
            continue
        torch = us.get("torch", us.get("sdpa"))
        speedup = r.get("speedup_over_torch", r.get("speedup"))
        cells = [f"{us['ours']:.2f}", f"{copy:.2f}" if copy else "", ratio, f"{torch:.2f}" if torch else "", f"{speedup:.2f}" if speedup else ""]
        print(f"| {name(r)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
