"""Write the results into README.md, between its two markers: python -m benchmarks.render"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- benchmarks: start -->", "<!-- benchmarks: end -->"
Row = tuple[str, str, str]
WAYS = {"copy": "a copy", "code": "a code", "file": "the base's file"}


def seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s"


def memory(mib: float | None) -> str:
    return "" if mib is None else f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def load_rows(r: Mapping[str, Any]) -> list[Row]:
    first, last, theirs = r["load_s"][0], r["load_s"][-1], r["diffusers_load_s"]
    return [
        ("load, 1st adapter", seconds(first), f"{r['load_by_read']:.1f} x a bare read of the file"),
        (f"load, {len(r['load_s'])}th adapter", seconds(last), f"{r['tenth_by_first']:.1f} x the 1st"),
        ("  Diffusers", f"{seconds(theirs[0])}; {len(theirs)}th {seconds(theirs[-1])}",
         f"{r['diffusers_by_load']:.0f} x ours"),
        ("what the first step after a load takes more", seconds(max(0.0, r["first_use_s"])),
         f"Diffusers {seconds(max(0.0, r['diffusers_first_use_s']))}; "
         f"with the load, {r['diffusers_ready_by_ready']:.1f} x ours"),
        ("resident memory at the load's peak", memory(r["peak_mib"]),
         f"Diffusers {memory(r['diffusers_peak_mib'])}; the file has {r['file_mb']:.0f} MB"),
    ]  # fmt: skip


def merge_rows(r: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = []
    for way, name in WAYS.items():
        w = r[way]
        kept = f"remembers {memory(w['remembered_mib'])}"
        left = w["changed_after_unmerge"]["numbers"]
        took = f"{seconds(w['merge_s'])} (the first: {seconds(w['first_merge_s'])})"
        rows.append((f"merge, way back {name}", took, f"{w['merge_by_addmm']:.2f} x addmm; {kept}"))
        rows.append(("  unmerge", seconds(w["unmerge_s"]),
                     f"{w['unmerge_by_copy']:.1f} x a copy; weights changed: {left:,}"))  # fmt: skip
    d = r["diffusers"]
    left, total = d["changed_after_unfuse"]["numbers"], r["weights"]
    rows.append(("  Diffusers: fuse", seconds(d["fuse_s"]), ""))
    rows.append(("  Diffusers: unfuse", seconds(d["unfuse_s"]), f"weights changed: {left:,} of {total:,}"))
    return rows


def switch_rows(r: Mapping[str, Any]) -> list[Row]:
    peer = f"Diffusers {r['diffusers_set_ms']:.0f} ms, {r['diffusers_by_set']:.0f} x"
    return [
        ("new strengths for 4 live adapters", f"{r['set_ms']['number']:.1f} ms", peer),
        ("  by block", f"{r['set_ms']['blocks']:.1f} ms", ""),
    ]


def forward_rows(r: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = []
    for dtype in ("float32", "bfloat16"):
        f = r[dtype]
        b, one, four = f["by_base"], r["rank"] * r["adapters"], r["adapters"]
        rows += [
            (f"one block, {dtype}, no adapter", f"{f['base_ms']:.0f} ms", "1"),
            (f"  1 LoRA of rank {one}", f"{b['lora_1']:.2f} x", f"PEFT {b['peft_1']:.2f} x"),
            (f"  {four} LoRAs of rank {r['rank']}", f"{b['lora_4']:.2f} x", f"PEFT {b['peft_4']:.2f} x"),
            ("  LoKr", f"{b['lokr']:.2f} x", f"{f['lokr_by_lora']:.2f} x a LoRA of as many numbers"),
            ("  OFT", f"{b['oft']:.2f} x", f"{f['oft_by_lora']:.2f} x a LoRA of as many numbers"),
        ]
    return rows


def mixed_rows(r: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = []
    for dtype in ("float32", "bfloat16"):
        m = r[dtype]
        rows += [
            (
                f"{r['samples']} adapters, {dtype}",
                f"{m['throughput_of_eight']:.2f} x the throughput of one",
                f"PEFT {m['peft_throughput_of_eight']:.2f} x its one, {m['peft_eight_by_ours']:.2f} x our time",
            ),
            ("  LoRA, LoKr and OFT", f"{m['throughput_of_kinds']:.2f} x", "the mean of batches with one of each"),
        ]
    return rows


def combine_rows(r: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = [("all layers, `svd`", seconds(r["whole_svd_s"]), "")]
    for method in ("svd", "ties_svd"):
        m = r[method]
        rows.append(
            (
                f"from a layer of each of {len(r['compared'])} shapes, `{method}`",
                seconds(m["s"]),
                f"PEFT {seconds(m['peft_s'])}, {m['peft_by_ours']:.1f} x ours",
            )
        )
    return rows


def inspect_rows(r: Mapping[str, Any]) -> list[Row]:
    a, u = r["alike"], r["unlike"]
    return [
        (f"{a['files']:,} files in {a['structures']} structures", seconds(a["wall_s"]),
         f"{seconds(a['cpu_s'])} of processor time, {r['by_json']:.1f} x parsing the headers as JSON; load average "
         f"of the machine {r['busy'][0]:.0f}"),
        (f"{u['files']:,} files, no two alike", seconds(u["wall_s"]), f"{seconds(u['cpu_s'])} of processor time"),
        ("  safetensors: names and shapes only", f"{r['safe_open_ms']:.1f} ms of it a file", ""),
    ]  # fmt: skip


def convert_rows(r: Mapping[str, Any]) -> list[Row]:
    return [
        (f"names only, {r['file_mb']:.0f} MB, hashed, on the disk", seconds(r["names_s"]),
         f"{r['names_by_synced_copy']:.1f} x the copy alone; its memory {memory(r['peak_mib'])}"),
        ("  the copy alone, until it is on the disk", seconds(r["synced_copy_s"]),
         f"`cp`, which does not wait for the disk, {seconds(r['cp_s'])}"),
        ("  load_file, rename, save_file", seconds(r["by_hand_s"]), "does not wait for the disk"),
        ("  Diffusers' converter, save_file", seconds(r["diffusers_s"]), "does not wait for the disk"),
    ]  # fmt: skip


def train_rows(r: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = [(f"LoRA of rank {r['rank']}", seconds(r["algorithms"]["lora"]["ours"]["ms"] / 1e3), "1")]
    for name, sides in r["algorithms"].items():
        ours = sides["ours"]
        peers = [f"{label} {sides[side]['by_lora']:.2f} x, memory {sides[side]['memory_by_lora']:.1f} x"
                 for side, label in (("peft", "PEFT"), ("lycoris", "LyCORIS")) if side in sides]  # fmt: skip
        rows.append(
            (f"  {name}", f"{ours['by_lora']:.2f} x, memory {ours['memory_by_lora']:.2f} x", "; ".join(peers) or "")
        )
    return rows


SECTIONS: dict[str, tuple[str, Callable[[Mapping[str, Any]], list[Row]]]] = {
    "load": ("Load an SDXL LoRA (rank 32, 722 layers)", load_rows),
    "merge": ("Merge it into bfloat16 weights, and back", merge_rows),
    "switch": ("Switch", switch_rows),
    "inspect": ("`diffadapt inspect`, SDXL files of 2166 keys", inspect_rows),
    "convert": ("`diffadapt convert`, Kohya to Diffusers (SDXL, rank 32)", convert_rows),
    "forward": ("Forward pass with live adapters", forward_rows),
    "combine": ("Make one LoRA of rank 32 of two (SDXL, rank 32, 722 layers)", combine_rows),
    "train": ("A training step of one block, by our LoRA's", train_rows),
    "mixed": ("A batch of 8 samples, each with its own LoRA of rank 16", mixed_rows),
}


def table() -> str:
    """Every result there is, as Markdown."""
    blocks = []
    for question, (title, rows_of) in SECTIONS.items():
        path = RESULTS / f"{question}.json"
        if not path.is_file():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            f"| {'&nbsp;&nbsp;' if name.startswith('  ') else ''}{name.strip()} | {value} | {beside} |"
            for name, value, beside in rows_of(record["result"])
        ]
        blocks.append("\n".join([f"| {title} | diffadapt | beside it |", "|---|---|---|", *rows, "", about(record)]))
    return "\n\n".join(blocks)


def about(record: Mapping[str, Any]) -> str:
    """One line on what a result was measured with."""
    machine, packages = record["machine"], record["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "diffusers", "peft"))
    changes = " with uncommitted changes" if record["dirty"] else ""
    return (
        f"<sub>{record['date']}, commit {record['commit']}{changes}; {versions}; {machine['cpu']}, "
        f"{machine['torch_threads']} threads.</sub>"
    )


def render() -> None:
    """Put the tables between README's markers."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise SystemExit(f"README.md has no markers {START} and {END}.")
    head, rest = text.split(START, 1)
    tail = rest.split(END, 1)[1]
    readme.write_text(f"{head}{START}\n\n{table()}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    render()
